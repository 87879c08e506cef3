/**
 * The whole decoder as one subgraph, with source attention or latent attention in either form.
 *
 * Inputs: ids int64 [1, s]; positions int64 [s]; past_positions int64 [p] where a mask needs them; targets int64 [1, s]
 * for `nll`; past.N.PART float32 [1, p, ...row] per cached part. Outputs: logits [1, s, vocab] (`logits`) or of the
 * last token only [1, 1, vocab] (`last`), or nll [1, s, 1] in nats (`nll`); present.N.PART [1, s, ...row], the new rows.
 * An appended graph may take past rows and their positions in multiples (`rowMultiple`).
 * With `sequences` the s tokens are one of each sequence, and inputs past.N.PART.Q and past_positions.Q those of sequence Q.
 */
import { decoderLayer, embedding, logits, negativeLogLikelihood, rmsNorm, type LatentForm, type Segmentation } from '../../kernels/index.ts';
import { at } from '../../kernels/at.ts';
import { mulDims, subDims } from '../graph/dims.ts';
import { recorder, type Recorder, type Value } from '../graph/record.ts';
import type { Constant, Dim, Subgraph } from '../graph/subgraph.ts';
import { cacheLayout, eachSequence, latentCachedRows, ofSequence, rowMultiple, sourceCachedRows, type CachedRows, type CacheFormat, type CachePart } from './cache-layout.ts';
import { latentAttention, sourceAttention, type DecoderContext } from './decoder-attention.ts';
import { decoderCache } from './decoder-cache.ts';
import { layerBody, weightValues } from './decoder-weights.ts';
import type { Model } from './model.ts';

export type DecoderForm = 'source' | LatentForm;
export type DecoderOutput = 'logits' | 'last' | 'nll';

export interface DecoderOptions {
  readonly form: DecoderForm;
  /** Join cached and current rows (prefill) or keep them apart (decode); see kernels/segments.ts. */
  readonly join: boolean;
  /** The cached rows hold the current tokens' too: see kernels/segments.ts and DecoderCacheOptions. Default false. */
  readonly appended?: boolean;
  readonly output: DecoderOutput;
  /** Tokens per run: the symbol `s`, or a number. One token needs no mask and fewer nodes. Default 's'. */
  readonly tokens?: number;
  /** The tokens belong to so many sequences, one each, in the split form. Default: all to one. */
  readonly sequences?: number;
  /** How rows lie in the cache. Default 'f32'. */
  readonly cache?: CacheFormat;
  /** Longest position plus one; sizes the tables of angles, and decides how the cache is laid out. */
  readonly positions: number;
}

/** The forms a model can take. */
export const formsOf = (model: Pick<Model, 'mla'>): readonly DecoderForm[] => (model.mla === null ? ['source'] : ['expanded', 'absorbed']);

/** The rows a model caches, and the arrays that hold them in a format, for contexts of at most `contextTokens` (default: any). */
export const cachedRowsOf = ({ config, mla }: Pick<Model, 'config' | 'mla'>, format: CacheFormat, contextTokens?: number): CachedRows[] =>
  (mla === null ? sourceCachedRows(config) : latentCachedRows({ layers: mla.layers, heads: config.heads }, format, contextTokens));
export const cacheLayoutOf = (model: Pick<Model, 'config' | 'mla'>, format: CacheFormat = 'f32', contextTokens?: number): CachePart[] =>
  cacheLayout(cachedRowsOf(model, format, contextTokens), format);

/** Records the decoder. `constants` come from loadDecoderWeights. Errors: a form the model cannot take. */
export function buildDecoder(model: Model, constants: ReadonlyMap<string, Constant>, options: DecoderOptions): Subgraph {
  const { config, family } = model;
  const { form, join, output, sequences, tokens = sequences ?? 's', appended = false } = options;
  if (!formsOf(model).includes(form)) throw new RangeError(`buildDecoder: form must be one of ${formsOf(model)} for ${model.path}, got ${form}`);
  if (sequences !== undefined && (join || appended || tokens !== sequences || output === 'last')) {
    throw new RangeError(`buildDecoder: several sequences take the split form, one token each, and output logits or nll, got ${JSON.stringify({ sequences, tokens, join, appended, output })}`);
  }
  const g = recorder(`${config.modelType}-${form}-${appended ? 'appended' : join ? 'joined' : 'split'}-${output}`);
  const ids = g.input({ name: 'ids', dtype: 'int64', shape: [1, tokens] });
  const positions = g.input({ name: 'positions', dtype: 'int64', shape: [tokens] });
  const rows = cachedRowsOf(model, options.cache ?? 'f32', options.positions), multiple = appended ? rowMultiple(rows) : 1;
  const needsMask = join || config.window !== null || (appended && tokens !== 1) || multiple > 1;
  const pastPositions = needsMask ? eachSequence(sequences).map((q) => g.input({ name: ofSequence('past_positions', q), dtype: 'int64', shape: [mulDims(multiple, ofSequence('p', q))] })) : null;
  const targets = output === 'nll' ? g.input({ name: 'targets', dtype: 'int64', shape: [1, tokens] }) : null;
  const weights = weightValues(g, constants);
  const context: DecoderContext = {
    g, model, weights, positions, positionCount: options.positions,
    cache: decoderCache(g, rows, options.cache ?? 'f32', { appended, multiple, sequences }),
    segmentation: appended ? appendedMask(g, positions, pastPositions?.[0] ?? null, config.window) : decoderMasks(g, positions, pastPositions, join, config.window, sequences ?? 1),
  };
  const { hidden, rows: newRows } = recordLayers(context, embedding(g, ids, weights.weight(family.embedding)), form);
  const normed = rmsNorm(g, output === 'last' ? lastToken(g, hidden, tokens) : hidden, weights.weight(family.finalNorm), config.normEps);
  const scores = logits(g, normed, weights.weight(family.head(config)));
  return g.finish(targets === null ? { logits: scores, ...newRows } : { nll: negativeLogLikelihood(g, scores, targets), ...newRows });
}

/** What one layer did: hidden states in front of it, the normed ones that its attention read, and the attention's output. */
export interface LayerStates {
  readonly input: Value;
  readonly normed: Value;
  readonly attention: Value;
}

/** Records all layers on embedded tokens [b, s, d]: the hidden state behind the last, new cache rows, and the states on the way. */
export function recordLayers(context: DecoderContext, embedded: Value, form: DecoderForm): { hidden: Value; rows: Readonly<Record<string, Value>>; layers: readonly LayerStates[] } {
  const { g, model: { config, family }, weights } = context;
  const attention = form === 'source' ? sourceAttention(context) : latentAttention(context, form);
  const rows: Record<string, Value> = {};
  const layers: LayerStates[] = [];
  let hidden = embedded;
  for (let layer = 0; layer < config.layers; layer++) {
    const input = hidden;
    const body = layerBody(weights, family.layer(layer));
    const result = decoderLayer(g, hidden, body, config.normEps, (normed) => {
      const { output, rows: own } = attention(layer, normed);
      layers.push({ input, normed, attention: output });
      return { output, rows: own };
    });
    hidden = result.hidden;
    Object.assign(rows, result.rows);
  }
  return { hidden, rows, layers };
}

/** [1, s, d] -> [1, 1, d]. */
const lastToken = (g: Recorder, hidden: Value, tokens: Dim): Value => (tokens === 1 ? hidden : at(g.split(hidden, 1, [subDims(tokens, 1), 1]), 1));

function decoderMasks(g: Recorder, positions: Value, pastPositions: readonly Value[] | null, join: boolean, window: number | null, sequences: number): Segmentation<Value> {
  const past = pastPositions?.[0];
  if (join && past !== undefined) {
    return { join, masks: [g.causalMask(positions, g.concat(0, [past, positions]), window)] };
  }
  // Without a window every cached row is visible, and a token always sees itself: no mask is spent on either.
  if (sequences > 1) {
    const own = pastPositions === null ? [] : g.split(positions, 0, pastPositions.map(() => 1));
    return { join, masks: Array.from({ length: sequences }, (_, q) => (pastPositions === null ? null : g.causalMask(at(own, q), at(pastPositions, q), window))).flatMap((mask) => [mask, null]) };
  }
  const current = at(positions.shape, 0) === 1 ? null : g.causalMask(positions, positions, window);
  return { join, masks: [past === undefined ? null : g.causalMask(positions, past, window), current] };
}

/** One segment that ends with the current tokens; `keyPositions` are those of all its rows. One token sees all without a window. */
function appendedMask(g: Recorder, positions: Value, keyPositions: Value | null, window: number | null): Segmentation<Value> {
  return { join: false, appended: true, masks: [keyPositions === null ? null : g.causalMask(positions, keyPositions, window)] };
}
