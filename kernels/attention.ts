/**
 * Attention over segments of keys. Dimension key: b batch, s query tokens, t key tokens of one segment, g KV heads,
 * r query heads per KV head, k key width, v value width.
 *
 * Keys come in segments because a decoder keeps old rows in a cache it must not copy: past rows are one segment,
 * the rows of the current tokens another, and their scores meet in one softmax.
 */
import { at } from './at.ts';
import type { Dim, Emit } from './emit.ts';

/** softmax over all segments at once. scores: each [b, g, r, s, t_i], with its mask [s, t_i] or null. */
export function softmaxOverSegments<V>(g: Emit<V>, scores: readonly V[], masks: readonly (V | null)[]): V[] {
  const masked = scores.map((score, i) => {
    const mask = masks[i] ?? null;
    return mask === null ? score : g.add(score, mask);
  });
  const [only] = masked;
  if (masked.length === 1 && only !== undefined) return [g.softmax(only)];
  const axis = 4;
  const lengths = masked.map((score): Dim => g.shape(score)[axis] ?? 0);
  return g.split(g.softmax(g.concat(axis, masked)), axis, lengths);
}

/** Sum of one term per segment. */
export function sumOver<V>(g: Emit<V>, terms: readonly V[]): V {
  const [first, ...rest] = terms;
  if (first === undefined) throw new RangeError('sumOver: attention needs at least one segment of keys, got none');
  return rest.reduce((total, term) => g.add(total, term), first);
}

export interface KeyValueSegment<V> {
  readonly key: V; // [b, t, g, k], rotated
  readonly value: V; // [b, t, g, v]
  readonly mask: V | null; // [s, t]
}

/**
 * Grouped-query attention, the starting point of surgery: o = softmax(scale q k^T + mask) v.
 * query: [b, s, g, r, k], rotated -> [b, s, g, r, v]. MHA is r = 1, MQA is g = 1.
 * Source: Ainslie et al. 2023.
 */
export function groupedQueryAttention<V>(g: Emit<V>, query: V, segments: readonly KeyValueSegment<V>[], scale: number): V {
  const q = g.scale(query, scale);
  const scores = segments.map(({ key }) => g.einsum('bsgrk,btgk->bgrst', q, key));
  const weights = softmaxOverSegments(g, scores, segments.map(({ mask }) => mask));
  return sumOver(g, weights.map((weight, i) => g.einsum('bgrst,btgv->bsgrv', weight, at(segments, i).value)));
}
