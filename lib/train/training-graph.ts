/** A model's decoder as training runs it: whole sequences, nothing cached, weights as inputs, a loss at the end. */
import { at } from '../../kernels/at.ts';
import { decoderLayer, embedding, nextTokenLoss, regressionLoss, rmsNorm, sampledTeacherLoss, teacherLoss, type Segmentation } from '../../kernels/index.ts';
import { recorder, type Recorder, type Value } from '../graph/record.ts';
import type { Constant, Subgraph } from '../graph/subgraph.ts';
import { latentAttention, sourceAttention, type DecoderContext, type LayerAttention } from '../models/decoder-attention.ts';
import { decoderCache } from '../models/decoder-cache.ts';
import { recordLayers, type DecoderForm } from '../models/decoder.ts';
import { layerBody, weightValues, type WeightValues } from '../models/decoder-weights.ts';
import type { Model } from '../models/model.ts';
import type { Weights } from './trainer.ts';

export interface SequenceShape {
  /** Sequences per run. */
  readonly batch: number;
  /** Tokens of a sequence. */
  readonly sequenceLength: number;
  /** Names of the weights that learn: the others become constants of the graph, which the engine lays out once for fast products. Default: all are inputs. */
  readonly trainable?: readonly string[] | undefined;
}

export interface TeacherShape extends SequenceShape {
  /**
   * Only so many entries of the vocabulary take part: the inputs vocabulary_ids int64 [entries] and vocabulary_log_copies
   * [entries] name them and say the log of how many each stands for; ids are places among them, embedding and head of
   * the student inputs of those rows, [entries, d]. See `vocabularySampler`. Default: all.
   */
  readonly entries?: number | undefined;
}

/** Names of those inputs. */
export const VOCABULARY_IDS = 'vocabulary_ids', VOCABULARY_LOG_COPIES = 'vocabulary_log_copies';
/** Weights with a row for every entry of the vocabulary. */
export const vocabularyWeights = ({ family, config }: Model): string[] => [...new Set([family.embedding, family.head(config)].map((name) => `${name}.weight`))];

/** Logits of at most so many elements are made at once: 2^25 are 128 MiB. */
const LOGITS_AT_ONCE = 2 ** 25;
/** Queries go through attention in blocks of so many tokens; see Segmentation.block. */
const BLOCK_TOKENS = 128;

/** What every graph here starts from. */
interface Opened {
  readonly g: Recorder;
  readonly weights: WeightValues;
  readonly context: DecoderContext;
  readonly form: DecoderForm;
  /** The entries of the vocabulary that take part; null: all. */
  readonly entries: Value | null;
}

function open(model: Model, tensors: ReadonlyMap<string, Constant>, name: string, { sequenceLength, trainable, entries: count }: TeacherShape): Opened {
  const g = recorder(`${model.config.modelType}-${name}`);
  const entries = count === undefined ? null : g.input({ name: VOCABULARY_IDS, dtype: 'int64', shape: [count] });
  const known = new Map<string, Value>();
  const learns = trainable === undefined ? null : new Set(trainable);
  const inPart = new Set(vocabularyWeights(model));
  const parameter = (weight: string, constant: Constant): Value => {
    const { dtype, shape } = constant;
    if (entries === null || !inPart.has(weight)) return learns?.has(weight) === false ? g.parameter(weight, constant) : g.input({ name: weight, dtype, shape });
    return learns?.has(weight) === false ? g.gather(g.parameter(weight, constant), entries) : g.input({ name: weight, dtype, shape: [...g.shape(entries), ...shape.slice(1)] });
  };
  const weights = weightValues({
    parameter(weight, constant) {
      const value = known.get(weight) ?? parameter(weight, constant);
      known.set(weight, value);
      return value;
    },
  }, tensors);
  const positions = g.constant({ dtype: 'int64', shape: [sequenceLength], data: BigInt64Array.from({ length: sequenceLength }, (_, i) => BigInt(i)) });
  const segmentation: Segmentation<Value> = { join: false, masks: [g.causalMask(positions, positions, model.config.window)], ...(sequenceLength > BLOCK_TOKENS ? { block: BLOCK_TOKENS } : {}) };
  const context: DecoderContext = { g, model, weights, positions, cache: decoderCache(g, [], null), segmentation, positionCount: sequenceLength };
  return { g, weights, context, form: model.mla === null ? 'source' : 'expanded', entries };
}


const attentionOf = (context: DecoderContext, form: DecoderForm): LayerAttention => (form === 'source' ? sourceAttention(context) : latentAttention(context, form));

const hiddenPort = (layer: number): string => `hidden.${layer}`;
export const normedPort = (layer: number): string => `normed.${layer}`;
export const attentionPort = (layer: number): string => `attention.${layer}`;
const all = (layers: number): number[] => Array.from({ length: layers }, (_, layer) => layer);
/** Of a graph through all layers. */
export const hiddenPorts = ({ config }: Pick<Model, 'config'>): string[] => all(config.layers).map(hiddenPort);

/** Inputs of the tokens: ids int64 [b, s]. */
function recordDecoder({ g, weights, context, form }: Opened, model: Model, { batch, sequenceLength }: SequenceShape): { last: Value; states: ReturnType<typeof recordLayers>['layers'] } {
  const ids = g.input({ name: 'ids', dtype: 'int64', shape: [batch, sequenceLength] });
  const { hidden, layers } = recordLayers(context, embedding(g, ids, weights.weight(model.family.embedding)), form);
  return { last: rmsNorm(g, hidden, weights.weight(model.family.finalNorm), model.config.normEps), states: layers };
}

const chunkOf = (vocab: number): number => Math.max(1, Math.floor(LOGITS_AT_ONCE / vocab));

/** Hidden states in front of every layer, by port: what rematerialisation keeps, and where a search for NaN looks. */
const hiddenStates = (states: readonly { readonly input: Value }[]): Record<string, Value> =>
  Object.fromEntries(states.map(({ input }, layer) => [hiddenPort(layer), input]));

/** ids, targets int64 [b, s] and the weights that are inputs -> loss [1, 1, 1], the mean nats of the targets; hidden.N [b, s, d]. */
export function nextTokenSubgraph(model: Model, tensors: Weights, shape: SequenceShape): Subgraph {
  const opened = open(model, tensors, 'next-token', shape);
  const { g, weights } = opened;
  const { last, states } = recordDecoder(opened, model, shape);
  const targets = g.input({ name: 'targets', dtype: 'int64', shape: [shape.batch, shape.sequenceLength] });
  return g.finish({ loss: nextTokenLoss(g, last, weights.weight(model.family.head(model.config)), targets, chunkOf(model.config.vocab)), ...hiddenStates(states) });
}

/**
 * ids, the weights, teacher_hidden [b, s, d'] (states.last of the teacher) and teacher_head [vocab, d'] -> loss
 * [1, 1, 1], the mean KL to the teacher's next-token distribution in nats, with `entries` by `sampledTeacherLoss`; hidden.N.
 */
export function teacherSubgraph(model: Model, tensors: Weights, shape: TeacherShape, teacher: Model): Subgraph {
  const opened = open(model, tensors, 'teacher', shape);
  const { g, weights, entries } = opened;
  const { last, states } = recordDecoder(opened, model, shape);
  const hidden = g.input({ name: 'teacher_hidden', dtype: 'float32', shape: [shape.batch, shape.sequenceLength, teacher.config.hidden] });
  const head = g.input({ name: 'teacher_head', dtype: 'float32', shape: [teacher.config.vocab, teacher.config.hidden] });
  const student = { hidden: last, head: weights.weight(model.family.head(model.config)) };
  const loss = entries === null
    ? teacherLoss(g, student, { hidden, head }, chunkOf(model.config.vocab))
    : sampledTeacherLoss(g, student, { hidden, head: g.gather(head, entries) }, g.input({ name: VOCABULARY_LOG_COPIES, dtype: 'float32', shape: g.shape(entries) }), chunkOf(shape.entries ?? 1));
  return g.finish({ loss, ...hiddenStates(states) });
}

/** Ports that `statesSubgraph` can give. */
export interface StatesWanted {
  /** The normed last hidden state, `last` [b, s, d]. */
  readonly last?: boolean;
  /** What attention reads and gives in every layer: normed.N and attention.N [b, s, d]. */
  readonly attention?: boolean;
}

/** ids and the weights -> the states asked for: what a teacher, or a student so far, thinks of a batch. */
export function statesSubgraph(model: Model, tensors: Weights, shape: SequenceShape, wanted: StatesWanted): Subgraph {
  const opened = open(model, tensors, 'states', shape);
  const { last, states } = recordDecoder(opened, model, shape);
  const attention = states.flatMap((state, layer): [string, Value][] => [[normedPort(layer), state.normed], [attentionPort(layer), state.attention]]);
  return opened.g.finish({ ...(wanted.last === true ? { last } : {}), ...(wanted.attention === true ? Object.fromEntries(attention) : {}) });
}

export interface RegressionOptions extends SequenceShape {
  /** Layers that learn. Default all; a model larger than memory is healed layer after layer. */
  readonly layers?: readonly number[];
  /** Weight of every row of a sequence, [s]. Default `sinkRowWeights`. */
  readonly rowWeights?: Float32Array;
}

/** 32 for the first four rows, 1 for the others: the attention sink must not drift. */
export const sinkRowWeights = (sequenceLength: number): Float32Array => Float32Array.from({ length: sequenceLength }, (_, row) => (row < 4 ? 32 : 1));

/**
 * normed.N, attention.N [b, s, d] of the layers and their attention weights -> loss [1, 1, 1], the mean over layers of
 * `regressionLoss`. Layers do not touch each other: each learns as if it were alone.
 */
export function regressionSubgraph(model: Model, tensors: Weights, options: RegressionOptions): Subgraph {
  const { batch, sequenceLength, layers = all(model.config.layers), rowWeights = sinkRowWeights(sequenceLength) } = options;
  if (rowWeights.length !== sequenceLength) throw new RangeError(`regressionSubgraph: rowWeights must have ${sequenceLength} numbers, got ${rowWeights.length}`);
  const { g, context, form } = open(model, tensors, 'regression', options);
  const attention = attentionOf(context, form);
  const rows = g.constant({ dtype: 'float32', shape: [sequenceLength, 1], data: rowWeights });
  const losses = layers.map((layer) => {
    const port = (name: string): Value => g.input({ name, dtype: 'float32', shape: [batch, sequenceLength, model.config.hidden] });
    return regressionLoss(g, attention(layer, port(normedPort(layer))).output, port(attentionPort(layer)), rows);
  });
  return g.finish({ loss: g.scale(losses.slice(1).reduce((a, b) => g.add(a, b), at(losses, 0)), 1 / losses.length) });
}

/**
 * One layer alone. hidden [b, s, d] in front of it, target [b, s, d] -> attention and next [b, s, d], its attention's output
 * and the hidden state behind it; loss [1, 1, 1], the `regressionLoss` of its attention's output to the target.
 */
export function layerSubgraph(model: Model, tensors: ReadonlyMap<string, Constant>, layer: number, shape: SequenceShape, rowWeights = sinkRowWeights(shape.sequenceLength)): Subgraph {
  const { g, weights, context, form } = open(model, tensors, `layer-${layer}`, shape);
  const input = (name: string): Value => g.input({ name, dtype: 'float32', shape: [shape.batch, shape.sequenceLength, model.config.hidden] });
  const attention = attentionOf(context, form);
  const { hidden: next, rows: output } = decoderLayer(g, input('hidden'), layerBody(weights, model.family.layer(layer)), model.config.normEps, (normed) => {
    const made = attention(layer, normed).output;
    return { output: made, rows: made };
  });
  const rows = g.constant({ dtype: 'float32', shape: [shape.sequenceLength, 1], data: rowWeights });
  return g.finish({ next, attention: output, loss: regressionLoss(g, output, input('target'), rows) });
}
