/**
 * Checkpoints of MHA2MLA's main branch (Hub names that end in -refactor): block `mha2mla` in config.json, q_proj with the
 * rotating rows of all heads first. Source: src/mha2mla/{arguments,patch_func}.py.
 */
import { z } from 'zod';
import { relayMha2Mla, type PairChoice } from './mha2mla.ts';
import type { ReleasedFormat } from './released.ts';

const schema = z.object({
  is_baseline: z.boolean().default(false),
  is_gqa2mha2mla: z.literal(false, 'must be false: repeated KV heads are not read').default(false),
  is_mla_from_scratch: z.literal(false, 'must be false: models trained from scratch are not read').default(false),
  model_name_or_path: z.string().nullish(),
  partial_rope_version: z.enum(['high', 'low', 'uniform', '2-norm']),
  qk_tensor_path: z.string().nullish(),
  /** DIMS per head: twice the pairs. */
  rope_dim_for_mla: z.int().positive().multipleOf(2),
  svd_init_method: z.string(),
  uniform_start_point: z.int().nonnegative().default(0),
});

export const mha2mlaMain: ReleasedFormat = {
  name: 'MHA2MLA (main branch)',
  recognises: (raw, checkpoint) => raw.mha2mla != null && [...checkpoint.tensors.keys()].some((name) => name.includes('.self_attn.kv_proj.')),
  async open(raw, checkpoint, directory, options) {
    const parsed = schema.safeParse(raw.mha2mla);
    if (!parsed.success) throw new TypeError(`openReleased: the mha2mla block of ${directory}/config.json must be valid: ${z.prettifyError(parsed.error)}`);
    const block = parsed.data;
    const count = block.rope_dim_for_mla / 2;
    const headDim = headDimOf(raw);
    const choices: Readonly<Record<typeof block.partial_rope_version, () => PairChoice>> = {
      high: () => ({ pairs: Array.from({ length: count }, (_, i) => i) }),
      low: () => ({ pairs: Array.from({ length: count }, (_, i) => headDim / 2 - count + i) }),
      uniform: () => ({ pairs: Array.from({ length: count }, (_, i) => block.uniform_start_point + (i * headDim) / block.rope_dim_for_mla) }),
      '2-norm': () => ({ count, table: block.qk_tensor_path ?? null }),
    };
    return relayMha2Mla(raw, checkpoint, directory, options, {
      format: 'MHA2MLA (main branch)', blocks: ['mha2mla'], strategy: block.partial_rope_version, choice: choices[block.partial_rope_version](),
      permutedQuery: true, source: block.model_name_or_path ?? null, factor: block.svd_init_method,
      names: (layer) => {
        const prefix = `model.layers.${layer}.self_attn`;
        const there = (name: string): string | null => (checkpoint.tensors.has(`${prefix}.kv_proj.${name}.weight`) ? `${prefix}.kv_proj.${name}` : null);
        return {
          query: `${prefix}.q_proj`, keyRope: `${prefix}.k_r_proj`, output: `${prefix}.o_proj`,
          down: there('down_kv'), keyDown: there('down_k'), valueDown: there('down_v'),
          keyUp: `${prefix}.kv_proj.up_k`, valueUp: `${prefix}.kv_proj.up_v`,
        };
      },
    });
  },
};

/** Head width as transformers derives it. */
function headDimOf(raw: Readonly<Record<string, unknown>>): number {
  const { head_dim: given, hidden_size: hidden, num_attention_heads: heads } = raw;
  return typeof given === 'number' ? given : Number(hidden) / Number(heads);
}
