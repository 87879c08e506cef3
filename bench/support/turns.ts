/** Timing several pieces of work in turn, so that a machine that slows down slows all of them. */

export interface Contender {
  run(): Promise<unknown>;
  close?(): Promise<void>;
}

export interface TurnOptions {
  /** Timed runs of each. Default 12. */
  readonly runs?: number;
  /** Milliseconds a contender may take before its runs get fewer (never below 3). Default 4000. */
  readonly budgetMs?: number;
  readonly now?: () => number;
}

export interface Times {
  readonly medianMs: number;
  readonly minMs: number;
  readonly runs: number;
}

/** Timed runs before the next contender's turn. */
const PER_TURN = 3;
/** Untimed runs go first for so long: idle threads of the engine spin for a while, and those of the last contender's session would share the cores. */
const SETTLE_MS = 50;

/** Times of each contender, in order. Every one is run before the clock starts, and closed at the end. */
export async function inTurn(contenders: readonly Contender[], { runs = 12, budgetMs = 4000, now = () => performance.now() }: TurnOptions = {}): Promise<Times[]> {
  try {
    const wanted: number[] = [];
    for (const { run } of contenders) {
      await run();
      const start = now();
      await run();
      wanted.push(Math.max(Math.min(runs, PER_TURN), Math.min(runs, Math.floor(budgetMs / Math.max(now() - start, 1e-3)))));
    }
    const times = contenders.map((): number[] => []);
    while (times.some((list, i) => list.length < (wanted[i] ?? 0))) {
      for (const [i, { run }] of contenders.entries()) {
        const list = times[i] ?? [];
        const left = Math.min(PER_TURN, (wanted[i] ?? 0) - list.length);
        if (left <= 0) continue;
        const settled = now() + SETTLE_MS;
        do await run(); while (now() < settled);
        for (let k = 0; k < left; k++) {
          const start = now();
          await run();
          list.push(now() - start);
        }
      }
    }
    return times.map((list) => ({ medianMs: median(list), minMs: Math.min(...list), runs: list.length }));
  } finally {
    for (const { close } of contenders) await close?.();
  }
}

/** The middle value, or the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const half = (sorted.length - 1) / 2;
  return ((sorted[Math.floor(half)] ?? NaN) + (sorted[Math.ceil(half)] ?? NaN)) / 2;
}
