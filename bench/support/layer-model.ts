/** Models of one layer with random weights, written and opened like any other: what sessions, trainers and loaders take. */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openModel, tensorSources, writeSafetensors, type HostTensor, type Model } from '../../lib/index.ts';
import type { Latent, Shape } from './presets.ts';
import { randomProjection, randomTensor } from './random-weights.ts';

/** One layer is measured, so the vocabulary must not be most of the work. */
const MOST_VOCAB = 256;
const MAX_POSITIONS = 131072;

type Weights = Readonly<Record<string, HostTensor>>;

function bodyWeights({ hidden, ffn, vocab }: Shape): Weights {
  const words = Math.min(vocab, MOST_VOCAB);
  const ones = (): HostTensor => ({ dtype: 'float32', shape: [hidden], data: new Float32Array(hidden).fill(1) });
  return {
    'model.embed_tokens.weight': randomTensor([words, hidden]), 'model.norm.weight': ones(),
    'model.layers.0.input_layernorm.weight': ones(), 'model.layers.0.post_attention_layernorm.weight': ones(),
    'model.layers.0.mlp.gate_proj.weight': randomProjection(ffn, hidden), 'model.layers.0.mlp.up_proj.weight': randomProjection(ffn, hidden), 'model.layers.0.mlp.down_proj.weight': randomProjection(hidden, ffn),
  };
}

/** The weights of `prefix`, as [out, in] by name. */
const projections = (shapes: Readonly<Record<string, readonly [number, number]>>): Weights =>
  Object.fromEntries(Object.entries(shapes).map(([name, [out, input]]) => [`model.layers.0.self_attn.${name}.weight`, randomProjection(out, input)]));

function sourceWeights({ hidden, heads, kvHeads, headDim }: Shape): Weights {
  const [all, rows] = [heads * headDim, kvHeads * headDim];
  return projections({ q_proj: [all, hidden], k_proj: [rows, hidden], v_proj: [rows, hidden], o_proj: [hidden, all] });
}

function latentWeights({ hidden, heads, kvHeads, headDim }: Shape, { components, rank, latentGroups }: Latent): Weights {
  const [all, rows, width] = [heads * headDim, kvHeads * headDim, rank / latentGroups];
  return projections({
    q_rope_proj: [2 * components * heads, hidden], q_nope_proj: [all, hidden], k_rope_proj: [2 * components, hidden],
    kv_down_proj: [rank, hidden], k_up_proj: [rows, width], v_up_proj: [rows, width], o_proj: [hidden, all],
  });
}

function configOf({ hidden, heads, kvHeads, headDim, ffn, vocab }: Shape, latent: Latent | null): object {
  const mla = latent === null ? {} : {
    mla: {
      version: 1, scale: headDim ** -0.5,
      layers: [{ rank: latent.rank, frequencies: Array.from({ length: latent.components }, (_, i) => 10000 ** (-i / latent.components)), nopeWidth: headDim, latentGroups: latent.latentGroups }],
      plan: { strategy: 'random', components: latent.components }, factor: { strategy: 'random', rank: latent.rank, singularValues: 'up' },
      source: { name: 'random weights', architecture: 'LlamaForCausalLM', fingerprint: '' },
    },
  };
  return {
    model_type: 'llama', architectures: ['LlamaForCausalLM'], hidden_size: hidden, num_hidden_layers: 1, num_attention_heads: heads, num_key_value_heads: kvHeads, head_dim: headDim,
    intermediate_size: ffn, vocab_size: Math.min(vocab, MOST_VOCAB), max_position_embeddings: MAX_POSITIONS, rms_norm_eps: 1e-5, tie_word_embeddings: true, hidden_act: 'silu',
    rope_theta: 10000, bos_token_id: 0, eos_token_id: 0, ...mla,
  };
}

/** Runs `work` with a directory that is gone afterwards. */
export async function withDirectory<T>(work: (directory: string) => Promise<T>): Promise<T> {
  const directory = await mkdtemp(join(tmpdir(), 'bench-'));
  try {
    return await work(directory);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** Writes a one-layer model below `parent` and opens it: a source model (`latent` null) or a converted one. */
export async function writeLayerModel(parent: string, name: string, shape: Shape, latent: Latent | null): Promise<Model> {
  const path = join(parent, name);
  await mkdir(path, { recursive: true });
  const weights = { ...bodyWeights(shape), ...(latent === null ? sourceWeights(shape) : latentWeights(shape, latent)) };
  await writeFile(join(path, 'config.json'), JSON.stringify(configOf(shape, latent)));
  await writeSafetensors(join(path, 'model.safetensors'), tensorSources(Object.entries(weights)));
  return openModel(path);
}

/** Elements of all weights. */
export const parameterCount = ({ checkpoint }: Pick<Model, 'checkpoint'>): number =>
  [...checkpoint.tensors.values()].reduce((sum, { shape }) => sum + shape.reduce((product, length) => product * length, 1), 0);

/** Bytes of all weights in their files. */
export const weightBytes = ({ checkpoint }: Pick<Model, 'checkpoint'>): number => [...checkpoint.tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0);

/** Ids that every vocabulary has. */
export const someIds = (count: number, { config }: Pick<Model, 'config'>): number[] => Array.from({ length: count }, (_, i) => (i * 31 + 7) % config.vocab);
