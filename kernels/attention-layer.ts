/** Whole attention layers, from the normed hidden state to the residual's increment, with the rows that a cache keeps. */
import { at } from './at.ts';
import { between, blockwiseAttention, groupedQueryAttention, inBlocks, maskBetween } from './attention.ts';
import type { Dim, Emit } from './emit.ts';
import { expandedChains, groupedQueryChains } from './head-chains.ts';
import { asTheyAre, type HeadMaps } from './head-norm.ts';
import { absorbedAttention, expandedAttention, type LatentSegment, type UpProjections } from './latent-attention.ts';
import { linear, linearHeads, type Linear } from './linear.ts';
import { absorbedOneRowAttention } from './one-row-attention.ts';
import { partialRopeQuery, rotatedKey, type PartialRopeDims, type PartialRopeWeights } from './partial-rope.ts';
import { rmsNorm } from './rms-norm.ts';
import { rope, type RopeAngles } from './rope.ts';
import { ofEachSequence, partOfEachSequence, sideBySide } from './sequences.ts';
import { keyScales, normedQueries, normedRopeKey, type SplitHeadNorm } from './split-head-norm.ts';
import { expandLatent, partsOfRows, plainRows } from './stored-rows.ts';
import { maskOf, plainStore, segmentReaders, segmentRows, type RowStore, type Segmentation } from './segments.ts';

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
 * [b, s, h, k], queries and keys before they rotate (still) and the current tokens' cache rows.
 * `past` has the cached rows of each sequence (kernels/sequences.ts); none when nothing is cached. `before` is what happens
 * to query and key heads before they rotate (Qwen3: `headNorms`), `stored` what a cache makes of the new rows: attention
 * reads them as later tokens will.
 */
export function sourceAttentionLayer<V>(
  g: Emit<V>, x: V, w: SourceWeights<V>, angles: RopeAngles<V>, past: readonly SourceRows<V>[], segmentation: Segmentation<V>, dims: AttentionDims,
  before: HeadMaps<V> = asTheyAre, stored: (rows: SourceRows<V>) => SourceRows<V> = (rows) => rows,
): { output: V; attended: V; query: V; still: { query: V; key: V }; rows: SourceRows<V> } {
  const { heads, kvHeads, headDim } = dims;
  const still = { query: before.query(linearHeads(g, x, w.query, [heads], headDim)), key: before.key(linearHeads(g, x, w.key, [kvHeads], headDim)) };
  const query = rope(g, still.query, angles);
  const rows = {
    key: rope(g, still.key, angles),
    value: linearHeads(g, x, w.value, [kvHeads], headDim),
  };
  const [b, s] = batchAndTokens(g, x);
  const kept = stored(rows);
  const values = segmentRows(g, past.map(({ value }) => value), kept.value, segmentation);
  const sequences = segmentRows(g, past.map(({ key }) => key), kept.key, segmentation)
    .map((keys, q) => keys.map((key, i) => ({ key, value: at(at(values, q), i), mask: maskOf(segmentation, q * keys.length + i) })));
  const grouped = g.reshape(query, [b, s, kvHeads, heads / kvHeads, headDim]);
  const attend = segmentation.join ? groupedQueryChains : groupedQueryAttention;
  const whole = past.length === 0 && segmentation.block !== undefined
    ? blockwiseAttention(g, grouped, at(at(sequences, 0), 0), dims.scale, segmentation.block)
    : sideBySide(g, ofEachSequence(g, grouped, sequences.length).map((own, q) => attend(g, own, at(sequences, q), dims.scale)));
  const attended = g.reshape(whole, [b, s, heads * headDim]);
  return { output: linear(g, attended, w.output), attended, query, still, rows };
}

/** RMSNorm of a vector, with its own eps. */
export interface Norm<V> {
  readonly weight: V;
  readonly eps: number;
}

export interface MlaWeights<V> extends PartialRopeWeights<V> {
  readonly down: Linear<V>; // [c, d]
  /** On the latent before it is cached, as DeepSeek has it. */
  readonly latentNorm?: Norm<V> | null; // [c]
  /** Queries of low rank, as DeepSeek has them: queryRope and queryNope then take its width e, not d. */
  readonly queryDown?: { readonly projection: Linear<V>; readonly norm: Norm<V> | null } | null; // [e, d], [e]
  /** RMSNorm per head, as Qwen3 has it. */
  readonly headNorm?: SplitHeadNorm<V> | null;
  readonly up: UpProjections<V>;
  readonly output: Linear<V>; // [d, h v]
}

export interface MlaRows<V> {
  readonly rope: V | null; // [b, t, m], rotated
  readonly latent: V; // [b, t, c]
  /** Only with a norm per head. */
  readonly keyScale?: V | null; // [b, t, g]
}

export interface MlaDims extends PartialRopeDims {
  readonly valueWidth: number;
  readonly scale: number;
}

/** The two spellings of latent attention, by name. */
export const latentForms = { expanded: expandedAttention, absorbed: absorbedAttention } as const;
export type LatentForm = keyof typeof latentForms;
/** How they are computed where many tokens come at once. */
const joinedForms = { expanded: expandedChains, absorbed: absorbedAttention } as const;

/** Where the parts of a layer's rows are kept: each in its own array, or side by side in one. */
export type MlaStores<V> = { readonly rope: RowStore<V>; readonly latent: RowStore<V> } | OneRowStore<V>;
export interface OneRowStore<V> {
  readonly row: RowStore<V>;
}

/** A layer's cached and current rows as the segments that attention of each sequence reads; new rows go into the stores. */
export function latentSegments<V>(g: Emit<V>, stores: MlaStores<V>, { rope: key, latent }: MlaRows<V>, segmentation: Segmentation<V>): LatentSegment<V>[][] {
  if ('row' in stores) {
    const both = [needed(key), latent], widths = both.map((part) => Number(at(g.shape(part), 2)));
    return segmentReaders(g, stores.row, g.concat(2, both), segmentation).map((rows, q) => rows.map((row, i) => {
      const parts = partsOfRows(g, row, widths);
      return { ropeKey: at(parts, 0), latent: at(parts, 1), mask: maskOf(segmentation, q * rows.length + i) };
    }));
  }
  const ropeKeys = key === null ? null : segmentReaders(g, stores.rope, key, segmentation);
  return segmentReaders(g, stores.latent, latent, segmentation).map((latents, q) => latents.map((latentRows, i) => (
    { ropeKey: ropeKeys === null ? null : at(at(ropeKeys, q), i), latent: latentRows, mask: maskOf(segmentation, q * latents.length + i) })));
}

/**
 * Latent attention in either form. x: [b, s, d] -> output [b, s, d], what o_proj reads, and the current tokens' cache rows.
 * `past` has the cached rows of each sequence (kernels/sequences.ts), none when nothing is cached; what the stores hold need
 * not be in it.
 */
export function mlaAttentionLayer<V>(
  g: Emit<V>, x: V, w: MlaWeights<V>, angles: RopeAngles<V> | null, past: readonly Partial<MlaRows<V>>[], segmentation: Segmentation<V>, dims: MlaDims, form: LatentForm,
  stores: MlaStores<V> = { rope: plainStore(g, past[0]?.rope ?? null), latent: plainStore(g, past[0]?.latent ?? null) },
): { output: V; attended: V; rows: MlaRows<V> } {
  const { headNorm = null, latentNorm = null, queryDown = null } = w;
  const normed = (value: V, norm: Norm<V> | null): V => (norm === null ? value : rmsNorm(g, value, norm.weight, norm.eps));
  const queryInput = queryDown === null ? x : normed(linear(g, x, queryDown.projection), queryDown.norm);
  const query = partialRopeQuery(g, queryInput, w, angles, dims, (parts) => (headNorm === null ? parts : normedQueries(g, parts, headNorm, dims)));
  const latent = normed(linear(g, x, w.down), latentNorm);
  const key = w.keyRope === null || angles === null ? null : linear(g, x, w.keyRope); // [b, s, m]
  const nopeKey = headNorm === null || w.up.key === null ? null : expandLatent(g, latent, w.up.key, w.up.groups ?? 1);
  const scales = headNorm === null ? null : keyScales(g, { rope: key, nope: nopeKey }, headNorm, dims);
  const normedKey = key === null || headNorm === null || scales === null ? key : normedRopeKey(g, key, scales, headNorm, dims);
  const rows: MlaRows<V> = { rope: normedKey === null || angles === null ? null : rotatedKey(g, normedKey, angles), latent, keyScale: scales };
  const scaleRows = scales === null ? null : segmentRows(g, past.flatMap(({ keyScale = null }) => (keyScale === null ? [] : [keyScale])), scales, segmentation);
  if (form === 'absorbed' && 'row' in stores) {
    const own = { rope: needed(query.rope), nope: needed(query.nope) }, up = { key: needed(w.up.key), value: w.up.value };
    const [b, s] = batchAndTokens(g, x), whole = absorbedOneRowAttention(g, own, { rope: needed(rows.rope), latent }, up, stores.row, segmentation, dims.scale);
    const attended = g.reshape(whole, [b, s, dims.heads * dims.valueWidth]);
    return { output: linear(g, attended, w.output), attended, rows };
  }
  const sequences = latentSegments(g, stores, rows, segmentation)
    .map((segments, q) => segments.map((segment, i) => ({ ...segment, keyScale: scaleRows === null ? null : at(at(scaleRows, q), i) })));
  const [b, s] = batchAndTokens(g, x);
  const [ropeQueries, nopeQueries] = [partOfEachSequence(g, query.rope, sequences.length), partOfEachSequence(g, query.nope, sequences.length)];
  const whole = past.length === 0 && segmentation.block !== undefined
    ? inBlocks(g, s, segmentation.block, (from, to) => {
      const cut = (a: V | null, start: number): V | null => (a === null ? null : between(g, a, 1, start, to));
      const seen = { ropeKey: rows.rope === null ? null : plainRows(g, between(g, rows.rope, 1, 0, to)), latent: plainRows(g, between(g, latent, 1, 0, to)), keyScale: cut(scales, 0) };
      const own = { rope: cut(query.rope, from), nope: cut(query.nope, from) };
      return latentForms[form](g, own, [{ ...seen, mask: maskBetween(g, maskOf(segmentation, 0), from, to) }], w.up, dims.scale);
    })
    : sideBySide(g, sequences.map((segments, q) => (segmentation.join ? joinedForms : latentForms)[form](g, { rope: at(ropeQueries, q), nope: at(nopeQueries, q) }, segments, w.up, dims.scale)));
  const attended = g.reshape(whole, [b, s, dims.heads * dims.valueWidth]); // [b, s, h v]
  return { output: linear(g, attended, w.output), attended, rows };
}

function needed<V>(part: V | null): V {
  if (part === null) throw new RangeError('mlaAttentionLayer: rows in one array must have a rope key and a latent that keys are rebuilt from, got one part only');
  return part;
}

const batchAndTokens = <V>(g: Emit<V>, x: V): [Dim, Dim] => [at(g.shape(x), 0), at(g.shape(x), 1)];
