/**
 * GGUF architectures: their tensor names in Hugging Face spelling, and the row order of q and k.
 * Source: gguf-py/gguf/tensor_mapping.py and convert_hf_to_gguf.py of llama.cpp.
 */
import { ggufNumber, ggufString } from './gguf.ts';
import type { GgufMetadata } from './gguf.ts';

export interface GgufArchitecture {
  /** transformers' model_type and class. */
  readonly modelType: string;
  readonly className: string;
  /** Names inside a block, without .weight or .bias. */
  readonly block: Readonly<Record<string, string>>;
  /**
   * Modules whose rows llama.cpp stores pair by pair, (x_k, x_{k+n}) side by side, for its interleaved RoPE, with the
   * metadata key that counts their heads.
   */
  readonly interleaved: Readonly<Record<string, string>>;
}

const llamaBlock = {
  attn_norm: 'input_layernorm',
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_output: 'self_attn.o_proj',
  ffn_norm: 'post_attention_layernorm',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
};

/** By general.architecture. llama.cpp files Mistral models under llama too. */
const architectures: Readonly<Record<string, GgufArchitecture>> = {
  llama: {
    modelType: 'llama',
    className: 'LlamaForCausalLM',
    block: llamaBlock,
    interleaved: { attn_q: 'attention.head_count', attn_k: 'attention.head_count_kv' },
  },
  qwen2: { modelType: 'qwen2', className: 'Qwen2ForCausalLM', block: llamaBlock, interleaved: {} },
  qwen3: {
    modelType: 'qwen3',
    className: 'Qwen3ForCausalLM',
    block: { ...llamaBlock, attn_q_norm: 'self_attn.q_norm', attn_k_norm: 'self_attn.k_norm' },
    interleaved: {},
  },
};

const outside: Readonly<Record<string, string>> = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
};

/** Per-frequency divisors of a scaled RoPE: no weight, but part of the configuration. */
export const ROPE_FACTORS = 'rope_freqs.weight';

/** The architecture a GGUF file declares. Errors: none declared, or an unknown one (the known ones are listed). */
export function ggufArchitecture(path: string, metadata: GgufMetadata): GgufArchitecture & { readonly key: string } {
  const key = ggufString(metadata, 'general.architecture');
  const found = key !== null && Object.hasOwn(architectures, key) ? architectures[key] : undefined;
  if (key === null || found === undefined) {
    throw new Error(`ggufArchitecture: general.architecture of ${path} must be one of ${Object.keys(architectures).join(', ')}, got ${key}`);
  }
  return { key, ...found };
}

export interface GgufTensorMeaning {
  /** Hugging Face spelling. */
  readonly name: string;
  /** Heads whose rows are interleaved, or null where rows are in place. */
  readonly interleavedHeads: number | null;
}

/**
 * What a GGUF tensor is: null for one that is no weight (rope_freqs). Errors: a name the architecture does not have.
 */
export function ggufTensorMeaning(path: string, metadata: GgufMetadata, name: string): GgufTensorMeaning | null {
  if (name === ROPE_FACTORS) return null;
  const fixed = outside[name];
  if (fixed !== undefined) return { name: fixed, interleavedHeads: null };
  const architecture = ggufArchitecture(path, metadata);
  const [, layer, module = '', kind] = /^blk\.(\d+)\.(\w+)\.(weight|bias)$/.exec(name) ?? [];
  const inside = Object.hasOwn(architecture.block, module) ? architecture.block[module] : undefined;
  if (inside === undefined) throw new Error(`ggufTensorMeaning: tensor ${name} of ${path} is not known for architecture ${architecture.key}`);
  const headKey = architecture.interleaved[module];
  return {
    name: `model.layers.${layer}.${inside}.${kind}`,
    interleavedHeads: headKey === undefined ? null : headCount(metadata, `${architecture.key}.${headKey}`, architecture.key, path),
  };
}

function headCount(metadata: GgufMetadata, key: string, architecture: string, path: string): number {
  const heads = ggufNumber(metadata, key) ?? ggufNumber(metadata, `${architecture}.attention.head_count`);
  if (heads === null) throw new Error(`ggufTensorMeaning: ${path} has no ${key}`);
  return heads;
}

/**
 * Rows from pair by pair back to halves: row h*d + 2k + p becomes h*d + p*d/2 + k, for head width d, pair k and part p.
 * values: [heads * d, columns], row-major; columns 1 for a bias. Returns a new array.
 */
export function deinterleaveRows(values: Float32Array, rows: number, heads: number): Float32Array {
  const width = rows / heads;
  if (!Number.isInteger(width) || width % 2 !== 0) {
    throw new RangeError(`deinterleaveRows: rows must be an even number per head, got ${rows} rows and ${heads} heads`);
  }
  const columns = values.length / rows;
  const out = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    const inHead = row % width;
    const target = row - inHead + (inHead % 2) * (width / 2) + (inHead >> 1);
    out.set(values.subarray(row * columns, (row + 1) * columns), target * columns);
  }
  return out;
}
