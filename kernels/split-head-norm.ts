/**
 * RMSNorm per head where heads are split in rotating elements and a remainder. The norm divides a whole head by one number,
 * which RoPE and the split leave alone: queries are divided at once; of keys only that number has to be cached beside the
 * latent, one per KV head, because it is no linear function of the latent. Dimension key as in partial-rope.ts, and:
 * e = m / 2g rotating pairs of each KV head, whose components lie behind each other in the order of the KV heads.
 */
import { at } from './at.ts';
import type { Emit } from './emit.ts';
import type { PartialRopeDims, SplitHeads } from './partial-rope.ts';

export interface SplitHeadNorm<V> {
  /** The norm's weight at the head element of each rotating element; null where nothing rotates. */
  readonly queryRope: V | null; // [m]
  readonly keyRope: V | null; // [m]
  /** Query weight times key weight at the elements of the remainder, all applied to queries; null where none is left. */
  readonly nope: V | null; // [g, n]
  readonly eps: number;
  /** Elements of a head, which the mean is taken over. */
  readonly headWidth: number;
}

/** 1 / sqrt(sum of squares / head width + eps). */
function inverseRms<V>(g: Emit<V>, squares: readonly V[], { headWidth, eps }: SplitHeadNorm<V>): V {
  const [first, ...rest] = squares;
  if (first === undefined) throw new RangeError('splitHeadNorm: a head must have at least one element, got none');
  const total = rest.reduce((sum, part) => g.add(sum, part), first);
  const one = g.constant({ dtype: 'float32', shape: [1], data: Float32Array.of(1) });
  return g.div(one, g.sqrt(g.shift(g.scale(total, 1 / headWidth), eps)));
}

/** Queries before RoPE, rope [b, s, h, m] (zero outside the slots of the head's group) and nope [b, s, g, r, n] -> normed. */
export function normedQueries<V>(g: Emit<V>, { rope, nope }: SplitHeads<V>, norm: SplitHeadNorm<V>, dims: PartialRopeDims): SplitHeads<V> {
  const { heads, kvHeads, nopeWidth } = dims;
  const some = rope ?? nope;
  if (some === null) return { rope, nope };
  const [b, s] = [at(g.shape(some), 0), at(g.shape(some), 1)];
  const squares = [rope, nope].flatMap((part) => (part === null ? [] : [g.reshape(g.sum(g.square(part)), [b, s, heads, 1])]));
  const inverse = inverseRms(g, squares, norm); // [b, s, h, 1]
  const grouped = g.reshape(inverse, [b, s, kvHeads, heads / kvHeads, 1]);
  return {
    rope: rope === null || norm.queryRope === null ? null : g.mul(g.mul(rope, inverse), norm.queryRope),
    nope: nope === null || norm.nope === null ? null : g.mul(g.mul(nope, grouped), g.reshape(norm.nope, [kvHeads, 1, nopeWidth])),
  };
}

/** Keys before RoPE, rope [b, s, m] and nope [b, s, g, n] -> what divides each KV head: [b, s, g]. */
export function keyScales<V>(g: Emit<V>, { rope, nope }: SplitHeads<V>, norm: SplitHeadNorm<V>, dims: PartialRopeDims): V {
  const slots = rope === null ? [] : [g.einsum('bsxge->bsg', g.square(slotsOfHeads(g, rope, dims)))];
  const rest = nope === null ? [] : [g.einsum('bsgn->bsg', g.square(nope))];
  return inverseRms(g, [...slots, ...rest], norm);
}

/** Rotating key elements before RoPE [b, s, m] times their head's scale [b, s, g] and the norm's weight. */
export function normedRopeKey<V>(g: Emit<V>, rope: V, scales: V, norm: SplitHeadNorm<V>, dims: PartialRopeDims): V {
  const [b, s] = [at(g.shape(rope), 0), at(g.shape(rope), 1)];
  const scaled = g.mul(slotsOfHeads(g, rope, dims), g.reshape(scales, [b, s, 1, dims.kvHeads, 1]));
  const flat = g.reshape(scaled, [b, s, dims.ropeWidth]);
  return norm.keyRope === null ? flat : g.mul(flat, norm.keyRope);
}

/** [b, s, m] -> [b, s, real or imaginary, g, e]. */
function slotsOfHeads<V>(g: Emit<V>, rope: V, { kvHeads, ropeWidth }: PartialRopeDims): V {
  return g.reshape(rope, [at(g.shape(rope), 0), at(g.shape(rope), 1), 2, kvHeads, ropeWidth / 2 / kvHeads]);
}
