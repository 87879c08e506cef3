import type { Session } from './session.ts';

export interface PerplexityOptions {
  /** Tokens of a window. Default 1024, or the context where that is shorter. */
  readonly window?: number | undefined;
  /** How many windows from the start of the text. Default: all that are whole. */
  readonly windows?: number | undefined;
  /** Called before the first window and after each. */
  readonly onProgress?: ((doneWindows: number, windows: number) => void) | undefined;
  /** Milliseconds; default performance.now. */
  readonly clock?: (() => number) | undefined;
}

export interface PerplexityResult {
  /** exp of the mean of `nllPerWindow`. */
  readonly perplexity: number;
  /** Mean nats over the window - 1 predictions of each window. */
  readonly nllPerWindow: readonly number[];
  /** Tokens run through the model: windows x window. */
  readonly tokens: number;
  readonly window: number;
  readonly windows: number;
  readonly tokensPerSecond: number;
}

/**
 * Perplexity of a text's ids: windows side by side without overlap and without BOS, each from an empty cache.
 * `signal` of the session stops it between chunks. Time is measured after the graph is open.
 * Errors: a window of fewer than 2 tokens or longer than the context, fewer tokens than the windows asked for.
 */
export async function perplexity(session: Session, ids: readonly number[], options: PerplexityOptions = {}): Promise<PerplexityResult> {
  const { window = Math.min(1024, session.contextLength), clock = () => performance.now(), onProgress } = options;
  if (!Number.isInteger(window) || window < 2 || window > session.contextLength) {
    throw new RangeError(`perplexity: window must be 2..${session.contextLength} tokens, got ${window}`);
  }
  const whole = Math.floor(ids.length / window);
  const { windows = Math.max(1, whole) } = options;
  if (!Number.isInteger(windows) || windows < 1) throw new RangeError(`perplexity: windows must be 1 or more, got ${windows}`);
  if (windows > whole) {
    throw new RangeError(`perplexity: text must have at least ${windows * window} tokens for ${windows} window${windows === 1 ? '' : 's'} of ${window}, got ${ids.length}`);
  }
  await session.nll(ids.slice(0, 2)); // opens the graph before the clock starts
  onProgress?.(0, windows);
  const start = clock();
  const nllPerWindow: number[] = [];
  for (let i = 0; i < windows; i++) {
    const nats = await session.nll(ids.slice(i * window, (i + 1) * window));
    nllPerWindow.push(nats.reduce((sum, x) => sum + x, 0) / nats.length);
    onProgress?.(i + 1, windows);
  }
  const seconds = Math.max(clock() - start, 1e-6) / 1000;
  const mean = nllPerWindow.reduce((sum, nll) => sum + nll, 0) / windows;
  return { perplexity: Math.exp(mean), nllPerWindow, tokens: windows * window, window, windows, tokensPerSecond: (windows * window) / seconds };
}
