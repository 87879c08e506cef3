/** Everything that decides the embedded model, beside the texts. */
import type { ScheduleName } from '../../lib/index.ts';

export const SEED = 20261124;
/** Tokens of the vocabulary: the end of a text, and the pieces of the byte-pair encoding. */
export const VOCABULARY = 2048;

/** config.json: 1.9 million parameters. */
export const configuration = {
  architectures: ['LlamaForCausalLM'], model_type: 'llama', hidden_size: 160, num_hidden_layers: 6, num_attention_heads: 4, num_key_value_heads: 2, head_dim: 32,
  intermediate_size: 432, hidden_act: 'silu', max_position_embeddings: 1024, rope_theta: 10_000, rms_norm_eps: 1e-5, vocab_size: VOCABULARY, tie_word_embeddings: true,
  attention_bias: false, mlp_bias: false, bos_token_id: null, eos_token_id: 0, initializer_range: 0.02, dtype: 'float32',
};

/** Shares of the sequences: a verse is worth less than a sentence, to a reader of today. */
export const shares = { novels: 0.55, bible: 0.25, jargon: 0.2 } as const;

export interface Stage {
  readonly name: string;
  readonly sequenceLength: number;
  readonly batch: number;
  readonly steps: number;
  readonly warmupSteps: number;
  readonly learningRate: number;
  readonly schedule: ScheduleName;
}

/** Short sequences first, which cost less; then the whole context, while the rate falls to nothing. */
export const stages: readonly Stage[] = [
  { name: 'short', sequenceLength: 256, batch: 8, steps: 1100, warmupSteps: 100, learningRate: 3e-3, schedule: 'constant' },
  { name: 'long', sequenceLength: 1024, batch: 2, steps: 450, warmupSteps: 20, learningRate: 3e-3, schedule: 'linear' },
];

/** Sums are split among threads: with another number of them the weights differ in their last bits. */
export const THREADS = 1;
