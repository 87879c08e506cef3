/** Whole attention layers, from the normed hidden state to the residual's increment, with the rows that a cache keeps. */
import { at } from './at.ts';
import { groupedQueryAttention } from './attention.ts';
import type { Dim, Emit } from './emit.ts';
import { asTheyAre, type HeadMaps } from './head-norm.ts';
import { absorbedAttention, expandedAttention, type UpProjections } from './latent-attention.ts';
import { linear, linearHeads, type Linear } from './linear.ts';
import { partialRopeKey, partialRopeQuery, type PartialRopeDims, type PartialRopeWeights } from './partial-rope.ts';
import { rope, type RopeAngles } from './rope.ts';
import { maskOf, segmentRows, type Segmentation } from './segments.ts';

export interface AttentionDims {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Factor on the scores before softmax. */
  readonly scale: number;
}

export interface SourceWeights<V> {
  readonly query: Linear<V>; // [h k, d]
  readonly key: Linear<V>; // [g k, d]
  readonly value: Linear<V>; // [g k, d]
  readonly output: Linear<V>; // [d, h k]
}

export interface SourceRows<V> {
  readonly key: V; // [b, t, g, k], rotated
  readonly value: V; // [b, t, g, k]
}

/**
 * The source model's attention. x: [b, s, d] -> output [b, s, d], what o_proj reads [b, s, h k], the rotated queries
 * [b, s, h, k] and the current tokens' cache rows.
 * `before` is what happens to query and key heads before they rotate (Qwen3: `headNorms`).
 */
export function sourceAttentionLayer<V>(
  g: Emit<V>, x: V, w: SourceWeights<V>, angles: RopeAngles<V>, past: SourceRows<V> | null, segmentation: Segmentation<V>, dims: AttentionDims,
  before: HeadMaps<V> = asTheyAre,
): { output: V; attended: V; query: V; rows: SourceRows<V> } {
  const { heads, kvHeads, headDim } = dims;
  const query = rope(g, before.query(linearHeads(g, x, w.query, [heads], headDim)), angles);
  const rows = {
    key: rope(g, before.key(linearHeads(g, x, w.key, [kvHeads], headDim)), angles),
    value: linearHeads(g, x, w.value, [kvHeads], headDim),
  };
  const [b, s] = batchAndTokens(g, x);
  const values = segmentRows(g, past?.value ?? null, rows.value, segmentation);
  const segments = segmentRows(g, past?.key ?? null, rows.key, segmentation)
    .map((key, i) => ({ key, value: at(values, i), mask: maskOf(segmentation, i) }));
  const grouped = g.reshape(query, [b, s, kvHeads, heads / kvHeads, headDim]);
  const attended = g.reshape(groupedQueryAttention(g, grouped, segments, dims.scale), [b, s, heads * headDim]);
  return { output: linear(g, attended, w.output), attended, query, rows };
}

export interface MlaWeights<V> extends PartialRopeWeights<V> {
  readonly down: Linear<V>; // [c, d]
  readonly up: UpProjections<V>;
  readonly output: Linear<V>; // [d, h v]
}

export interface MlaRows<V> {
  readonly rope: V | null; // [b, t, m], rotated
  readonly latent: V; // [b, t, c]
}

export interface MlaDims extends PartialRopeDims {
  readonly valueWidth: number;
  readonly scale: number;
}

/** The two spellings of latent attention, by name. */
export const latentForms = { expanded: expandedAttention, absorbed: absorbedAttention } as const;
export type LatentForm = keyof typeof latentForms;

/** Latent attention in either form. x: [b, s, d] -> output [b, s, d], what o_proj reads, and the current tokens' cache rows. */
export function mlaAttentionLayer<V>(
  g: Emit<V>, x: V, w: MlaWeights<V>, angles: RopeAngles<V> | null, past: MlaRows<V> | null, segmentation: Segmentation<V>, dims: MlaDims, form: LatentForm,
): { output: V; attended: V; rows: MlaRows<V> } {
  const query = partialRopeQuery(g, x, w, angles, dims);
  const rows = { rope: partialRopeKey(g, x, w, angles), latent: linear(g, x, w.down) };
  const ropeKeys = rows.rope === null ? null : segmentRows(g, past?.rope ?? null, rows.rope, segmentation);
  const segments = segmentRows(g, past?.latent ?? null, rows.latent, segmentation)
    .map((latent, i) => ({ ropeKey: ropeKeys === null ? null : at(ropeKeys, i), latent, mask: maskOf(segmentation, i) }));
  const [b, s] = batchAndTokens(g, x);
  const attended = g.reshape(latentForms[form](g, query, segments, w.up, dims.scale), [b, s, dims.heads * dims.valueWidth]); // [b, s, h v]
  return { output: linear(g, attended, w.output), attended, rows };
}

const batchAndTokens = <V>(g: Emit<V>, x: V): [Dim, Dim] => [at(g.shape(x), 0), at(g.shape(x), 1)];
