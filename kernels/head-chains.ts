/**
 * Attention of many queries in chains of a few heads each: the same functions as those of all heads at once, but keys,
 * values and scores of one chain are what a processor's caches hold, where those of all heads go through memory.
 * Dimension key as in latent-attention.ts.
 */
import { at } from './at.ts';
import { groupedQueryAttention, type KeyValueSegment } from './attention.ts';
import type { Dim, Emit } from './emit.ts';
import { expandedAttention, type LatentQuery, type LatentSegment, type UpProjections } from './latent-attention.ts';
import { partsOfRows } from './stored-rows.ts';

/** Query heads of a chain, unless one KV head has more. Measured with three of one KV head (docs/log.md), the rest is taken to be alike. */
const QUERY_HEADS = 4;

const kvHeadsTogether = (queryHeads: number): number => Math.max(1, Math.floor(QUERY_HEADS / queryHeads));

/** Query heads whose scores are in memory at once, of kvHeads with `queryHeads` each. */
export const queryHeadsTogether = (kvHeads: number, queryHeads: number): number => Math.min(kvHeads, kvHeadsTogether(queryHeads)) * queryHeads;

/** KV heads of each chain; none has heads of two of the `latents`. */
export function headChains(kvHeads: number, queryHeads: number, latents = 1): number[] {
  const size = kvHeadsTogether(queryHeads), each = kvHeads / latents;
  return Array.from({ length: latents }, () => Array.from({ length: Math.ceil(each / size) }, (_, i) => Math.min(size, each - i * size))).flat();
}

/** A mask [s, t] as scores of a chain are, [1, g, r, s, t]: a sum of two alike is shared out evenly among threads. */
function maskOfChain<V>(g: Emit<V>, mask: V | null, kvHeads: number, queryHeads: number): V | null {
  if (mask === null) return null;
  const [s, t] = [at(g.shape(mask), 0), at(g.shape(mask), 1)];
  return g.expand(g.reshape(mask, [1, 1, 1, s, t]), [1, kvHeads, queryHeads, s, t]);
}

/** `groupedQueryAttention` in chains. */
export function groupedQueryChains<V>(g: Emit<V>, query: V, segments: readonly KeyValueSegment<V>[], scale: number): V {
  const [kvHeads, queryHeads] = headsOf(g.shape(query));
  const chains = headChains(kvHeads, queryHeads);
  if (chains.length === 1) return groupedQueryAttention(g, query, segments, scale);
  const queries = g.split(query, 2, chains);
  const cut = segments.map(({ key, value, mask }) => ({ keys: g.split(key, 2, chains), values: g.split(value, 2, chains), mask }));
  return g.concat(2, chains.map((heads, i) => groupedQueryAttention(
    g, at(queries, i), cut.map(({ keys, values, mask }) => ({ key: at(keys, i), value: at(values, i), mask: maskOfChain(g, mask, heads, queryHeads) })), scale,
  )));
}

/** `expandedAttention` in chains; each rebuilds the keys and values of its own heads only. */
export function expandedChains<V>(g: Emit<V>, query: LatentQuery<V>, segments: readonly LatentSegment<V>[], up: UpProjections<V>, scale: number): V {
  const { groups = 1 } = up;
  const [kvHeads, queryHeads] = headsOf(g.shape(query.nope ?? needed(query.rope)));
  const chains = headChains(kvHeads, queryHeads, groups);
  if (chains.length === 1) return expandedAttention(g, query, segments, up, scale);
  const cut = (part: V | null, axis: number): (V | null)[] => (part === null ? chains.map(() => null) : g.split(part, axis, chains));
  const ropes = cut(query.rope, 2), nopes = cut(query.nope, 2), keyUps = cut(up.key, 0), valueUps = g.split(up.value, 0, chains);
  const width = Number(at(g.shape(up.value), 2));
  const parts = segments.map((segment) => ({
    segment, keyScales: cut(segment.keyScale ?? null, 2),
    latents: groups === 1 ? [segment.latent] : partsOfRows(g, segment.latent, Array<number>(groups).fill(width)),
  }));
  return g.concat(2, chains.map((heads, i) => expandedAttention(
    g, { rope: at(ropes, i), nope: at(nopes, i) },
    parts.map(({ segment, keyScales, latents }) => ({
      ...segment, latent: at(latents, Math.floor((i * groups) / chains.length)), keyScale: at(keyScales, i), mask: maskOfChain(g, segment.mask, heads, queryHeads),
    })),
    { key: at(keyUps, i), value: at(valueUps, i) }, scale,
  )));
}

function headsOf(query: readonly Dim[]): [kvHeads: number, queryHeads: number] {
  const [kvHeads, queryHeads] = [at(query, 2), at(query, 3)];
  if (typeof kvHeads !== 'number' || typeof queryHeads !== 'number') throw new RangeError(`headChains: heads must be numbers, got ${kvHeads} and ${queryHeads}`);
  return [kvHeads, queryHeads];
}

function needed<V>(query: V | null): V {
  if (query === null) throw new RangeError('expandedChains: queries must have a rotating part or a remainder, got neither');
  return query;
}
