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
  /**
   * [h m, d]; or [h m / g, d], the elements of a head's own KV head only, where every KV head has as many components, all
   * behind each other in the order of the KV heads.
   */
  readonly queryRope: Linear<V> | null;
  readonly queryNope: Linear<V> | null; // [h n, d]
  readonly keyRope: Linear<V> | null; // [m, d], one rope key for all heads
}

export interface PartialRopeDims {
  readonly heads: number;
  readonly kvHeads: number;
  readonly ropeWidth: number;
  readonly nopeWidth: number;
}

/** The two parts of queries or keys; which axes they have is said where they are used. */
export interface SplitHeads<V> {
  readonly rope: V | null;
  readonly nope: V | null;
}

/**
 * x: [b, s, d] -> queries per head, rotated and not: [b, s, g, r, m] and [b, s, g, r, n].
 * `before` is what happens to rope [b, s, h, m] and nope [b, s, g, r, n] before the rotation; default nothing.
 */
export function partialRopeQuery<V>(
  g: Emit<V>, x: V, w: PartialRopeWeights<V>, angles: RopeAngles<V> | null, dims: PartialRopeDims,
  before: (parts: SplitHeads<V>) => SplitHeads<V> = (parts) => parts,
): SplitHeads<V> {
  const { heads, kvHeads, ropeWidth, nopeWidth } = dims;
  const groups = [kvHeads, heads / kvHeads];
  const parts = before({
    nope: w.queryNope === null ? null : linearHeads(g, x, w.queryNope, groups, nopeWidth),
    rope: w.queryRope === null ? null : ropeQuery(g, x, w.queryRope, dims),
  });
  if (parts.rope === null || angles === null) return { rope: null, nope: parts.nope };
  const rotated = rope(g, parts.rope, angles); // [b, s, h, m]
  const [b, s] = [at(g.shape(x), 0), at(g.shape(x), 1)];
  return { rope: g.reshape(rotated, [b, s, ...groups, ropeWidth]), nope: parts.nope };
}

/** Rotating elements of every head before RoPE: [b, s, h, m], zero at those of other KV heads where only its own are projected. */
function ropeQuery<V>(g: Emit<V>, x: V, projection: Linear<V>, { heads, kvHeads, ropeWidth }: PartialRopeDims): V {
  if (at(g.shape(projection.weight), 0) === heads * ropeWidth) return linearHeads(g, x, projection, [heads], ropeWidth);
  const own = linearHeads(g, x, projection, [kvHeads, heads / kvHeads, 2], ropeWidth / 2 / kvHeads); // [b, s, g, r, real or imaginary, e]
  const identity = Float32Array.from({ length: kvHeads ** 2 }, (_, i) => (i % (kvHeads + 1) === 0 ? 1 : 0));
  const spread = g.einsum('bsgrxe,gk->bsgrxke', own, g.constant({ dtype: 'float32', shape: [kvHeads, kvHeads], data: identity }));
  return g.reshape(spread, [at(g.shape(x), 0), at(g.shape(x), 1), heads, ropeWidth]);
}

/** x: [b, s, d] -> the rotated rope key shared by all heads: [b, s, m], or null where nothing rotates. */
export function partialRopeKey<V>(g: Emit<V>, x: V, w: Pick<PartialRopeWeights<V>, 'keyRope'>, angles: RopeAngles<V> | null): V | null {
  return w.keyRope === null || angles === null ? null : rotatedKey(g, linear(g, x, w.keyRope), angles);
}

/** The rope key before -> after RoPE: [b, s, m]. */
export function rotatedKey<V>(g: Emit<V>, key: V, angles: RopeAngles<V>): V {
  const [b, s, m] = [at(g.shape(key), 0), at(g.shape(key), 1), at(g.shape(key), 2)];
  return g.reshape(rope(g, g.reshape(key, [b, s, 1, m]), angles), [b, s, m]);
}
