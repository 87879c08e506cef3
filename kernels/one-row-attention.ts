/**
 * Absorbed latent attention over rows [rope key m | latent c] that lie in one array: one product scores both parts, and
 * queries come out of the same node as the new row. Dimension key as in latent-attention.ts.
 */
import { at } from './at.ts';
import { softmaxOverSegments, sumOver } from './attention.ts';
import type { Dim, Emit } from './emit.ts';
import { maskOf, segmentReaders, type RowStore, type Segmentation } from './segments.ts';
import { ofEachSequence, sideBySide } from './sequences.ts';

/**
 * together: [b, s, h + 1, m + c], queries of h heads, scaled and rotated, and behind them the new row; the row goes into the
 * store. -> sums of latents by the weights [b, s, h, c]. Source: DeepSeek-AI 2024 (V2), section 2.1.2, for the layout.
 */
export function oneRowAttention<V>(g: Emit<V>, together: V, store: RowStore<V>, segmentation: Segmentation<V>, ropeWidth: number): V {
  const [b, s, width] = [at(g.shape(together), 0), at(g.shape(together), 1), numberOf(at(g.shape(together), 3))];
  const { query, row } = queriesAndRow(g, together);
  const sequences = segmentReaders(g, store, row, segmentation);
  const attended = sideBySide(g, ofEachSequence(g, query, sequences.length).map((own, q) => {
    const segments = at(sequences, q);
    const weights = softmaxOverSegments(g, segments.map((rows) => rows.score(own)), segments.map((_, i) => maskOf(segmentation, q * segments.length + i)));
    return sumOver(g, weights.map((weight, i) => at(segments, i).weigh(weight)));
  })); // [b, s, 1, h, m + c]
  const heads = at(g.shape(attended), 3);
  return g.reshape(at(g.split(attended, 4, [ropeWidth, width - ropeWidth]), 1), [b, s, heads, width - ropeWidth]);
}

/**
 * The same from queries that are still to be absorbed: rope [b, s, g, r, m], rotated, and nope [b, s, g, r, n]; the new rows
 * rope [b, s, m] and latent [b, s, c]; up-projections key [g, n, c] and value [g, v, c]. -> [b, s, g, r, v].
 */
export function absorbedOneRowAttention<V>(
  g: Emit<V>, query: { readonly rope: V; readonly nope: V }, rows: { readonly rope: V; readonly latent: V }, up: { readonly key: V; readonly value: V },
  store: RowStore<V>, segmentation: Segmentation<V>, scale: number,
): V {
  const shape = g.shape(query.rope), [b, s] = [at(shape, 0), at(shape, 1)];
  const [groups, perGroup, ropeWidth, rank] = [numberOf(at(shape, 2)), numberOf(at(shape, 3)), numberOf(at(shape, 4)), numberOf(at(g.shape(rows.latent), 2))];
  const heads = groups * perGroup, width = ropeWidth + rank;
  const latent = g.einsum('bsgrn,gnc->bsgrc', g.scale(query.nope, scale), up.key);
  const queries = g.reshape(g.concat(4, [g.scale(query.rope, scale), latent]), [b, s, heads, width]);
  const together = g.concat(2, [queries, g.reshape(g.concat(2, [rows.rope, rows.latent]), [b, s, 1, width])]);
  const attended = g.reshape(oneRowAttention(g, together, store, segmentation, ropeWidth), [b, s, groups, perGroup, rank]);
  return g.einsum('bsgrc,gvc->bsgrv', attended, up.value);
}

/** [b, s, h + 1, m + c] -> queries [b, s, 1, h, m + c] and rows [b, s, m + c]. */
function queriesAndRow<V>(g: Emit<V>, together: V): { query: V; row: V } {
  const [b, s, count, width] = [at(g.shape(together), 0), at(g.shape(together), 1), numberOf(at(g.shape(together), 2)), numberOf(at(g.shape(together), 3))];
  const heads = count - 1;
  // Of one token both lie flat in a row: the new row leaves its node as the cache takes it, and queries are looked at once.
  const parts = s === 1 ? g.split(g.reshape(together, [b, s, count * width]), 2, [heads * width, width]) : g.split(together, 2, [heads, 1]);
  return { query: g.reshape(at(parts, 0), [b, s, 1, heads, width]), row: s === 1 ? at(parts, 1) : g.reshape(at(parts, 1), [b, s, width]) };
}

function numberOf(dim: Dim): number {
  if (typeof dim !== 'number') throw new RangeError(`oneRowAttention: heads and widths must be numbers, got ${dim}`);
  return dim;
}
