/** Every weight a decoder graph needs, by name and expected shape; loaded before the graph is recorded. */
import type { DecoderLayerWeights, Linear } from '../../kernels/index.ts';
import type { Recorder, Value } from '../graph/record.ts';
import type { Constant } from '../graph/subgraph.ts';
import type { LayerNames } from './family.ts';
import { mlaTensorName, type MlaExtra, type MlaLayerConfig, type MlaTensor } from './mla-config.ts';
import { constantOf, type Model } from './model.ts';

export type Shapes = ReadonlyMap<string, readonly number[]>;

/** What the shapes of a source model follow from. */
type Architecture = Pick<Model, 'config' | 'family'>;

type Shape = readonly [name: string, shape: readonly number[]];

const linearShapes = (name: string, out: number, input: number, bias: boolean): Shape[] =>
  bias ? [[`${name}.weight`, [out, input]], [`${name}.bias`, [out]]] : [[`${name}.weight`, [out, input]]];

/** Tensor name -> shape of one layer without its attention. */
function layerBodyShapes({ config, family }: Architecture, layer: number): Shape[] {
  const { hidden, ffn } = config;
  const bias = family.mlpBias(config);
  const names = family.layer(layer);
  return [
    [`${names.attentionNorm}.weight`, [hidden]],
    [`${names.mlpNorm}.weight`, [hidden]],
    ...linearShapes(names.gate, ffn, hidden, bias),
    ...linearShapes(names.up, ffn, hidden, bias),
    ...linearShapes(names.down, hidden, ffn, bias),
  ];
}

/** Tensor name -> shape of everything but attention. */
function bodyShapes(model: Architecture): Shape[] {
  const { config, family } = model;
  const { hidden, layers, vocab } = config;
  return [
    [`${family.embedding}.weight`, [vocab, hidden]],
    [`${family.finalNorm}.weight`, [hidden]],
    [`${family.head(config)}.weight`, [vocab, hidden]],
    ...Array.from({ length: layers }, (_, layer) => layerBodyShapes(model, layer)).flat(),
  ];
}

/** Names of everything but attention, each once: what conversion copies unchanged. */
export const bodyTensorNames = (model: Model): string[] => [...new Map(bodyShapes(model)).keys()];

/** Tensor name -> shape of one source attention layer. */
export function sourceAttentionShapes({ config, family }: Architecture, layer: number): Shapes {
  const { hidden, heads, kvHeads, headDim } = config;
  const names = family.layer(layer);
  const bias = family.attentionBias(config);
  const outputs: [string, number, number, boolean][] = [
    [names.query, heads * headDim, hidden, bias.qkv],
    [names.key, kvHeads * headDim, hidden, bias.qkv],
    [names.value, kvHeads * headDim, hidden, bias.qkv],
    [names.output, hidden, heads * headDim, bias.output],
  ];
  const norms = [names.queryNorm, names.keyNorm].flatMap((name): Shape[] => (name === null ? [] : [[`${name}.weight`, [headDim]]]));
  return new Map([...outputs.flatMap(([name, out, input, has]) => linearShapes(name, out, input, has)), ...norms]);
}

/** Tensor name -> shape of a whole source model. */
export const sourceWeightShapes = (model: Architecture): Shapes =>
  new Map([...bodyShapes(model), ...Array.from({ length: model.config.layers }, (_, layer) => [...sourceAttentionShapes(model, layer)]).flat()]);

/** Rows of a layer's q_rope_proj: all rotating elements of every head, or those of its own KV head (kernels/partial-rope.ts). */
function ropeQueryRows({ tensors }: Model['checkpoint'], layer: number, heads: number, kvHeads: number, rope: number): number {
  const own = (heads * rope) / kvHeads;
  return tensors.get(`${mlaTensorName(layer, 'queryRope')}.weight`)?.shape[0] === own ? own : heads * rope;
}

/** Tensor name -> shape of one converted attention layer; biases are there where the checkpoint has them. */
export function mlaAttentionShapes({ config, checkpoint }: Pick<Model, 'config' | 'checkpoint'>, layer: number, mla: MlaLayerConfig): Shapes {
  const { hidden, heads, kvHeads, headDim } = config;
  const rope = 2 * mla.frequencies.length;
  const queryInput = mla.queryRank ?? hidden;
  const all: [MlaTensor | MlaExtra, number, number][] = [
    ['queryDown', mla.queryRank ?? 0, hidden],
    ['queryRope', ropeQueryRows(checkpoint, layer, heads, kvHeads, rope), queryInput],
    ['queryNope', heads * mla.nopeWidth, queryInput],
    ['keyRope', rope, hidden],
    ['down', mla.rank, hidden],
    ['keyUp', kvHeads * mla.nopeWidth, mla.rank / (mla.latentGroups ?? 1)],
    ['valueUp', kvHeads * headDim, mla.rank / (mla.latentGroups ?? 1)],
    ['output', hidden, heads * headDim],
  ];
  const projections = all.filter(([, out]) => out > 0).flatMap(([tensor, out, input]) => {
    const name = mlaTensorName(layer, tensor);
    return linearShapes(name, out, input, checkpoint.tensors.has(`${name}.bias`));
  });
  const norms: [MlaExtra, readonly number[], boolean][] = [
    ['queryDownNorm', [queryInput], mla.queryNormEps !== undefined],
    ['latentNorm', [mla.rank], mla.latentNormEps !== undefined],
    ['queryRopeNorm', [rope], mla.headNorm !== undefined && rope > 0],
    ['keyRopeNorm', [rope], mla.headNorm !== undefined && rope > 0],
    ['nopeNorm', [kvHeads, mla.nopeWidth], mla.headNorm !== undefined && mla.nopeWidth > 0],
  ];
  return new Map([...projections, ...norms.flatMap(([name, shape, there]): Shape[] => (there ? [[`${mlaTensorName(layer, name)}.weight`, shape]] : []))]);
}

/** All weights of a model's decoder graph. */
export async function loadDecoderWeights(model: Model): Promise<ReadonlyMap<string, Constant>> {
  const attention = Array.from({ length: model.config.layers }, (_, layer) => attentionShapes(model, layer));
  return constantsOf(model, [...bodyShapes(model), ...attention.flatMap((shapes) => [...shapes])]);
}

/** Tensor name -> shape of one layer's attention, converted or not. */
export function attentionShapes(model: Model, layer: number): Shapes {
  const config = model.mla?.layers[layer];
  return config === undefined ? sourceAttentionShapes(model, layer) : mlaAttentionShapes(model, layer, config);
}

/** The weights of one layer. */
export async function loadLayerWeights(model: Model, layer: number): Promise<ReadonlyMap<string, Constant>> {
  return constantsOf(model, [...layerBodyShapes(model, layer), ...attentionShapes(model, layer)]);
}

async function constantsOf({ checkpoint }: Model, shapes: readonly Shape[]): Promise<ReadonlyMap<string, Constant>> {
  const constants = new Map<string, Constant>();
  for (const [name, shape] of shapes) {
    if (!constants.has(name)) constants.set(name, await constantOf(checkpoint, name, shape));
  }
  return constants;
}

/** Weights as values of a recording. */
export interface WeightValues {
  weight(name: string): Value;
  linear(name: string): Linear<Value>;
  /** Null where the checkpoint has no such tensor because the conversion left none. */
  optionalLinear(name: string): Linear<Value> | null;
  optionalWeight(name: string): Value | null;
}

export function weightValues(g: Pick<Recorder, 'parameter'>, constants: ReadonlyMap<string, Constant>): WeightValues {
  const value = (name: string): Value => {
    const constant = constants.get(name);
    if (constant === undefined) throw new RangeError(`weightValues: ${name} must have been loaded`);
    return g.parameter(name, constant);
  };
  const linear = (name: string): Linear<Value> =>
    ({ weight: value(`${name}.weight`), bias: constants.has(`${name}.bias`) ? value(`${name}.bias`) : null });
  return {
    weight: (name) => value(`${name}.weight`),
    linear,
    optionalLinear: (name) => (constants.has(`${name}.weight`) ? linear(name) : null),
    optionalWeight: (name) => (constants.has(`${name}.weight`) ? value(`${name}.weight`) : null),
  };
}

/** Norms and MLP of one layer. */
export function layerBody({ weight, linear }: WeightValues, names: LayerNames): DecoderLayerWeights<Value> {
  return { attentionNorm: weight(names.attentionNorm), mlpNorm: weight(names.mlpNorm), mlp: { gate: linear(names.gate), up: linear(names.up), down: linear(names.down) } };
}
