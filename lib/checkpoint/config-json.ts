/**
 * config.json in both of transformers' spellings (rope_theta with rope_scaling; rope_parameters of version 5) to one
 * record. The door to zod.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { errorCode } from '../atomic-write.ts';
import type { RopeConfig } from '../rope-frequencies.ts';
import { ropeConfig } from './rope-config.ts';

/** What the library knows of a model before it reads a weight. Widths and counts are numbers of components. */
export interface ModelConfig {
  readonly modelType: string;
  /** transformers' class, e.g. LlamaForCausalLM. */
  readonly architecture: string;
  readonly hidden: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly ffn: number;
  readonly vocab: number;
  readonly normEps: number;
  readonly maxPositions: number;
  readonly tieEmbeddings: boolean;
  /** Whether the model asks for attention biases by attention_bias; which projections have them is its family's to say. */
  readonly attentionBias: boolean;
  readonly mlpBias: boolean;
  /** A query sees this many keys, itself included; null sees all. */
  readonly window: number | null;
  readonly rope: RopeConfig;
  readonly bosIds: readonly number[];
  readonly eosIds: readonly number[];
  /** The file's own object, to be written again with a converted model. */
  readonly raw: Readonly<Record<string, unknown>>;
}

interface ModelType {
  readonly architecture: string;
  /** Values transformers' config class assumes for absent keys. */
  readonly defaults: Readonly<Record<string, unknown>>;
  /** Whether the class reads attention_bias, and mlp_bias. */
  readonly attentionBias: boolean;
  readonly mlpBias: boolean;
  /** Which keys say that a query sees a window only: none, sliding_window, or also use_sliding_window and max_window_layers. */
  readonly window: 'never' | 'given' | 'switched';
}

/** By model_type. */
const modelTypes: Readonly<Record<string, ModelType>> = {
  llama: {
    architecture: 'LlamaForCausalLM',
    defaults: { max_position_embeddings: 2048 },
    attentionBias: true,
    mlpBias: true,
    window: 'never',
  },
  mistral: {
    architecture: 'MistralForCausalLM',
    defaults: { max_position_embeddings: 131072, num_key_value_heads: 8, sliding_window: 4096 },
    attentionBias: false,
    mlpBias: false,
    window: 'given',
  },
  qwen2: {
    architecture: 'Qwen2ForCausalLM',
    defaults: { max_position_embeddings: 32768, num_key_value_heads: 32, sliding_window: 4096 },
    attentionBias: false,
    mlpBias: false,
    window: 'switched',
  },
  qwen3: {
    architecture: 'Qwen3ForCausalLM',
    defaults: { max_position_embeddings: 32768, num_key_value_heads: 32, head_dim: 128, sliding_window: 4096 },
    attentionBias: true,
    mlpBias: false,
    window: 'switched',
  },
};

const count = z.int().positive();
const positive = z.number().positive();
const tokenIds = z.union([z.int(), z.array(z.int())]).nullish();

/** Loose, so that ropeConfig can name an unknown type before an unknown key. */
const ropeSchema = z.looseObject({
  rope_type: z.string().optional(),
  type: z.string().optional(),
  rope_theta: positive.nullish(),
  partial_rotary_factor: z.number().nullish(),
  factor: positive.nullish(),
  low_freq_factor: positive.nullish(),
  high_freq_factor: positive.nullish(),
  original_max_position_embeddings: positive.nullish(),
  beta_fast: z.number().nullish(),
  beta_slow: z.number().nullish(),
  attention_factor: positive.nullish(),
  mscale: z.number().nullish(),
  mscale_all_dim: z.number().nullish(),
  truncate: z.boolean().nullish(),
});

const configSchema = z.object({
  hidden_size: count,
  num_hidden_layers: count,
  num_attention_heads: count,
  num_key_value_heads: count.nullish(),
  head_dim: count.nullish(),
  intermediate_size: count,
  vocab_size: count,
  rms_norm_eps: positive.default(1e-6),
  max_position_embeddings: count,
  original_max_position_embeddings: count.nullish(),
  tie_word_embeddings: z.boolean().default(false),
  hidden_act: z.string().default('silu'),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  sliding_window: count.nullish(),
  use_sliding_window: z.boolean().default(false),
  max_window_layers: z.int().nonnegative().default(28),
  layer_types: z.array(z.string()).nullish(),
  rope_theta: positive.nullish(),
  partial_rotary_factor: z.number().nullish(),
  rope_scaling: ropeSchema.nullish(),
  rope_parameters: ropeSchema.nullish(),
  bos_token_id: tokenIds.default(1),
  eos_token_id: tokenIds.default(2),
});

const listed = (ids: z.infer<typeof tokenIds>): number[] => (ids == null ? [] : Array.isArray(ids) ? ids : [ids]);

/**
 * The record of a config.json object. `source` names it in errors. Absent keys take the defaults of transformers.
 * Errors: an unknown model_type or class (the known ones are listed), hidden_act other than silu, a quantised checkpoint,
 * an unknown or partial RoPE, values of the wrong kind.
 */
export function parseConfig(raw: Readonly<Record<string, unknown>>, source: string): ModelConfig {
  const refuse = (rule: string): Error => new Error(`parseConfig: ${source}: ${rule}`);
  const { model_type: modelType, architectures } = raw;
  const row = typeof modelType === 'string' && Object.hasOwn(modelTypes, modelType) ? modelTypes[modelType] : undefined;
  if (typeof modelType !== 'string' || row === undefined) {
    throw refuse(`model_type must be one of ${Object.keys(modelTypes).join(', ')}, got ${JSON.stringify(modelType)}`);
  }
  const architecture: unknown = Array.isArray(architectures) ? architectures[0] : row.architecture;
  if (architecture !== row.architecture) {
    throw refuse(`architectures of a ${modelType} model must be [${row.architecture}], got ${JSON.stringify(architectures)}`);
  }
  if (raw.quantization_config != null) throw refuse('quantization_config must be absent: quantised Hugging Face checkpoints are not read');

  const parsed = configSchema.safeParse({ ...row.defaults, ...raw });
  if (!parsed.success) {
    throw refuse(parsed.error.issues.map(({ path, message }) => `${path.join('.') || 'config'}: ${message}`).join('; '));
  }
  const config = parsed.data;
  if (config.hidden_act !== 'silu') throw refuse(`hidden_act must be silu, got ${config.hidden_act}`);
  const heads = config.num_attention_heads;
  const kvHeads = config.num_key_value_heads ?? heads;
  if (heads % kvHeads !== 0) throw refuse(`num_attention_heads must be a multiple of num_key_value_heads, got ${heads} and ${kvHeads}`);
  const headDim = config.head_dim ?? config.hidden_size / heads;
  if (headDim % 2 !== 0) throw refuse(`head_dim must be even, got ${headDim}`);
  return {
    modelType,
    architecture,
    hidden: config.hidden_size,
    layers: config.num_hidden_layers,
    heads,
    kvHeads,
    headDim,
    ffn: config.intermediate_size,
    vocab: config.vocab_size,
    normEps: config.rms_norm_eps,
    maxPositions: config.max_position_embeddings,
    tieEmbeddings: config.tie_word_embeddings,
    attentionBias: row.attentionBias && config.attention_bias,
    mlpBias: row.mlpBias && config.mlp_bias,
    window: windowOf(row.window, config, refuse),
    rope: ropeConfig(config, refuse),
    bosIds: listed(config.bos_token_id),
    eosIds: listed(config.eos_token_id),
    raw,
  };
}

/** Keys a query sees, the same in every layer. Errors: layers that differ in it. */
function windowOf(rule: ModelType['window'], config: z.infer<typeof configSchema>, refuse: (rule: string) => Error): number | null {
  const window = config.sliding_window ?? null;
  if (rule === 'never' || window === null) return null;
  if (rule === 'given') return window;
  if (!config.use_sliding_window) return null;
  const layers = config.num_hidden_layers;
  const slides = config.layer_types?.map((type) => type === 'sliding_attention')
    ?? Array.from({ length: layers }, (_, layer) => layer >= config.max_window_layers);
  if (new Set(slides).size > 1) throw refuse(`sliding_window must hold for all ${layers} layers or none, got ${slides.filter(Boolean).length} layers with it`);
  return slides[0] === true ? window : null;
}

const jsonObject = z.record(z.string(), z.unknown());

/** A JSON object file; null when there is no such file. */
async function readJsonObject(path: string): Promise<Record<string, unknown> | null> {
  try {
    return jsonObject.parse(JSON.parse(await readFile(path, 'utf8')));
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return null;
    throw new Error(`readConfig: ${path} must be a JSON object`, { cause: error });
  }
}

/** The object in a directory's config.json. Errors: no such file, not a JSON object. */
export async function readRawConfig(directory: string): Promise<Record<string, unknown>> {
  const raw = await readJsonObject(join(directory, 'config.json'));
  if (raw === null) throw new Error(`readConfig: ${directory} must hold config.json beside its weights, but there is none`);
  return raw;
}

/**
 * The record of a model directory's config.json, given as `raw` where it is not taken as it stands. Stop tokens are those of config.json and of generation_config.json
 * together, as both name some. Errors: no such file, not a JSON object; as parseConfig.
 */
export async function readConfigJson(directory: string, raw?: Readonly<Record<string, unknown>>): Promise<ModelConfig> {
  const config = parseConfig(raw ?? (await readRawConfig(directory)), join(directory, 'config.json'));
  const generation = join(directory, 'generation_config.json');
  const stop = (await readJsonObject(generation))?.eos_token_id;
  const more = tokenIds.safeParse(stop);
  if (!more.success) {
    throw new Error(`readConfig: ${generation}: eos_token_id must be a whole number or a list of them, got ${JSON.stringify(stop)}`);
  }
  return { ...config, eosIds: [...new Set([...config.eosIds, ...listed(more.data)])] };
}
