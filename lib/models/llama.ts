import type { ModelFamily } from './family.ts';

/** Llama 1 to 3, SmolLM 1 and 2, Mistral: pre-norm, SwiGLU, RoPE on whole heads. */
export const llama: ModelFamily = {
  embedding: 'model.embed_tokens',
  finalNorm: 'model.norm',
  head: (config) => (config.tieEmbeddings ? 'model.embed_tokens' : 'lm_head'),
  layer: (layer) => {
    const prefix = `model.layers.${layer}`;
    return {
      attentionNorm: `${prefix}.input_layernorm`,
      mlpNorm: `${prefix}.post_attention_layernorm`,
      query: `${prefix}.self_attn.q_proj`,
      key: `${prefix}.self_attn.k_proj`,
      value: `${prefix}.self_attn.v_proj`,
      output: `${prefix}.self_attn.o_proj`,
      queryNorm: null,
      keyNorm: null,
      gate: `${prefix}.mlp.gate_proj`,
      up: `${prefix}.mlp.up_proj`,
      down: `${prefix}.mlp.down_proj`,
    };
  },
  attentionBias: (config) => ({ qkv: config.attentionBias, output: config.attentionBias }),
  mlpBias: (config) => config.mlpBias,
};
