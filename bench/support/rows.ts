/** What a case reports: rows of numbers with names, from which the table and the JSON are both made. */

/** The same on every machine; a change is a change of the code. */
export const exactNames = ['nodes', 'weightBytes', 'cacheBytesPerToken', 'flops', 'bytes'] as const;
export type ExactName = (typeof exactNames)[number];

/** True of one run on one machine; see the column heads. `timesSource` above 1: faster than the source. */
export const measuredNames = ['medianMs', 'minMs', 'gflopsPerSecond', 'ofGemm', 'gigabytesPerSecond', 'ofRead', 'floorMs', 'timesSource', 'tokensPerSecond', 'peakMb', 'error'] as const;
export type MeasuredName = (typeof measuredNames)[number];

export interface Row {
  /** What was measured: unique within a case, the same in every run. */
  readonly what: string;
  readonly exact: Readonly<Partial<Record<ExactName, number>>>;
  readonly measured: Readonly<Partial<Record<MeasuredName, number>>>;
}

interface Column {
  readonly head: string;
  readonly text: (value: number) => string;
}

const fixed = (digits: number) => (value: number): string => value.toFixed(digits);
/** Three significant digits, never as a power of ten. */
const three = (value: number): string => (value === 0 ? '0' : value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))))));
const percent = (value: number): string => `${(100 * value).toFixed(0)} %`;

const columns: Readonly<Record<ExactName | MeasuredName, Column>> = {
  nodes: { head: 'nodes', text: fixed(0) },
  weightBytes: { head: 'weights, MB', text: (bytes) => three(bytes / 1e6) },
  cacheBytesPerToken: { head: 'cache, B/token', text: fixed(0) },
  flops: { head: 'GFLOP', text: (count) => three(count / 1e9) },
  bytes: { head: 'MB touched', text: (bytes) => three(bytes / 1e6) },
  medianMs: { head: 'ms', text: three },
  minMs: { head: 'least ms', text: three },
  gflopsPerSecond: { head: 'GFLOP/s', text: three },
  ofGemm: { head: 'of GEMM', text: percent },
  gigabytesPerSecond: { head: 'GB/s', text: three },
  ofRead: { head: 'of read', text: percent },
  floorMs: { head: 'floor, ms', text: three },
  timesSource: { head: 'x source', text: fixed(2) },
  tokensPerSecond: { head: 'tokens/s', text: three },
  peakMb: { head: 'peak, MB', text: fixed(0) },
  error: { head: 'error', text: fixed(4) },
};

/** Head and cells of a table: the names that some row has, in their own order. */
export function tableOf(rows: readonly Row[]): { readonly head: readonly string[]; readonly cells: readonly (readonly string[])[] } {
  const exact = exactNames.filter((name) => rows.some((row) => row.exact[name] !== undefined));
  const measured = measuredNames.filter((name) => rows.some((row) => row.measured[name] !== undefined));
  const cell = (name: ExactName | MeasuredName, value: number | undefined): string => (value === undefined ? '' : columns[name].text(value));
  return {
    head: ['', ...[...exact, ...measured].map((name) => columns[name].head)],
    cells: rows.map((row) => [row.what, ...exact.map((name) => cell(name, row.exact[name])), ...measured.map((name) => cell(name, row.measured[name]))]),
  };
}
