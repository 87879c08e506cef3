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

/**
 * The same over tokens that see only themselves and earlier ones, in blocks: query [b, s, g, r, k], key and value
 * [b, s, g, k], mask [s, s], s a number. Scores behind a block's end are never computed.
 */
export function blockwiseAttention<V>(g: Emit<V>, query: V, { key, value, mask }: KeyValueSegment<V>, scale: number, block: number): V {
  const tokens = at(g.shape(query), 1);
  if (typeof tokens !== 'number') throw new RangeError(`blockwiseAttention: the number of tokens must be known when recorded, got ${tokens}`);
  const rows = (a: V, axis: number, from: number, to: number): V => at(g.split(a, axis, [from, to - from, tokens - to]), 1);
  const starts = Array.from({ length: Math.ceil(tokens / block) }, (_, i) => i * block);
  return g.concat(1, starts.map((from) => {
    const to = Math.min(tokens, from + block);
    const seen = mask === null ? null : rows(rows(mask, 0, from, to), 1, 0, to);
    return groupedQueryAttention(g, rows(query, 1, from, to), [{ key: rows(key, 1, 0, to), value: rows(value, 1, 0, to), mask: seen }], scale);
  }));
}
