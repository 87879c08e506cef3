/**
 * Multi-head latent attention, two spellings of one function. Dimension key as in attention.ts, and: n NoPE width of
 * a head, m = 2 x rotating components (width of the shared rope key), c latent rank.
 *
 * What is cached per token is one row [rope key m | latent c], shared by all heads.
 */
import { at } from './at.ts';
import type { Emit } from './emit.ts';
import { softmaxOverSegments, sumOver } from './attention.ts';
import { equalParts } from './pieced-rows.ts';
import { expandLatent, groupedRows, type RowReader } from './stored-rows.ts';

/** A part is null where a conversion leaves nothing of it: no remainder (all pairs rotate) or no rotation at all. */
export interface LatentQuery<V> {
  readonly rope: V | null; // [b, s, g, r, m], rotated
  readonly nope: V | null; // [b, s, g, r, n]
}

export interface LatentSegment<V> {
  readonly ropeKey: RowReader<V> | null; // [b, t, m], rotated
  readonly latent: RowReader<V>; // [b, t, c]
  /** What the keys rebuilt from the latent are multiplied by; absent where nothing is (no norm per head). */
  readonly keyScale?: V | null; // [b, t, g]
  readonly mask: V | null; // [s, t], or what broadcasts to scores
}

export interface UpProjections<V> {
  readonly key: V | null; // [g, n, c / groups]
  readonly value: V; // [g, v, c / groups]
  /** Groups of KV heads with a latent of their own, side by side in the row. Default 1. */
  readonly groups?: number;
}

/** Scores of the rotating part against one segment: [b, g, r, s, t]; none where nothing rotates. */
function ropeScores<V>(query: V | null, segment: LatentSegment<V>): V[] {
  return query === null || segment.ropeKey === null ? [] : [segment.ropeKey.score(query)];
}

/** Scores [b, g, r, s, t] of rebuilt keys times the keys' own factors. */
function withKeyScale<V>(g: Emit<V>, scores: V, { keyScale = null }: LatentSegment<V>): V {
  if (keyScale === null) return scores;
  const [b, t, groups] = g.shape(keyScale);
  return g.mul(scores, g.reshape(g.einsum('btg->bgt', keyScale), [b ?? 1, groups ?? 1, 1, 1, t ?? 1]));
}

/** Rebuilt keys [b, t, g, n] with the shared rope key [b, t, m] behind those of every KV head: [b, t, g, n + m]. */
function wholeKey<V>(g: Emit<V>, key: V, rope: V): V {
  const [b, t, heads] = [at(g.shape(key), 0), at(g.shape(key), 1), at(g.shape(key), 2)], m = at(g.shape(rope), 2);
  return g.concat(3, [key, g.expand(g.reshape(rope, [b, t, 1, m]), [b, t, heads, m])]);
}

const scaled = <V>(g: Emit<V>, query: V | null, scale: number): V | null => (query === null ? null : g.scale(query, scale));

/**
 * Expanded form: keys and values are rebuilt from the latent, then ordinary attention. Few FLOPs per score, so it is
 * the form of prefill and training. -> [b, s, g, r, v]. Source: Ji et al. 2025, equations 5 to 9.
 */
export function expandedAttention<V>(
  g: Emit<V>, query: LatentQuery<V>, segments: readonly LatentSegment<V>[], up: UpProjections<V>, scale: number,
): V {
  const { groups = 1 } = up;
  const nope = scaled(g, query.nope, scale);
  const rope = scaled(g, query.rope, scale);
  const whole = nope === null || rope === null ? null : g.concat(4, [nope, rope]); // [b, s, g, r, n + m]
  const scores = segments.map((segment) => {
    if (nope === null || up.key === null) return sumOver(g, ropeScores(rope, segment));
    const key = expandLatent(g, segment.latent.widen(), up.key, groups);
    // One product and no sum of two score matrices, which are the largest tensors here.
    if (whole !== null && segment.ropeKey !== null && (segment.keyScale ?? null) === null) return g.einsum('bsgrn,btgn->bgrst', whole, wholeKey(g, key, segment.ropeKey.widen()));
    return sumOver(g, [withKeyScale(g, g.einsum('bsgrn,btgn->bgrst', nope, key), segment), ...ropeScores(rope, segment)]);
  });
  const weights = softmaxOverSegments(g, scores, segments.map(({ mask }) => mask));
  return sumOver(g, weights.map((weight, i) => {
    const value = expandLatent(g, at(segments, i).latent.widen(), up.value, groups);
    return g.einsum('bgrst,btgv->bsgrv', weight, value);
  }));
}

/**
 * Queries against the rows as they are cached: rope query [b, s, g, r, m], latent query [b, s, g, r, c], scaled; a part is
 * null where there is none. -> sums of latents by the weights [b, s, g, r, c].
 */
export function attendLatents<V>(
  g: Emit<V>, query: { readonly rope: V | null; readonly latent: V | null }, segments: readonly LatentSegment<V>[], groups = 1,
): V {
  if (segments.every(({ latent, keyScale = null }) => latent.pieces?.length === groups && keyScale === null)) return attendPieces(g, query, segments, groups);
  const scores = segments.map((segment) => {
    const terms = ropeScores(query.rope, segment);
    return sumOver(g, query.latent === null ? terms : [withKeyScale(g, groupedRows(g, segment.latent, groups).score(query.latent), segment), ...terms]);
  });
  const weights = softmaxOverSegments(g, scores, segments.map(({ mask }) => mask));
  return sumOver(g, weights.map((weight, i) => groupedRows(g, at(segments, i).latent, groups).weigh(weight)));
}

/**
 * `attendLatents` where each group's latent lies in an array of its own: one group behind the other, so that an array is in
 * the processor's cache still when sums read it. Only scores of the shared rope key are made for all heads at once.
 */
function attendPieces<V>(
  g: Emit<V>, query: { readonly rope: V | null; readonly latent: V | null }, segments: readonly LatentSegment<V>[], groups: number,
): V {
  const cut = (a: V, axis: number): V[] => g.split(a, axis, equalParts(at(g.shape(a), axis), groups));
  const queries = query.latent === null ? null : cut(query.latent, 2);
  // Masked before they are cut: of all groups at once, where there are such scores.
  const rope = segments.map((segment) => ropeScores(query.rope, segment).map((scores) => cut(segment.mask === null ? scores : g.add(scores, segment.mask), 1)));
  return g.concat(2, Array.from({ length: groups }, (_, group) => {
    const pieces = segments.map(({ latent }) => at(latent.pieces ?? [], group));
    const scores = pieces.map((piece, i) => sumOver(g, [...(queries === null ? [] : [piece.score(at(queries, group))]), ...at(rope, i).map((own) => at(own, group))]));
    const weights = softmaxOverSegments(g, scores, segments.map(({ mask }, i) => (at(rope, i).length > 0 ? null : mask)));
    return sumOver(g, weights.map((weight, i) => at(pieces, i).weigh(weight)));
  }));
}

/**
 * Absorbed form: the key up-projection moves into the query and the value up-projection behind the softmax, so the
 * cache is read as it is stored and never expanded. The form of decoding. -> [b, s, g, r, v].
 * Source: DeepSeek-AI 2024 (V2), section 2.1.2; Ji et al. 2025, appendix B.
 */
export function absorbedAttention<V>(
  g: Emit<V>, query: LatentQuery<V>, segments: readonly LatentSegment<V>[], up: UpProjections<V>, scale: number,
): V {
  const nope = scaled(g, query.nope, scale);
  const latent = nope === null || up.key === null ? null : g.einsum('bsgrn,gnc->bsgrc', nope, up.key);
  const attended = attendLatents(g, { rope: scaled(g, query.rope, scale), latent }, segments, up.groups);
  return g.einsum('bsgrc,gvc->bsgrv', attended, up.value);
}
