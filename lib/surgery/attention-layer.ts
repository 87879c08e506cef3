import type { HostTensor } from '../../kernels/emit.ts';
import { sourceAttentionShapes } from '../models/decoder-weights.ts';
import { weightOf, type Model } from '../models/model.ts';
import type { HeadNorm } from './head-norm.ts';

/** One projection in float32: weight [out, in], bias [out] or null. */
export interface Projection {
  readonly weight: HostTensor<'float32'>;
  readonly bias: HostTensor<'float32'> | null;
}

/**
 * What surgery starts from: one attention layer on its own, with no model around it. Pair k of a head is its elements
 * (k, k + headDim / 2), rotated by `frequencies[k]` radians per position.
 */
export interface AttentionLayer {
  readonly layer: number;
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly query: Projection; // [heads headDim, hidden]
  readonly key: Projection; // [kvHeads headDim, hidden]
  readonly value: Projection; // [kvHeads headDim, hidden]
  readonly output: Projection; // [hidden, heads headDim]
  /** RMSNorm on each query and key head before RoPE; absent or null where there is none. */
  readonly headNorm?: HeadNorm | null;
  readonly frequencies: Float64Array; // [headDim / 2]
  /** Factor on the scores before softmax. */
  readonly scale: number;
  /** Keys a query may look back at, itself included; null when all. */
  readonly window: number | null;
  /** Positions the layer's subgraphs make angles for. */
  readonly maxPositions: number;
}

/** RoPE pairs per head. */
export const pairsPerHead = ({ headDim }: Pick<AttentionLayer, 'headDim'>): number => headDim / 2;

/** Reads one layer of a source model; only its tensors are touched. Errors: a converted model, missing or misshapen tensors. */
export async function readAttentionLayer(model: Model, layer: number): Promise<AttentionLayer> {
  const { config, family, checkpoint } = model;
  if (model.mla !== null) throw new TypeError(`readAttentionLayer: model must be a source model, got ${model.path}, which is converted already`);
  if (!Number.isInteger(layer) || layer < 0 || layer >= config.layers) throw new RangeError(`readAttentionLayer: layer must be 0..${config.layers - 1}, got ${layer}`);
  const shapes = sourceAttentionShapes(model, layer);
  const read = async (name: string): Promise<HostTensor<'float32'> | null> => {
    const shape = shapes.get(name);
    return shape === undefined ? null : weightOf(checkpoint, name, shape);
  };
  const projection = async (prefix: string): Promise<Projection> => {
    const weight = await read(`${prefix}.weight`);
    if (weight === null) throw new RangeError(`readAttentionLayer: ${prefix}.weight must be a tensor of layer ${layer}`);
    return { weight, bias: await read(`${prefix}.bias`) };
  };
  const names = family.layer(layer);
  const [queryNorm, keyNorm] = [await read(`${names.queryNorm}.weight`), await read(`${names.keyNorm}.weight`)];
  const { hidden, heads, kvHeads, headDim, window, maxPositions } = config;
  return {
    layer, hidden, heads, kvHeads, headDim, window, maxPositions,
    query: await projection(names.query), key: await projection(names.key),
    value: await projection(names.value), output: await projection(names.output),
    headNorm: queryNorm === null || keyNorm === null ? null : { query: queryNorm, key: keyNorm, eps: config.normEps },
    frequencies: model.frequencies, scale: model.scale,
  };
}

/** Checks a layer built by hand: shapes, positive counts, finite weights. Names the layer and the tensor. */
export function checkAttentionLayer(caller: string, attention: AttentionLayer): void {
  const { layer, hidden, heads, kvHeads, headDim, frequencies } = attention;
  const fail = (rule: string): never => { throw new RangeError(`${caller}: ${rule} (layer ${layer})`); };
  if (headDim % 2 !== 0) fail(`headDim must be even, got ${headDim}`);
  if (heads % kvHeads !== 0) fail(`heads must be a multiple of kvHeads, got ${heads} and ${kvHeads}`);
  if (frequencies.length !== headDim / 2) fail(`frequencies must have ${headDim / 2} entries, got ${frequencies.length}`);
  const rows = { query: heads * headDim, key: kvHeads * headDim, value: kvHeads * headDim, output: hidden };
  for (const name of ['query', 'key', 'value', 'output'] as const) {
    const { weight, bias } = attention[name];
    const shape = [rows[name], name === 'output' ? heads * headDim : hidden];
    if (weight.shape.join() !== shape.join()) fail(`${name} weight must be [${shape}], got [${weight.shape}]`);
    if (bias !== null && bias.shape.join() !== `${rows[name]}`) fail(`${name} bias must be [${rows[name]}], got [${bias.shape}]`);
    const bad = weight.data.findIndex((x) => !Number.isFinite(x));
    if (bad >= 0) fail(`${name} weight must be finite, got ${weight.data[bad]} at element ${bad}`);
  }
}
