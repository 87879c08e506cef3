/**
 * Attention over segments of keys. Dimension key: b batch, s query tokens, t key tokens of one segment, g KV heads,
 * r query heads per KV head, k key width, v value width.
 *
 * Keys come in segments because a decoder keeps old rows in a cache it must not copy: past rows are one segment,
 * the rows of the current tokens another, and their scores meet in one softmax.
 */
import { at } from './at.ts';
import type { Dim, Emit } from './emit.ts';

/** softmax over all segments at once. scores: each [b, g, r, s, t_i], with its mask (what broadcasts to it) or null. */
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
  readonly mask: V | null; // [s, t], or what broadcasts to scores
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

/** Elements from..to-1 of one axis, whose length must be a number. */
export function between<V>(g: Emit<V>, a: V, axis: number, from: number, to: number): V {
  const length = at(g.shape(a), axis);
  if (typeof length !== 'number') throw new RangeError(`between: the length of axis ${axis} must be known when recorded, got ${length}`);
  return at(g.split(a, axis, [from, to - from, length - to]), 1);
}

/**
 * Attention over tokens that see only themselves and earlier ones, `block` queries at a time: `attend` gives those of
 * from..to-1 [b, to - from, ...] against the keys 0..to-1. Scores behind a block's end are never computed.
 */
export function inBlocks<V>(g: Emit<V>, tokens: Dim, block: number, attend: (from: number, to: number) => V): V {
  if (typeof tokens !== 'number') throw new RangeError(`inBlocks: the number of tokens must be known when recorded, got ${tokens}`);
  const starts = Array.from({ length: Math.ceil(tokens / block) }, (_, i) => i * block);
  return g.concat(1, starts.map((from) => attend(from, Math.min(tokens, from + block))));
}

/** The part of a mask [s, s] that queries from..to-1 have of keys 0..to-1. */
export const maskBetween = <V>(g: Emit<V>, mask: V | null, from: number, to: number): V | null =>
  (mask === null ? null : between(g, between(g, mask, 0, from, to), 1, 0, to));

/** `groupedQueryAttention` in blocks: query [b, s, g, r, k], key and value [b, s, g, k], mask [s, s], s a number. */
export function blockwiseAttention<V>(g: Emit<V>, query: V, { key, value, mask }: KeyValueSegment<V>, scale: number, block: number): V {
  return inBlocks(g, at(g.shape(query), 1), block, (from, to) => groupedQueryAttention(
    g, between(g, query, 1, from, to), [{ key: between(g, key, 1, 0, to), value: between(g, value, 1, 0, to), mask: maskBetween(g, mask, from, to) }], scale,
  ));
}
