/** Attention of a shape as subgraphs with random weights: over a cache alone, and as a layer with its projections. */
import {
  absorbedAttention, absorbedOneRowAttention, groupedQueryAttention, latentSegments, mlaAttentionLayer, piecedStore, ropeAngles, ropeTables, sourceAttentionLayer,
  type LatentForm, type MlaStores, type RopeAngles, type RowStore, type Segmentation,
} from '../../kernels/index.ts';
import { cacheFormats, latentCachedRows, record, rowMultiple, type CachedRows, type CacheFormat, type Recorder, type Subgraph, type Value } from '../../lib/index.ts';
import { pastRows, rowStore, widePast } from './cached-rows.ts';
import type { Latent, Shape } from './presets.ts';
import { randomProjection, randomTensor } from './random-weights.ts';

/** One new token against p cached ones, which stay where they are. */
const split: Segmentation<Value> = { join: false, masks: [null, null] };

/** One new token whose row is the last of p cached ones already: a session's step writes it there. Blocks of rows may end behind it, so they have a mask. */
const appended = (mask: Value | null): Segmentation<Value> => ({ join: false, masks: [mask], appended: true });

const scaleOf = ({ headDim }: Shape): number => 1 / Math.sqrt(headDim);
/** Queries per KV head. */
const perGroup = ({ heads, kvHeads }: Shape): number => heads / kvHeads;

const float = (shape: readonly (number | string)[]): { dtype: 'float32'; shape: readonly (number | string)[] } => ({ dtype: 'float32', shape });

/** One token's query over cached keys and values, its own among them: query and past_key, past_value -> attended. */
export function sourceAttentionGraph(shape: Shape, cache: CacheFormat): Subgraph {
  const { kvHeads, headDim } = shape;
  return record(`source-attention-${cache}`, { query: float([1, 1, kvHeads, perGroup(shape), headDim]) }, (g, x) => {
    const past = (['key', 'value'] as const).map((name) => widePast(g, pastRows(g, `past_${name}`, [kvHeads, headDim], cacheFormats[cache][name])));
    const [key, value] = past;
    if (key === undefined || value === undefined) throw new Error('sourceAttentionGraph: a source caches keys and values');
    return { attended: groupedQueryAttention(g, x.query, [{ key, value, mask: null }], scaleOf(shape)) };
  });
}

/** Up-projections of a latent as constants. The remainder has a head's full width: what a plan over all heads leaves. */
function upProjections(g: Recorder, { kvHeads, headDim }: Shape, { rank, latentGroups }: Latent): { key: Value; value: Value; groups: number } {
  const up = (name: string): Value => g.parameter(name, randomTensor([kvHeads, headDim, rank / latentGroups], Math.sqrt(latentGroups / rank)));
  return { key: up('k_up_proj.weight'), value: up('v_up_proj.weight'), groups: latentGroups };
}

/** The arrays that a session for that context caches a latent in. */
const cachedRows = ({ headDim, heads }: Shape, { components, rank, latentGroups }: Latent, cache: CacheFormat, context: number): CachedRows[] =>
  latentCachedRows({ layers: [{ rank, latentGroups, frequencies: Array<number>(components).fill(1), nopeWidth: headDim }], heads }, cache, context);

/** Tokens of that cache: p, or so many blocks. */
const cachedTokens = (rows: readonly CachedRows[]): string => (rowMultiple(rows) === 1 ? 'p' : `${rowMultiple(rows)}*block`);

/** Past rows as inputs: past_row, or past_rope and past_latent, which may lie in pieces: past_latent_0 and on. */
function latentStores(g: Recorder, rows: readonly CachedRows[], cache: CacheFormat): MlaStores<Value> {
  const stores = (name: CachedRows['name']): RowStore<Value>[] => rows.filter((some) => some.name === name)
    .map(({ piece, row }) => rowStore(g, pastRows(g, `past_${name}${piece === undefined ? '' : `_${piece}`}`, row, cacheFormats[cache][name], cachedTokens(rows))));
  const [row] = stores('row'), [rope] = stores('rope'), pieces = stores('latent'), [latent] = pieces;
  if (row !== undefined) return { row };
  if (rope === undefined || latent === undefined) throw new Error('latentStores: a latent is cached with its rope key');
  return { rope, latent: pieces.length === 1 ? latent : piecedStore(g, pieces) };
}

/** One token's query over cached latents: query_rope, query_nope, the new rope and latent, which lie in the past rows already, and those -> attended. */
export function latentAttentionGraph(shape: Shape, latent: Latent, cache: CacheFormat, context: number): Subgraph {
  const { kvHeads, headDim } = shape;
  const { components, rank } = latent;
  const query = (width: number): { dtype: 'float32'; shape: readonly (number | string)[] } => float([1, 1, kvHeads, perGroup(shape), width]);
  const inputs = { query_rope: query(2 * components), query_nope: query(headDim), rope: float([1, 1, 2 * components]), latent: float([1, 1, rank]) };
  return record(`absorbed-attention-${cache}`, inputs, (g, x) => {
    const own = { rope: x.query_rope, nope: x.query_nope }, rows = { rope: x.rope, latent: x.latent };
    const cached = cachedRows(shape, latent, cache, context), stores = latentStores(g, cached, cache), up = upProjections(g, shape, latent), scale = scaleOf(shape);
    const segmentation = appended(rowMultiple(cached) === 1 ? null : g.input({ name: 'mask', ...float([1, cachedTokens(cached)]) }));
    return {
      attended: 'row' in stores ? absorbedOneRowAttention(g, own, rows, up, stores.row, segmentation, scale)
        : absorbedAttention(g, own, latentSegments(g, stores, rows, segmentation).flat(), up, scale),
    };
  });
}

/** Angles of n frequencies for the positions that feeds have: 0 and on. */
function angles(g: Recorder, n: number, tokens: number, positions: Value): RopeAngles<Value> {
  const { cos, sin } = ropeTables(Array.from({ length: n }, (_, i) => 10000 ** (-i / n)), tokens);
  return ropeAngles(g, { cos: g.parameter('rope_table.cos', cos), sin: g.parameter('rope_table.sin', sin) }, positions);
}

const projection = (g: Recorder, name: string, out: number, input: number): { weight: Value; bias: null } => ({ weight: g.parameter(`${name}.weight`, randomProjection(out, input)), bias: null });

const layerPorts = (hidden: number, tokens: number) => ({ hidden: float([1, tokens, hidden]), positions: { dtype: 'int64', shape: [tokens] } }) as const;

/** One token reads the cache as it lies; more of them are joined with it under a mask. Cached tokens come first. */
function segmentationOf(g: Recorder, tokens: number, positions: Value): Segmentation<Value> {
  if (tokens === 1) return split;
  const past = g.input({ name: 'past_positions', dtype: 'int64', shape: ['p'] });
  return { join: true, masks: [g.causalMask(positions, g.concat(0, [past, positions]), null)] };
}

/** Source attention with its projections: hidden [1, tokens, d] over p cached tokens -> output and new rows. */
export function sourceLayerGraph(shape: Shape, tokens: number): Subgraph {
  const { hidden, heads, kvHeads, headDim } = shape;
  return record('source-layer', layerPorts(hidden, tokens), (g, x) => {
    const rows = kvHeads * headDim;
    const weights = {
      query: projection(g, 'q_proj', heads * headDim, hidden), key: projection(g, 'k_proj', rows, hidden),
      value: projection(g, 'v_proj', rows, hidden), output: projection(g, 'o_proj', hidden, heads * headDim),
    };
    const past = { key: g.input({ name: 'past_key', ...float([1, 'p', kvHeads, headDim]) }), value: g.input({ name: 'past_value', ...float([1, 'p', kvHeads, headDim]) }) };
    const { output, rows: own } = sourceAttentionLayer(g, x.hidden, weights, angles(g, headDim / 2, tokens, x.positions), [past], segmentationOf(g, tokens, x.positions), { heads, kvHeads, headDim, scale: scaleOf(shape) });
    return { output, ...own };
  });
}

/** Latent attention with its projections, in either form: hidden [1, tokens, d] over p cached tokens -> output and new rows. */
export function latentLayerGraph(shape: Shape, latent: Latent, tokens: number, form: LatentForm, context: number, cache: CacheFormat = 'f32'): Subgraph {
  const { hidden, heads, kvHeads, headDim } = shape;
  const { components, rank } = latent;
  const ropeWidth = 2 * components;
  return record(`${form}-layer-${cache}`, layerPorts(hidden, tokens), (g, x) => {
    const weights = {
      queryRope: projection(g, 'q_rope_proj', heads * ropeWidth, hidden), queryNope: projection(g, 'q_nope_proj', heads * headDim, hidden),
      keyRope: projection(g, 'k_rope_proj', ropeWidth, hidden), down: projection(g, 'kv_down_proj', rank, hidden),
      up: upProjections(g, shape, latent), output: projection(g, 'o_proj', hidden, heads * headDim),
    };
    const stores = latentStores(g, cachedRows(shape, latent, cache, context), cache);
    const dims = { heads, kvHeads, ropeWidth, nopeWidth: headDim, valueWidth: headDim, scale: scaleOf(shape) };
    const { output, rows } = mlaAttentionLayer(g, x.hidden, weights, angles(g, components, tokens, x.positions), [], segmentationOf(g, tokens, x.positions), dims, form, stores);
    return { output, ...(rows.rope === null ? {} : { rope: rows.rope }), latent: rows.latent };
  });
}
