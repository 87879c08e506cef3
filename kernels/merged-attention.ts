/**
 * Latent attention whose up-projections are multiplied into the projections around them: queries come out of one matrix
 * in latent coordinates, sums of latents go into the output matrix. The absorbed form with fewer products, and with fewer
 * or more weights as the ranks have it (lib/models/absorption.ts). Dimension key as in latent-attention.ts.
 */
import { at } from './at.ts';
import { latentSegments, type MlaStores, type OneRowStore } from './attention-layer.ts';
import type { Emit } from './emit.ts';
import { attendLatents } from './latent-attention.ts';
import { linear, linearHeads, type Linear } from './linear.ts';
import { oneRowAttention } from './one-row-attention.ts';
import { partialRopeKey } from './partial-rope.ts';
import { rope, type RopeAngles } from './rope.ts';
import type { Segmentation } from './segments.ts';
import { partOfEachSequence, sideBySide } from './sequences.ts';

/** Queries carry the factor on the scores. A part is null where nothing of it is left. */
export interface MergedWeights<V> {
  readonly queryRope: Linear<V> | null; // [h m, d]
  readonly queryLatent: Linear<V> | null; // [h c, d]: key up-projection^T times the queries' remainder
  readonly keyRope: Linear<V> | null; // [m, d]
  readonly down: Linear<V>; // [c, d]
  readonly output: Linear<V>; // [d, h c]: o_proj times the value up-projection
}

/** The same with queries and rows beside each other, for rows that lie in one array. */
export interface OneRowWeights<V> {
  /** [(h + 1)(m + c), d]: of every head its rope query and its latent query, then rope key and latent. */
  readonly rows: Linear<V>;
  readonly output: Linear<V>; // [d, h c]
}

export interface MergedDims {
  readonly heads: number;
  readonly ropeWidth: number;
  readonly rank: number;
}

/** x: [b, s, d] -> output [b, s, d]; new rows go into the stores. */
export function mergedAttentionLayer<V>(
  g: Emit<V>, x: V, w: MergedWeights<V>, angles: RopeAngles<V> | null, segmentation: Segmentation<V>, { heads, ropeWidth, rank }: MergedDims, stores: MlaStores<V>,
): V {
  const [b, s] = [at(g.shape(x), 0), at(g.shape(x), 1)];
  const rotated = w.queryRope === null || angles === null ? null : rope(g, linearHeads(g, x, w.queryRope, [heads], ropeWidth), angles);
  const query = {
    rope: rotated === null ? null : g.reshape(rotated, [b, s, 1, heads, ropeWidth]),
    latent: w.queryLatent === null ? null : linearHeads(g, x, w.queryLatent, [1, heads], rank),
  };
  const rows = { rope: partialRopeKey(g, x, w, angles), latent: linear(g, x, w.down) };
  const sequences = latentSegments(g, stores, rows, segmentation);
  const [ropeQueries, latentQueries] = [partOfEachSequence(g, query.rope, sequences.length), partOfEachSequence(g, query.latent, sequences.length)];
  const attended = sideBySide(g, sequences.map((segments, q) => attendLatents(g, { rope: at(ropeQueries, q), latent: at(latentQueries, q) }, segments))); // [b, s, 1, h, c]
  return linear(g, g.reshape(attended, [b, s, heads * rank]), w.output);
}

/** `mergedAttentionLayer` over rows in one array: one projection and one rotation make queries and the new row. */
export function oneRowAttentionLayer<V>(
  g: Emit<V>, x: V, w: OneRowWeights<V>, angles: RopeAngles<V>, segmentation: Segmentation<V>, { heads, ropeWidth, rank }: MergedDims, { row }: OneRowStore<V>,
): V {
  const [b, s] = [at(g.shape(x), 0), at(g.shape(x), 1)];
  const together = rope(g, linearHeads(g, x, w.rows, [heads + 1], ropeWidth + rank), angles);
  return linear(g, g.reshape(oneRowAttention(g, together, row, segmentation, ropeWidth), [b, s, heads * rank]), w.output);
}
