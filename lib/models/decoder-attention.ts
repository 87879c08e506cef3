/** The attention of each decoder layer, bound to one recording: source attention, or latent attention in either form. */
import {
  headNorms, mergedAttentionLayer, mlaAttentionLayer, oneRowAttentionLayer, piecedStore, ropeTables, sourceAttentionLayer, type LatentForm, type MlaStores, type MlaWeights, type RopeAngles, type RowStore,
  type Segmentation,
} from '../../kernels/index.ts';
import { at } from '../../kernels/at.ts';
import type { Recorder, Value } from '../graph/record.ts';
import type { HostTensor } from '../graph/subgraph.ts';
import type { DecoderCache, LayerCache } from './decoder-cache.ts';
import type { WeightValues } from './decoder-weights.ts';
import { mergedTensorName } from './merge-up-projections.ts';
import { oneRowTensorName } from './one-row-projection.ts';
import { mlaTensorName, type MlaExtra, type MlaLayerConfig, type MlaTensor } from './mla-config.ts';
import type { Model } from './model.ts';

/** What every layer of one recording shares. */
export interface DecoderContext {
  readonly g: Recorder;
  readonly model: Model;
  readonly weights: WeightValues;
  /** int64 [s]. */
  readonly positions: Value;
  readonly cache: DecoderCache;
  readonly segmentation: Segmentation<Value>;
  /** Length of the tables of angles. */
  readonly positionCount: number;
}

/** Records the attention of one layer: normed hidden state -> increment, and new rows by port name. */
export type LayerAttention = (layer: number, x: Value) => { output: Value; rows: Readonly<Record<string, Value>> };

/**
 * The angles of each distinct list of frequencies. All lists lie side by side in one table: a step looks its position up
 * once and cuts the row, where layers with frequencies of their own would take four operators each.
 */
function angleSource({ g, model, positions, positionCount }: DecoderContext): (frequencies: ArrayLike<number>) => RopeAngles<Value> {
  const rotating = (model.mla?.layers.map(({ frequencies }) => frequencies) ?? [Array.from(model.frequencies)]).filter((list) => list.length > 0);
  const lists = new Map(rotating.map((list) => [list.join(), list]));
  const widths = [...lists.values()].map((list) => list.length), total = widths.reduce((sum, width) => sum + width, 0);
  if (total === 0) return (frequencies) => { throw new RangeError(`decoder: no layer of ${model.path} rotates, got a layer of ${frequencies.length} frequencies`); };
  const tables = ropeTables([...lists.values()].flat(), positionCount);
  const s = at(positions.shape, 0), row = g.reshape(positions, [1, s]);
  // Cut with a leading axis of 1, as rotations take them, so that no piece has to be reshaped.
  const pieces = (name: string, table: HostTensor): Value[] => g.split(g.gather(g.parameter(name, table), row), 2, widths).map((piece, i) => g.reshape(piece, [s, at(widths, i)]));
  const [cos, sin] = [pieces('rope_table.cos', tables.cos), pieces('rope_table.sin', tables.sin)];
  const known = new Map([...lists.keys()].map((key, i) => [key, { cos: at(cos, i), sin: at(sin, i) }]));
  return (frequencies) => {
    const own = known.get(Array.from(frequencies).join());
    if (own === undefined) throw new RangeError(`decoder: frequencies must be those of a layer of ${model.path}, got ${Array.from(frequencies).join()}`);
    return own;
  };
}

/** Everything a source layer's attention computes on its way, and its new rows by port name. */
export type SourceAttention = ReturnType<typeof sourceAttentionLayer<Value>> & { readonly outputs: LayerCache['outputs'] };

/** Records the source attention of one layer: normed hidden state -> all of it. */
export function sourceAttentionParts(context: DecoderContext): (layer: number, x: Value) => SourceAttention {
  const { g, model, weights, segmentation, cache } = context;
  const angles = angleSource(context);
  return (layer, x) => {
    const names = model.family.layer(layer);
    const rows = cache.layer(layer);
    const [keys, values] = [rows.past({ name: 'key' }), rows.past({ name: 'value' })];
    const attention = sourceAttentionLayer(
      g, x,
      { query: weights.linear(names.query), key: weights.linear(names.key), value: weights.linear(names.value), output: weights.linear(names.output) },
      angles(model.frequencies),
      keys.map((key, i) => ({ key, value: at(values, i) })),
      segmentation,
      { ...model.config, scale: model.scale },
      headNorms(g, { query: names.queryNorm === null ? null : weights.weight(names.queryNorm), key: names.keyNorm === null ? null : weights.weight(names.keyNorm) }, model.config.normEps),
      ({ key, value }) => ({ key: rows.keep({ name: 'key' }, key), value: rows.keep({ name: 'value' }, value) }),
    );
    return { ...attention, outputs: rows.outputs };
  };
}

export function sourceAttention(context: DecoderContext): LayerAttention {
  const parts = sourceAttentionParts(context);
  return (layer, x) => {
    const { output, outputs } = parts(layer, x);
    return { output, rows: outputs };
  };
}

export function latentAttention(context: DecoderContext, form: LatentForm): LayerAttention {
  const { g, model, weights, segmentation, cache } = context;
  const { heads, kvHeads, headDim } = model.config;
  const angles = angleSource(context);
  return (layer, x) => {
    const config = model.mla?.layers[layer];
    if (config === undefined) throw new RangeError(`decoder: layer ${layer} of ${model.path} must be in the mla block of config.json`);
    const { rank, frequencies, nopeWidth, latentGroups = 1 } = config;
    const name = (tensor: MlaTensor | MlaExtra): string => mlaTensorName(layer, tensor);
    const up = (tensor: 'keyUp' | 'valueUp', width: number): Value => g.reshape(weights.weight(name(tensor)), [kvHeads, width, rank / latentGroups]);
    const kept = cache.layer(layer);
    const stores: MlaStores<Value> = kept.holds({ name: 'row' }) ? { row: kept.store({ name: 'row' }) } : { rope: kept.store({ name: 'rope' }), latent: latentStore(g, kept, latentGroups) };
    const rotation = frequencies.length > 0 ? angles(frequencies) : null;
    const mergedOutput = form === 'absorbed' ? weights.optionalLinear(mergedTensorName(layer, 'output')) : null;
    const mergedDims = { heads, ropeWidth: 2 * frequencies.length, rank };
    if (mergedOutput !== null && rotation !== null && 'row' in stores) {
      const output = oneRowAttentionLayer(g, x, { rows: weights.linear(oneRowTensorName(layer)), output: mergedOutput }, rotation, segmentation, mergedDims, stores);
      return { output, rows: kept.outputs };
    }
    if (mergedOutput !== null) {
      const output = mergedAttentionLayer(
        g, x,
        {
          queryRope: weights.optionalLinear(mergedTensorName(layer, 'queryRope')), queryLatent: weights.optionalLinear(mergedTensorName(layer, 'queryLatent')),
          keyRope: weights.optionalLinear(name('keyRope')), down: weights.linear(name('down')), output: mergedOutput,
        },
        rotation, segmentation, mergedDims, stores,
      );
      return { output, rows: kept.outputs };
    }
    const { output, rows } = mlaAttentionLayer(
      g, x,
      {
        queryRope: weights.optionalLinear(name('queryRope')), queryNope: weights.optionalLinear(name('queryNope')),
        keyRope: weights.optionalLinear(name('keyRope')), down: weights.linear(name('down')),
        up: { key: nopeWidth === 0 ? null : up('keyUp', nopeWidth), value: up('valueUp', headDim), groups: latentGroups },
        output: weights.linear(name('output')),
        ...latentExtras(weights, config, headDim, name),
      },
      rotation,
      kept.past({ name: 'key_scale' }).map((keyScale) => ({ keyScale })),
      segmentation,
      { heads, kvHeads, ropeWidth: 2 * frequencies.length, nopeWidth, valueWidth: headDim, scale: model.scale },
      form, stores,
    );
    if (rows.keyScale !== undefined && rows.keyScale !== null) kept.keep({ name: 'key_scale' }, rows.keyScale);
    return { output, rows: kept.outputs };
  };
}

/** A layer's latents: in one array, or in one for each group (cache-layout.ts). */
const latentStore = (g: Recorder, kept: LayerCache, groups: number): RowStore<Value> =>
  (kept.holds({ name: 'latent', piece: 0 }) ? piecedStore(g, Array.from({ length: groups }, (_, piece) => kept.store({ name: 'latent', piece }))) : kept.store({ name: 'latent' }));

/** What only some layers have: norms, and queries of low rank. */
function latentExtras(
  weights: WeightValues, { latentNormEps, queryNormEps, queryRank, headNorm }: MlaLayerConfig, headWidth: number, name: (tensor: MlaExtra) => string,
): Pick<MlaWeights<Value>, 'latentNorm' | 'queryDown' | 'headNorm'> {
  return {
    latentNorm: latentNormEps === undefined ? null : { weight: weights.weight(name('latentNorm')), eps: latentNormEps },
    queryDown: queryRank === undefined ? null : {
      projection: weights.linear(name('queryDown')), norm: queryNormEps === undefined ? null : { weight: weights.weight(name('queryDownNorm')), eps: queryNormEps },
    },
    headNorm: headNorm === undefined ? null : {
      queryRope: weights.optionalWeight(name('queryRopeNorm')), keyRope: weights.optionalWeight(name('keyRopeNorm')),
      nope: weights.optionalWeight(name('nopeNorm')), eps: headNorm.eps, headWidth,
    },
  };
}
