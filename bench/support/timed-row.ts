/** A row of figures that follow from a time and from the work done in it. */
import { floorMs as leastMs, type Ceiling } from './ceiling.ts';
import type { Row } from './rows.ts';
import type { Times } from './turns.ts';

export interface TimedWork {
  readonly what: string;
  readonly flops: number;
  readonly bytes: number;
  readonly times: Times | undefined;
  /** Times of the source in the same run; absent for the source itself. */
  readonly source?: Times | undefined;
  /** Default: the larger of what its operations and its bytes take. */
  readonly floorMs?: number;
}

/** Work done counts as exact, with `exact` besides; rates, floor and gain as measured, with `measured` besides. */
export function timedRow({ what, flops, bytes, times, source, floorMs }: TimedWork, ceiling: Ceiling, exact: Row['exact'] = {}, measured: Row['measured'] = {}): Row {
  const { medianMs, minMs } = times ?? { medianMs: NaN, minMs: NaN };
  const [gflopsPerSecond, gigabytesPerSecond] = [flops / medianMs / 1e6, bytes / medianMs / 1e6];
  return {
    what,
    exact: { ...exact, ...(flops === 0 ? {} : { flops }), bytes },
    measured: {
      medianMs, minMs, ...(flops === 0 ? {} : { gflopsPerSecond, ofGemm: gflopsPerSecond / ceiling.gemm }), gigabytesPerSecond, ofRead: gigabytesPerSecond / ceiling.read,
      floorMs: floorMs ?? leastMs(flops, bytes, ceiling), ...(source === undefined ? {} : { timesSource: source.medianMs / medianMs }), ...measured,
    },
  };
}

/** The times of one run of something that takes too long to repeat. */
export const once = (ms: number): Times => ({ medianMs: ms, minMs: ms, runs: 1 });
