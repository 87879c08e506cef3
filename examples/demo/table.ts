import type { Cost, Quality } from './measure.ts';

export interface Measured extends Quality {
  /** Null where it is that of the column before. */
  readonly cost: Cost | null;
}

const rounded = (value: number): string => (value >= 100 ? Math.round(value).toLocaleString('en') : value.toPrecision(3));

/** Figures of models side by side, by the name of each column. */
export function tableOf(columns: Readonly<Record<string, Measured>>): string {
  const measured = Object.values(columns);
  const first = measured[0];
  const row = (name: string, of: (model: Measured) => number | undefined): string[] =>
    [name, ...measured.map((model) => { const value = of(model); return value === undefined ? 'the same' : rounded(value); })];
  const rows = [
    ['', ...Object.keys(columns)],
    row('cache, bytes per token', ({ cost }) => cost?.cacheBytesPerToken),
    row(`perplexity (${first?.windows} x ${first?.window} tokens)`, ({ perplexity }) => perplexity),
    ...[...(first?.cost?.decodeTokensPerSecond.keys() ?? [])].map((context) => row(`decode at ${context.toLocaleString('en')} tokens of context, tokens/s`, ({ cost }) => cost?.decodeTokensPerSecond.get(context))),
    row('prefill, tokens/s', ({ cost }) => cost?.prefillTokensPerSecond),
    row('weights on disk, MB (converted: float32)', ({ cost }) => (cost === null ? undefined : cost.weightBytes / 1e6)),
  ];
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((cells) => (cells[column] ?? '').length))) ?? [];
  return rows.map((cells) => cells.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join('  ')).join('\n');
}
