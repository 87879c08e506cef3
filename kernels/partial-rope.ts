/**
 * Queries and keys split in a part that still rotates and a remainder that does not (NoPE). Dimension key: d hidden,
 * h query heads, g KV heads, r = h / g, m = 2 x rotating components, n NoPE width of a head.
 */
import { at } from './at.ts';
import type { Emit } from './emit.ts';
import { linear, linearHeads, type Linear } from './linear.ts';
import { rope, type RopeAngles } from './rope.ts';

/** A part is null where nothing of it is left: all pairs rotate, or none does. */
export interface PartialRopeWeights<V> {
  readonly queryRope: Linear<V> | null; // [h m, d]
  readonly queryNope: Linear<V> | null; // [h n, d]
  readonly keyRope: Linear<V> | null; // [m, d], one rope key for all heads
}

export interface PartialRopeDims {
  readonly heads: number;
  readonly kvHeads: number;
  readonly ropeWidth: number;
  readonly nopeWidth: number;
}

/** x: [b, s, d] -> queries per head, rotated and not: [b, s, g, r, m] and [b, s, g, r, n]. */
export function partialRopeQuery<V>(
  g: Emit<V>, x: V, w: PartialRopeWeights<V>, angles: RopeAngles<V> | null, dims: PartialRopeDims,
): { rope: V | null; nope: V | null } {
  const { heads, kvHeads, ropeWidth, nopeWidth } = dims;
  const groups = [kvHeads, heads / kvHeads];
  const nope = w.queryNope === null ? null : linearHeads(g, x, w.queryNope, groups, nopeWidth);
  if (w.queryRope === null || angles === null) return { rope: null, nope };
  const rotated = rope(g, linearHeads(g, x, w.queryRope, [heads], ropeWidth), angles); // [b, s, h, m]
  const [b, s] = [at(g.shape(x), 0), at(g.shape(x), 1)];
  return { rope: g.reshape(rotated, [b, s, ...groups, ropeWidth]), nope };
}

/** x: [b, s, d] -> the rotated rope key shared by all heads: [b, s, m], or null where nothing rotates. */
export function partialRopeKey<V>(g: Emit<V>, x: V, w: PartialRopeWeights<V>, angles: RopeAngles<V> | null): V | null {
  if (w.keyRope === null || angles === null) return null;
  const flat = linear(g, x, w.keyRope); // [b, s, m]
  const [b, s, m] = [at(g.shape(flat), 0), at(g.shape(flat), 1), at(g.shape(flat), 2)];
  return g.reshape(rope(g, g.reshape(flat, [b, s, 1, m]), angles), [b, s, m]);
}
