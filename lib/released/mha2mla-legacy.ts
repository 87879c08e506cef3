/**
 * Checkpoints of MHA2MLA before its refactoring (Hub names without -refactor): blocks `RoPE` and `SVD` in config.json, q_proj
 * as in the source. Source: the repository's src before 2025-06, patch_func and modeling files.
 */
import { z } from 'zod';
import { relayMha2Mla, type PairChoice } from './mha2mla.ts';
import type { ReleasedFormat } from './released.ts';

const ropeSchema = z.object({
  partial_rope_version: z.int().min(1).max(5),
  /** PAIRS per head, here and below. */
  top_k_rope_dim: z.int().nonnegative().default(0),
  last_k_rope_dim: z.int().nonnegative().optional(),
  /** So spelt in the released Llama 2 checkpoints. */
  lask_k_rope_dim: z.int().nonnegative().optional(),
  uniform_start_point: z.int().nonnegative().default(0),
  /** DIMS between two that rotate. */
  uniform_step: z.int().positive().default(1),
  qk_tensor_path: z.string().nullish(),
});

const svdSchema = z.object({ method: z.int().min(1).max(7), low_rank: z.int().positive() });

const names = ['full', 'high', 'uniform', 'high-low', '2-norm', 'low'] as const; // by partial_rope_version

export const mha2mlaLegacy: ReleasedFormat = {
  name: 'MHA2MLA (legacy)',
  recognises: (raw, checkpoint) => raw.RoPE != null && [...checkpoint.tensors.keys()].some((name) => name.endsWith('.self_attn.W_k_r.weight')),
  async open(raw, checkpoint, directory, options) {
    const [rope, svd] = [ropeSchema.safeParse(raw.RoPE), svdSchema.safeParse(raw.SVD)];
    if (!rope.success) throw new TypeError(`openReleased: the RoPE block of ${directory}/config.json must be valid: ${z.prettifyError(rope.error)}`);
    if (!svd.success) throw new TypeError(`openReleased: the SVD block of ${directory}/config.json must be valid: ${z.prettifyError(svd.error)}`);
    const { partial_rope_version: version, top_k_rope_dim: top, last_k_rope_dim, lask_k_rope_dim, uniform_start_point: start, uniform_step: step, qk_tensor_path: table } = rope.data;
    const last = last_k_rope_dim ?? lask_k_rope_dim ?? 0;
    const { head_dim: given, hidden_size: hidden, num_attention_heads: heads } = raw;
    const half = (typeof given === 'number' ? given : Number(hidden) / Number(heads)) / 2;
    const range = (from: number, count: number): number[] => Array.from({ length: count }, (_, i) => from + i);
    const choice = (): PairChoice => {
      if (version === 4) return { count: top, table: table ?? null };
      if (version === 1) return { pairs: range(0, top) };
      if (version === 5) return { pairs: range(half - last, last) };
      if (version === 3) return { pairs: [...range(0, top), ...range(half - last, last)] };
      if (half % step !== 0 || start >= step) {
        throw new RangeError(`openReleased: uniform_step of ${directory}/config.json must divide the ${half} pairs of a head and exceed uniform_start_point, so that both members of a pair rotate, got ${step} and ${start}`);
      }
      return { pairs: range(0, half / step).map((i) => start + i * step) };
    };
    return relayMha2Mla(raw, checkpoint, directory, options, {
      format: 'MHA2MLA (legacy)', blocks: ['RoPE', 'SVD'], strategy: names[version] ?? 'unknown', choice: choice(), permutedQuery: false,
      source: typeof raw._name_or_path === 'string' ? raw._name_or_path : null, factor: `svd method ${svd.data.method}`,
      names: (layer) => {
        const prefix = `model.layers.${layer}.self_attn`;
        const separate = checkpoint.tensors.has(`${prefix}.W_down_v.weight`);
        return {
          query: `${prefix}.q_proj`, keyRope: `${prefix}.W_k_r`, output: `${prefix}.o_proj`,
          down: separate ? null : `${prefix}.W_down_k`, keyDown: separate ? `${prefix}.W_down_k` : null, valueDown: separate ? `${prefix}.W_down_v` : null,
          keyUp: `${prefix}.W_up_k`, valueUp: `${prefix}.W_up_v`,
        };
      },
    });
  },
};
