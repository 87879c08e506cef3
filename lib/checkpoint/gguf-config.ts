/**
 * GGUF metadata to the same configuration a Hugging Face directory has: first as a config.json object, which can be
 * written beside a converted model, then through the one parser.
 * Source: docs/gguf.md of the ggml repository; convert_hf_to_gguf.py of llama.cpp for rope_freqs.
 */
import { ropeFrequencies } from '../rope-frequencies.ts';
import type { RopeConfig } from '../rope-frequencies.ts';
import { parseConfig } from './config-json.ts';
import type { ModelConfig } from './config-json.ts';
import { ggufArchitecture, ROPE_FACTORS } from './gguf-names.ts';
import { ggufNumber, ggufString } from './gguf.ts';
import type { GgufFile } from './gguf.ts';

/** Metadata that would change the arithmetic in ways the models here do not have. */
const unsupported = ['expert_count', 'attention.scale', 'logit_scale', 'residual_scale', 'embedding_scale'];

/** Llama 3.1 to 3.3: all releases share these and differ in the factor only. */
const LLAMA3_ROPE = { low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 };

/**
 * The configuration of a GGUF file of a known architecture. `ropeFactors` are the values of its rope_freqs.weight, null
 * when it has none; they divide the RoPE frequencies one by one.
 * Errors: an unknown architecture, missing or unsupported metadata, rope factors of no known scaling.
 */
export function configFromGguf(file: GgufFile, ropeFactors: Float32Array | null = null): ModelConfig {
  const { path, metadata, tensors } = file;
  const refuse = (rule: string): Error => new Error(`configFromGguf: ${path}: ${rule}`);
  const { key: architecture, modelType, className } = ggufArchitecture(path, metadata);
  const number = (key: string): number | null => ggufNumber(metadata, `${architecture}.${key}`);
  const needed = (key: string): number => {
    const value = number(key);
    if (value === null) throw refuse(`${architecture}.${key} must be given`);
    return value;
  };
  for (const key of unsupported) {
    const value = number(key) ?? 0;
    if (value !== 0) throw refuse(`${architecture}.${key} must be absent or 0, got ${value}`);
  }
  const names = new Set(tensors.map((tensor) => tensor.name));
  if (names.has(ROPE_FACTORS) !== (ropeFactors !== null)) {
    throw refuse(`the values of ${ROPE_FACTORS} must be given exactly when the file has that tensor`);
  }
  const hidden = needed('embedding_length');
  const heads = needed('attention.head_count');
  const headDim = number('attention.key_length') ?? hidden / heads;
  for (const key of ['attention.value_length', 'rope.dimension_count']) {
    const width = number(key) ?? headDim;
    if (width !== headDim) throw refuse(`${architecture}.${key} must equal the head width ${headDim}, got ${width}`);
  }
  const base = shortest(number('rope.freq_base') ?? 10000);
  const window = number('attention.sliding_window') || null;
  if (window !== null && modelType !== 'llama') throw refuse(`${architecture}.attention.sliding_window must be absent or 0, got ${window}`);
  const raw = {
    // llama.cpp files Mistral under llama; a window is what tells them apart.
    ...(window === null
      ? { architectures: [className], model_type: modelType }
      : { architectures: ['MistralForCausalLM'], model_type: 'mistral', sliding_window: window }),
    hidden_size: hidden,
    intermediate_size: needed('feed_forward_length'),
    num_hidden_layers: needed('block_count'),
    num_attention_heads: heads,
    num_key_value_heads: number('attention.head_count_kv') ?? heads,
    head_dim: headDim,
    vocab_size: tensors.find((tensor) => tensor.name === 'token_embd.weight')?.shape[0] ?? needed('vocab_size'),
    rms_norm_eps: shortest(needed('attention.layer_norm_rms_epsilon')),
    max_position_embeddings: needed('context_length'),
    tie_word_embeddings: !names.has('output.weight'),
    hidden_act: 'silu',
    attention_bias: names.has('blk.0.attn_q.bias'),
    mlp_bias: names.has('blk.0.ffn_gate.bias'),
    rope_theta: base,
    rope_scaling: ropeFactors === null ? scalingFromMetadata(file, architecture, refuse) : llama3Scaling(ropeFactors, base, refuse),
    bos_token_id: ggufNumber(metadata, 'tokenizer.ggml.bos_token_id'),
    eos_token_id: stopTokens(file),
    torch_dtype: 'float32',
  };
  return parseConfig(raw, path);
}

/** End of text and end of turn: one number when they are the same. */
function stopTokens({ metadata }: GgufFile): number | number[] | null {
  const ids = ['eos_token_id', 'eot_token_id'].flatMap((key) => ggufNumber(metadata, `tokenizer.ggml.${key}`) ?? []);
  const unique = [...new Set(ids)];
  return unique.length > 1 ? unique : (unique[0] ?? null);
}

function scalingFromMetadata({ metadata }: GgufFile, architecture: string, refuse: (rule: string) => Error): object | null {
  const key = `${architecture}.rope.scaling`;
  const factor = ggufNumber(metadata, `${key}.factor`) ?? ggufNumber(metadata, `${architecture}.rope.scale_linear`) ?? 1;
  const type = ggufString(metadata, `${key}.type`) ?? (factor === 1 ? 'none' : 'linear');
  if (type === 'none') return null;
  if (type === 'linear') return { rope_type: 'linear', factor: shortest(factor) };
  if (type !== 'yarn') throw refuse(`${key}.type must be none, linear or yarn, got ${type}`);
  const original = ggufNumber(metadata, `${key}.original_context_length`);
  const tuned = ['attn_factor', 'yarn_attn_factor', 'yarn_ext_factor', 'yarn_log_multiplier', 'yarn_beta_fast', 'yarn_beta_slow'];
  const given = tuned.map((name) => `${key}.${name}`).find((name) => metadata.has(name));
  if (given !== undefined) throw refuse(`${given} must be absent`);
  if (original === null) throw refuse(`${key}.original_context_length must be given`);
  return { rope_type: 'yarn', factor: shortest(factor), original_max_position_embeddings: original };
}

/** llama.cpp stores Llama 3's scaling as its result, one divisor per pair; the parameters are found and checked here. */
function llama3Scaling(ropeFactors: Float32Array, base: number, refuse: (rule: string) => Error): object | null {
  const factor = shortest(Math.max(...ropeFactors));
  if (ropeFactors.every((divisor) => divisor === 1)) return null;
  const headDim = 2 * ropeFactors.length;
  const plain = ropeFrequencies({ type: 'default', base }, headDim).frequencies;
  const llama3: RopeConfig = {
    type: 'llama3',
    base,
    factor,
    lowFreqFactor: LLAMA3_ROPE.low_freq_factor,
    highFreqFactor: LLAMA3_ROPE.high_freq_factor,
    originalMaxPositions: LLAMA3_ROPE.original_max_position_embeddings,
  };
  const scaled = ropeFrequencies(llama3, headDim).frequencies;
  // The divisors went through float32, and so did the frequencies they were made of.
  const other = ropeFactors.findIndex((divisor, k) => Math.abs((divisor * scaled[k]!) / plain[k]! - 1) > 1e-5);
  if (other >= 0) throw refuse(`${ROPE_FACTORS} must be Llama 3's scaling by ${factor}, got ${ropeFactors[other]} at pair ${other}`);
  return { rope_type: 'llama3', factor, ...LLAMA3_ROPE };
}

/** The shortest decimal number that is the same float32: 0.000009999999747378752 -> 0.00001. */
function shortest(value: number): number {
  for (let digits = 1; digits < 10; digits++) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === Math.fround(value)) return short;
  }
  return value;
}
