/**
 * DeepSeek's multi-head latent attention as transformers names it: what TransMLA writes, and dense DeepSeek V3 models.
 * One rope key is shared by all heads; each query head is [remainder n | rotating d]. Source: modeling_deepseek_v3.py of
 * transformers; TransMLA's mla.py.
 */
import { basename, join } from 'node:path';
import { z } from 'zod';
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { parseConfig } from '../checkpoint/config.ts';
import { mlaTensorName, type MlaConfig, type MlaExtra, type MlaLayerConfig, type MlaTensor } from '../models/mla-config.ts';
import { ropeFrequencies } from '../rope-frequencies.ts';
import { relaidCheckpoint, renamed, takenRows, type Relaid } from './relaid-checkpoint.ts';
import { without, type ReleasedFormat } from './released.ts';

/** Both classes leave the epsilon of their latent norms at the default, whatever rms_norm_eps says. */
const LATENT_NORM_EPS = 1e-6;

const count = z.int().positive();
const absent = (rule: string) => z.null(`must be absent: ${rule}`).optional();
const schema = z.object({
  architectures: z.tuple([z.enum(['LlamaMLAForCausalLM', 'DeepseekV3ForCausalLM'])]),
  num_hidden_layers: count,
  num_attention_heads: count,
  qk_rope_head_dim: count.multipleOf(2),
  qk_nope_head_dim: count,
  v_head_dim: count.multipleOf(2),
  kv_lora_rank: count,
  q_lora_rank: count.nullish(),
  rope_interleave: z.boolean().default(true),
  qk_latent_layernorm: z.boolean().default(true),
  max_position_embeddings: count.default(4096),
  n_routed_experts: z.int().nullish(),
  first_k_dense_replace: z.int().default(0),
  attn_logit_softcapping: absent('capped scores are not read'),
  final_logit_softcapping: absent('capped logits are not read'),
  sliding_window: z.int().nullish(),
  use_sliding_window: z.boolean().default(true),
});

/** Keys that a Llama config.json does not have or means otherwise. */
const ownKeys = [
  'auto_map', 'qk_rope_head_dim', 'qk_nope_head_dim', 'qk_head_dim', 'v_head_dim', 'kv_lora_rank', 'q_lora_rank', 'rope_interleave', 'qk_latent_layernorm',
  'attention_bias', 'n_routed_experts', 'n_shared_experts', 'first_k_dense_replace', 'moe_intermediate_size', 'moe_layer_freq', 'n_group', 'topk_group', 'topk_method',
  'num_experts_per_tok', 'norm_topk_prob', 'routed_scaling_factor', 'scoring_func', 'num_nextn_predict_layers', 'ep_size', 'aux_loss_alpha', 'seq_aux',
];

type Block = z.infer<typeof schema>;

export const deepseek: ReleasedFormat = {
  name: 'DeepSeek V3 (dense) and TransMLA',
  recognises: (raw) => raw.model_type === 'deepseek_v3',
  async open(raw, checkpoint, directory) {
    const file = join(directory, 'config.json');
    const parsed = schema.safeParse(raw);
    if (!parsed.success) throw new TypeError(`openReleased: ${file} must describe a dense model that is read here: ${z.prettifyError(parsed.error)}`);
    const block = parsed.data;
    const experts = block.architectures[0] === 'DeepseekV3ForCausalLM' && block.first_k_dense_replace < block.num_hidden_layers;
    if (experts) throw new TypeError(`openReleased: ${file}: first_k_dense_replace must be ${block.num_hidden_layers} (experts are not read), got ${block.first_k_dense_replace}`);
    if (block.sliding_window != null && block.use_sliding_window) throw new TypeError(`openReleased: ${file}: sliding_window must be null, got ${block.sliding_window}`);
    const heads = block.num_attention_heads;
    const plain = {
      ...without(raw, ...ownKeys), model_type: 'llama', architectures: ['LlamaForCausalLM'], max_position_embeddings: block.max_position_embeddings,
      num_key_value_heads: heads, head_dim: block.v_head_dim,
    };
    const config = parseConfig(plain, file);
    const { frequencies, attentionFactor } = ropeFrequencies(config.rope, block.qk_rope_head_dim);
    if (attentionFactor !== 1) throw new TypeError(`openReleased: ${file}: rope scaling must leave the scores as they are, got type ${config.rope.type} with factor ${attentionFactor}`);
    const layers = Array.from({ length: config.layers }, (_, layer) => relayLayer(checkpoint, layer, block, Array.from(frequencies)));
    const mla: MlaConfig = {
      version: 1, scale: 1 / Math.sqrt(block.qk_nope_head_dim + block.qk_rope_head_dim), layers: layers.map((layer) => layer.config),
      plan: { strategy: 'shared key', pairs: block.qk_rope_head_dim / 2 },
      factor: { strategy: 'shared latent', rank: block.kv_lora_rank, singularValues: 'none' },
      source: { name: basename(directory), architecture: block.architectures[0], fingerprint: 'unknown' },
    };
    return {
      format: block.architectures[0] === 'LlamaMLAForCausalLM' ? 'TransMLA' : 'DeepSeek V3 (dense)', raw: { ...plain, mla },
      checkpoint: relaidCheckpoint(checkpoint, layers.flatMap(({ relaid }) => relaid), (name) => !name.includes('.self_attn.')),
    };
  },
};

function relayLayer(base: Checkpoint, layer: number, block: Block, frequencies: number[]): { relaid: Relaid[]; config: MlaLayerConfig } {
  const { num_attention_heads: heads, qk_rope_head_dim: rope, qk_nope_head_dim: nope, v_head_dim: valueWidth, kv_lora_rank: rank } = block;
  const prefix = `model.layers.${layer}.self_attn`;
  const range = (from: number, length: number): number[] => Array.from({ length }, (_, i) => from + i);
  /** First members of all pairs, then second ones. */
  const halves = (from: number): number[] => range(0, rope).map((i) => from + (block.rope_interleave ? 2 * (i % (rope / 2)) + Math.floor(i / (rope / 2)) : i));
  const perHead = (width: number, rows: (start: number) => number[]): number[] => range(0, heads).flatMap((head) => rows(head * width));
  const lowRank = block.q_lora_rank ?? null;
  const query = lowRank === null ? 'q_proj' : 'q_b_proj';
  const rows: [MlaTensor | MlaExtra, string, number[]][] = [
    ['queryRope', query, perHead(nope + rope, (start) => halves(start + nope))],
    ['queryNope', query, perHead(nope + rope, (start) => range(start, nope))],
    ['keyRope', 'kv_a_proj_with_mqa', halves(rank)],
    ['down', 'kv_a_proj_with_mqa', range(0, rank)],
    ['keyUp', 'kv_b_proj', perHead(nope + valueWidth, (start) => range(start, nope))],
    ['valueUp', 'kv_b_proj', perHead(nope + valueWidth, (start) => range(start + nope, valueWidth))],
  ];
  const whole: [MlaTensor | MlaExtra, string][] = [
    ['output', 'o_proj'],
  ];
  if (lowRank !== null) whole.push(['queryDown', 'q_a_proj']);
  if (block.qk_latent_layernorm) whole.push(['latentNorm', 'kv_a_layernorm']);
  if (block.qk_latent_layernorm && lowRank !== null) whole.push(['queryDownNorm', 'q_a_layernorm']);
  const relaid: Relaid[] = [];
  for (const ending of ['weight', 'bias']) {
    const there = (from: string): boolean => ending === 'weight' || base.tensors.has(`${prefix}.${from}.bias`);
    for (const [to, from, taken] of rows) if (there(from)) relaid.push(takenRows(base, `${mlaTensorName(layer, to)}.${ending}`, `${prefix}.${from}.${ending}`, taken));
    for (const [to, from] of whole) if (there(from)) relaid.push(renamed(base, `${mlaTensorName(layer, to)}.${ending}`, `${prefix}.${from}.${ending}`));
  }
  return {
    relaid,
    config: {
      rank, frequencies, nopeWidth: nope,
      ...(lowRank === null ? {} : { queryRank: lowRank }),
      ...(block.qk_latent_layernorm ? { latentNormEps: LATENT_NORM_EPS } : {}),
      ...(block.qk_latent_layernorm && lowRank !== null ? { queryNormEps: LATENT_NORM_EPS } : {}),
    },
  };
}
