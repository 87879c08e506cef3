/** One source layer over one whole window, with the sums that calibration takes on the way. */
import {
  attendedInputSums, attentionMass, decoderLayer, distanceSums, momentSums, outputSensitivitySums, pairNormSums, softmaxOverSegments,
} from '../../kernels/index.ts';
import { recorder, type Value } from '../graph/record.ts';
import type { Constant, Subgraph } from '../graph/subgraph.ts';
import { sourceAttentionParts, type SourceAttention } from '../models/decoder-attention.ts';
import { decoderCache } from '../models/decoder-cache.ts';
import { layerBody, weightValues } from '../models/decoder-weights.ts';
import type { Model } from '../models/model.ts';

/**
 * - next [1, T, d]: the hidden state behind the layer; attention [1, T, d]: the attention's output;
 * - second [d, d], first [d]: sums of x x^T and x over the attention's inputs x;
 * - queryNorms [h, k], keyNorms [g, k]: sums of pair norms;
 * - queryMoments [h, n, n], keyMoment [g n, g n]: sums of q_h q_h^T per head and of k k^T over all KV heads, before RoPE;
 * - attended [g, r, d], distances [g, r, T], sensitivity [g, r]: see kernels/attention-statistics.ts.
 */
export type LayerOutput = 'next' | 'attention' | 'second' | 'first' | 'queryNorms' | 'keyNorms' | 'queryMoments' | 'keyMoment' | 'attended' | 'distances' | 'sensitivity';

/** Queries that go through attention at once. Measured best on 1024 tokens of SmolLM2-135M, flat between 64 and 256. */
export const BLOCK_TOKENS = 256;

/** hidden [1, T, d] -> the outputs asked for; nothing else is computed. `constants` come from loadLayerWeights. */
export function sourceLayerSubgraph(model: Model, constants: ReadonlyMap<string, Constant>, layer: number, window: number, outputs: readonly LayerOutput[], block = BLOCK_TOKENS): Subgraph {
  const { config, family } = model;
  const { heads, kvHeads, headDim, hidden: width } = config;
  const g = recorder(`calibration-${layer}`);
  const hidden = g.input({ name: 'hidden', dtype: 'float32', shape: [1, window, width] });
  const positions = g.constant({ dtype: 'int64', shape: [window], data: BigInt64Array.from({ length: window }, (_, i) => BigInt(i)) });
  const weights = weightValues(g, constants);
  const mask = g.causalMask(positions, positions, config.window);
  const parts = sourceAttentionParts({ g, model, weights, positions, cache: decoderCache(g, [], null), segmentation: { join: false, masks: [mask], block }, positionCount: window });
  const body = layerBody(weights, family.layer(layer));
  const { hidden: next, rows: { x, attention } } = decoderLayer(g, hidden, body, config.normEps, (normed) => {
    const made = parts(layer, normed);
    return { output: made.output, rows: { x: normed, attention: made } };
  });
  const grouped = (a: Value): Value => g.reshape(a, [1, window, kvHeads, heads / kvHeads, headDim]);
  /** The attention's weights once more: equal nodes are recorded once. */
  const attentionWeights = ({ query, rows }: SourceAttention): Value => {
    const scores = g.einsum('bsgrk,btgk->bgrst', g.scale(grouped(query), model.scale), rows.key);
    return softmaxOverSegments(g, [scores], [mask])[0] ?? scores;
  };
  const mass = (): Value => attentionMass(g, attentionWeights(attention));
  const makers: Readonly<Record<LayerOutput, () => Value>> = {
    next: () => next,
    attention: () => attention.output,
    second: () => momentSums(g, x).second,
    first: () => momentSums(g, x).first,
    queryNorms: () => pairNormSums(g, attention.still.query),
    keyNorms: () => pairNormSums(g, attention.still.key),
    queryMoments: () => g.einsum('bshi,bshj->hij', attention.still.query, attention.still.query),
    keyMoment: () => momentSums(g, g.reshape(attention.still.key, [1, window, kvHeads * headDim])).second,
    attended: () => attendedInputSums(g, mass(), x),
    distances: () => distanceSums(g, attentionWeights(attention)),
    sensitivity: () => {
      const output = g.reshape(weights.linear(family.layer(layer).output).weight, [width, kvHeads, heads / kvHeads, headDim]);
      return outputSensitivitySums(g, mass(), attention.rows.value, grouped(attention.attended), output);
    },
  };
  return g.finish(Object.fromEntries(outputs.map((name) => [name, makers[name]()])));
}
