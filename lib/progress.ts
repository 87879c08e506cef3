/** A progress line for people, on stderr. The only importer of cli-progress. */
import { Presets, SingleBar } from 'cli-progress';

export interface Progress {
  /** Amount done so far, of `total`. */
  update(done: number): void;
  stop(): void;
}

export interface ProgressOptions {
  /** Where the line goes; default stderr. */
  readonly stream?: (NodeJS.WritableStream & { readonly isTTY?: boolean | undefined }) | undefined;
  /** Milliseconds; default Date.now. */
  readonly clock?: (() => number) | undefined;
}

/** Between two lines when nobody watches a terminal. */
const LINE_EVERY_MS = 5000;

const percent = (done: number, total: number): string => `${Math.floor(total > 0 ? (100 * done) / total : 100)}%`;

/** Bytes are told in MB of 10^6, other units as they are. */
const amount = (value: number, unit: string): string => (unit === 'bytes' ? (value / 1e6).toFixed(1) : String(value));
const shownUnit = (unit: string): string => (unit === 'bytes' ? 'MB' : unit);

function lines(label: string, total: number, unit: string, stream: NodeJS.WritableStream, clock: () => number): Progress {
  let last = clock();
  return {
    update(done) {
      if (clock() - last < LINE_EVERY_MS) return;
      last = clock();
      stream.write(`${label}: ${percent(done, total)}, ${amount(done, unit)} of ${amount(total, unit)} ${shownUnit(unit)}\n`);
    },
    stop() {},
  };
}

/**
 * Starts a progress display for `total` of a unit ("bytes", "layers", ...). On a terminal a bar that is redrawn and goes
 * away at stop(); elsewhere one line at most every five seconds. Standard output is never written.
 */
export function startProgress(label: string, total: number, unit: string, options: ProgressOptions = {}): Progress {
  const stream = options.stream ?? process.stderr;
  if (stream.isTTY !== true) return lines(label, total, unit, stream, options.clock ?? Date.now);
  const bar = new SingleBar(
    {
      stream,
      format: `${label} {bar} {percentage}% {shown} ${shownUnit(unit)}, {eta_formatted} left`,
      hideCursor: true,
      clearOnComplete: true,
      etaBuffer: 50,
    },
    Presets.shades_classic,
  );
  const shown = (done: number): { shown: string } => ({ shown: `${amount(done, unit)}/${amount(total, unit)}` });
  bar.start(total, 0, shown(0));
  return {
    update: (done) => bar.update(done, shown(done)),
    stop: () => bar.stop(),
  };
}
