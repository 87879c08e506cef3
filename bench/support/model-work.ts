/** Operations and bytes of whole models: what their weights and caches demand, whatever graph computes it. */
import { decodeCost, type CacheFormat, type Model } from '../../lib/index.ts';
import { parameterCount, weightBytes } from './layer-model.ts';

/** Attention of one token over `context` cached ones, summed over the layers of a model. */
function attentionCost({ config, mla }: Model, context: number, cache: CacheFormat): { flops: number; bytes: number } {
  const layers = Array.from({ length: config.layers }, (_, layer) => {
    const latent = mla?.layers[layer];
    return decodeCost(config, latent === undefined ? null : { components: latent.frequencies.length, rank: latent.rank, latentGroups: latent.latentGroups ?? 1 }, context, cache);
  });
  return { flops: layers.reduce((sum, { flops }) => sum + flops, 0), bytes: layers.reduce((sum, { bytes }) => sum + bytes, 0) };
}

/** Weights that every token is multiplied with: all but an embedding that is no head as well. */
const usedParameters = (model: Model): number => parameterCount(model) - (model.config.tieEmbeddings ? 0 : model.config.vocab * model.config.hidden);

/** One token over `context` cached ones: every weight and every cached row once. */
export function stepWork(model: Model, context: number, cache: CacheFormat): { flops: number; bytes: number } {
  const attention = attentionCost(model, context, cache);
  return { flops: 2 * usedParameters(model) + attention.flops, bytes: weightBytes(model) + attention.bytes };
}

/** A prompt of `tokens`: every token through every weight but the head, and 4 h k FLOPs per head for every causal pair of source attention. */
export function promptWork(model: Model, tokens: number): { flops: number; bytes: number } {
  const { config } = model;
  const head = config.vocab * config.hidden;
  const pairs = (tokens * (tokens + 1)) / 2;
  return { flops: 2 * tokens * (usedParameters(model) - head) + 2 * head + config.layers * 4 * config.heads * config.headDim * pairs, bytes: weightBytes(model) };
}
