/**
 * Rows of a cache, and the form in which they lie in memory. Attention asks three things of rows: scores against
 * queries, sums by weights, or the rows themselves; each format answers without widening more than it must.
 * Dimension key as in latent-attention.ts.
 */
import { at } from './at.ts';
import type { CodeBits, Dim, Emit, StorageEmit } from './emit.ts';
import { ofEachSequence } from './sequences.ts';

/** Rows [b, t, n] that all heads share, as attention uses them. */
export interface RowReader<V> {
  /** query [b, s, g, r, n] -> scores [b, g, r, s, t]. */
  score(query: V): V;
  /** weights [b, g, r, s, t] -> sums [b, s, g, r, n]. */
  weigh(weights: V): V;
  /** The rows in float32: [b, t, n]. */
  widen(): V;
  /** Products with the rows cut in `groups` equal pieces [b, t, l, n / l], piece i by the i-th g / l KV heads. */
  cut(groups: number): RowPieces<V>;
  /** Where pieces of the rows lie in arrays of their own (pieced-rows.ts): each as rows by themselves. */
  readonly pieces?: readonly RowReader<V>[];
}

export interface RowPieces<V> {
  /** query [b, s, l, g / l, r, n / l] -> scores [b, l, g / l, r, s, t]. */
  score(query: V): V;
  /** weights [b, l, g / l, r, s, t] -> sums [b, s, l, g / l, r, n / l]. */
  weigh(weights: V): V;
}

const SCORE = 'bsgrc,btc->bgrst';
const WEIGH = 'bgrst,btc->bsgrc';
const SCORE_PIECES = 'bslgrc,btlc->blgrst';
const WEIGH_PIECES = 'blgrst,btlc->bslgrc';

/** [b, t, n] -> [b, t, l, n / l]. */
function cutRows<V>(g: Emit<V>, rows: V, groups: number): V {
  const [b, t, n] = [at(g.shape(rows), 0), at(g.shape(rows), 1), numberOf(at(g.shape(rows), 2))];
  return g.reshape(rows, [b, t, groups, n / groups]);
}

/** Rows that are plain values. */
export const plainRows = <V>(g: Emit<V>, rows: V): RowReader<V> => ({
  score: (query) => g.einsum(SCORE, query, rows),
  weigh: (weights) => g.einsum(WEIGH, weights, rows),
  widen: () => rows,
  cut: (groups) => ({
    score: (query) => g.einsum(SCORE_PIECES, query, cutRows(g, rows, groups)),
    weigh: (weights) => g.einsum(WEIGH_PIECES, weights, cutRows(g, rows, groups)),
  }),
});

/** Rows cut in `groups` equal pieces, each read by its own group of KV heads: query [b, s, g, r, n / groups] and sums of that width. */
export function groupedRows<V>(g: Emit<V>, reader: RowReader<V>, groups: number): RowReader<V> {
  if (groups === 1) return reader;
  const pieces = reader.cut(groups);
  return {
    widen: reader.widen, cut: reader.cut,
    score(query) {
      const [b, s, heads, r, width] = fiveOf(g.shape(query));
      const scores = pieces.score(g.reshape(query, [b, s, groups, numberOf(heads) / groups, r, width]));
      return g.reshape(scores, [b, heads, r, s, at(g.shape(scores), 5)]);
    },
    weigh(weights) {
      const [b, heads, r, s, t] = fiveOf(g.shape(weights));
      const sums = pieces.weigh(g.reshape(weights, [b, groups, numberOf(heads) / groups, r, s, t]));
      return g.reshape(sums, [b, s, heads, r, at(g.shape(sums), 5)]);
    },
  };
}

/** The parts of rows that lie side by side, of the given widths: cut out of the widened rows when first asked for. */
export function partsOfRows<V>(g: Emit<V>, rows: RowReader<V>, widths: readonly number[]): RowReader<V>[] {
  let parts: readonly V[] | null = null;
  return widths.map((_, i) => {
    const part = (): V => at((parts ??= g.split(rows.widen(), 2, widths)), i);
    return {
      score: (query) => plainRows(g, part()).score(query), weigh: (weights) => plainRows(g, part()).weigh(weights),
      widen: part, cut: (groups) => plainRows(g, part()).cut(groups),
    };
  });
}

/** Keys or values of every KV head from latents [b, t, c] and an up-projection [g, n, c / groups]: [b, t, g, n]. */
export function expandLatent<V>(g: Emit<V>, latent: V, up: V, groups: number): V {
  if (groups === 1) return g.einsum('btc,gnc->btgn', latent, up);
  const [b, t] = [at(g.shape(latent), 0), at(g.shape(latent), 1)];
  const [heads, n, width] = [numberOf(at(g.shape(up), 0)), at(g.shape(up), 1), at(g.shape(up), 2)];
  const rebuilt = g.einsum('btlc,lgnc->btlgn', g.reshape(latent, [b, t, groups, width]), g.reshape(up, [groups, heads / groups, n, width]));
  return g.reshape(rebuilt, [b, t, heads, n]);
}

function numberOf(dim: Dim): number {
  if (typeof dim !== 'number') throw new RangeError(`groupedRows: heads and widths must be numbers, got ${dim}`);
  return dim;
}

const fiveOf = (shape: readonly Dim[]): [Dim, Dim, Dim, Dim, Dim] => [at(shape, 0), at(shape, 1), at(shape, 2), at(shape, 3), at(shape, 4)];

/** Rows as they are stored; int8 and int4 have one step per token: the largest magnitude over 127 or 8. */
export type StoredRows<V> =
  | { readonly format: 'float32' | 'float16'; readonly values: V } // [b, t, ...row]
  | { readonly format: 'int8' | 'int4'; readonly bytes: V; readonly step: V }; // [b, t, n] or [b, t, n/2], [b, t, 1]
export type RowFormat = StoredRows<never>['format'];

const bitsOf = (format: 'int8' | 'int4'): CodeBits => (format === 'int8' ? 8 : 4);

/** Rows [b, t, ...row] brought into a format. */
export function storeRows<V>(g: StorageEmit<V>, rows: V, format: RowFormat): StoredRows<V> {
  if (format === 'float32') return { format, values: rows };
  if (format === 'float16') return { format, values: g.cast(rows, 'float16') };
  const step = g.shift(g.scale(g.maxAbs(rows), 1 / (format === 'int8' ? 127 : 8)), 1e-30);
  return { format, step, bytes: g.encode(rows, step, bitsOf(format)) };
}

/** The rows of each sequence (sequences.ts), as they are stored: what is stored once is cut and not made n times. */
export function storedOfEachSequence<V>(g: Emit<V>, rows: StoredRows<V>, sequences: number): StoredRows<V>[] {
  if ('values' in rows) return ofEachSequence(g, rows.values, sequences).map((values) => ({ ...rows, values }));
  const steps = ofEachSequence(g, rows.step, sequences);
  return ofEachSequence(g, rows.bytes, sequences).map((bytes, i) => ({ ...rows, bytes, step: at(steps, i) }));
}

/** Stored rows in float32: [b, t, ...row]. */
export function widenRows<V>(g: StorageEmit<V>, rows: StoredRows<V>): V {
  return 'values' in rows ? g.cast(rows.values, 'float32') : g.mul(g.decode(rows.bytes, bitsOf(rows.format)), rows.step);
}

/** Stored rows as attention uses them; products with codes run in whole numbers where the reading can. */
export function storedRows<V>(g: StorageEmit<V>, rows: StoredRows<V>): RowReader<V> {
  if ('values' in rows) return plainRows(g, widenRows(g, rows));
  const { bytes, step, format } = rows;
  const bits = bitsOf(format);
  /** [b, 1, ..., t], as long as scores are. */
  const perKey = (axes: number): V => g.reshape(step, [at(g.shape(step), 0), ...Array<number>(axes - 2).fill(1), at(g.shape(step), 1)]);
  return {
    score: (query) => g.mul(g.einsumCodes(SCORE, query, bytes, bits), perKey(5)),
    weigh: (weights) => g.weighCodes(WEIGH, g.mul(weights, perKey(5)), bytes, bits),
    widen: () => widenRows(g, rows),
    // Two 4-bit codes of one byte lie half a row apart, in different pieces: those rows are widened first.
    cut: (groups) => (bits === 4 ? plainRows(g, widenRows(g, rows)).cut(groups) : {
      score: (query) => g.mul(g.einsumCodes(SCORE_PIECES, query, cutRows(g, bytes, groups), bits), perKey(6)),
      weigh: (weights) => g.weighCodes(WEIGH_PIECES, g.mul(weights, perKey(6)), cutRows(g, bytes, groups), bits),
    }),
  };
}
