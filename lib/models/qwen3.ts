import type { ModelFamily } from './family.ts';
import { llama } from './llama.ts';

/** Qwen 3 (dense): Llama with RMSNorm on every query and key head before RoPE. */
export const qwen3: ModelFamily = {
  ...llama,
  layer: (layer) => ({
    ...llama.layer(layer),
    queryNorm: `model.layers.${layer}.self_attn.q_norm`,
    keyNorm: `model.layers.${layer}.self_attn.k_norm`,
  }),
  mlpBias: () => false,
};
