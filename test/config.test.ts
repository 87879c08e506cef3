import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { configFromGguf, parseConfig, readConfig } from '../lib/checkpoint/config.ts';
import type { GgufFile, GgufValue } from '../lib/checkpoint/gguf.ts';
import { ropeFrequencies } from '../lib/rope-frequencies.ts';

const zoo = (name: string): string => join(import.meta.dirname, 'data', 'zoo', name);

/** The least config.json that transformers takes. */
const least = {
  model_type: 'llama',
  architectures: ['LlamaForCausalLM'],
  hidden_size: 56,
  intermediate_size: 34,
  num_hidden_layers: 3,
  num_attention_heads: 14,
  vocab_size: 31,
};

t.test('zoo models read as what they were made with', async (t) => {
  const base = {
    hidden: 48,
    layers: 3,
    heads: 6,
    kvHeads: 2,
    headDim: 16,
    ffn: 80,
    vocab: 97,
    normEps: 1e-5,
    maxPositions: 64,
    tieEmbeddings: false,
    attentionBias: false,
    mlpBias: false,
    window: null,
    rope: { type: 'default', base: 10000 },
    bosIds: [1],
    eosIds: [2],
  };
  const llama = { ...base, modelType: 'llama', architecture: 'LlamaForCausalLM' };
  const mistral = { ...base, modelType: 'mistral', architecture: 'MistralForCausalLM' };
  const cases = {
    'llama-mha': { ...llama, kvHeads: 6 },
    'llama-gqa-tied': { ...llama, tieEmbeddings: true, rope: { type: 'default', base: 100000 } },
    'llama-mqa': { ...llama, kvHeads: 1 },
    'llama-bias': { ...llama, attentionBias: true, mlpBias: true },
    'llama-linear-rope': { ...llama, rope: { type: 'linear', base: 10000, factor: 2 } },
    'llama3-rope': {
      ...llama,
      rope: { type: 'llama3', base: 500000, factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositions: 16 },
    },
    mistral,
    'mistral-window': { ...mistral, window: 7 },
    qwen2: { ...base, modelType: 'qwen2', architecture: 'Qwen2ForCausalLM', headDim: 8, rope: { type: 'default', base: 1e6 } },
    qwen3: { ...base, modelType: 'qwen3', architecture: 'Qwen3ForCausalLM', rope: { type: 'default', base: 1e6 } },
  };
  for (const [name, wanted] of Object.entries(cases)) {
    const { raw, ...config } = await readConfig(zoo(name));
    t.same(config, wanted, name);
    t.same(raw, JSON.parse(readFileSync(join(zoo(name), 'config.json'), 'utf8')), `${name}: the file's own object`);
  }
  t.match(await readConfig(join(zoo('llama-mha'), 'model.safetensors')), { kvHeads: 6 }, 'a weight file stands for its directory');
});

t.test('absent keys take the defaults of transformers', async (t) => {
  t.match(parseConfig(least, 'least'), {
    kvHeads: 14,
    headDim: 4,
    normEps: 1e-6,
    maxPositions: 2048,
    tieEmbeddings: false,
    window: null,
    rope: { type: 'default', base: 10000 },
    bosIds: [1],
    eosIds: [2],
  });
  const mistral = { ...least, model_type: 'mistral', architectures: undefined, hidden_size: 96, num_attention_heads: 16 };
  t.match(parseConfig(mistral, 'least'), { architecture: 'MistralForCausalLM', kvHeads: 8, headDim: 6, window: 4096, maxPositions: 131072 });
});

t.test('stop tokens of config.json and generation_config.json together', async (t) => {
  const directory = t.testdir({
    'model.safetensors': '',
    'config.json': JSON.stringify({ ...least, bos_token_id: null, eos_token_id: [5, 7] }),
    'generation_config.json': JSON.stringify({ eos_token_id: [7, 11] }),
  });
  t.match(await readConfig(directory), { bosIds: [], eosIds: [5, 7, 11] });
});

t.test('what is not supported is refused by name', async (t) => {
  const cases: readonly [object, RegExp][] = [
    [{ model_type: 'gemma2' }, /here: model_type must be one of llama, mistral, qwen2, qwen3, got "gemma2"/],
    [{ model_type: 'constructor' }, /must be one of llama, mistral, qwen2, qwen3, got "constructor"/],
    [{ model_type: undefined }, /must be one of llama, mistral, qwen2, qwen3, got undefined/],
    [{ architectures: ['LlamaMLAForCausalLM'] }, /architectures of a llama model must be \[LlamaForCausalLM\], got \["LlamaMLAForCausalLM"\]/],
    [{ hidden_act: 'gelu' }, /hidden_act must be silu, got gelu/],
    [{ quantization_config: { quant_method: 'gptq' } }, /quantization_config must be absent/],
    [{ hidden_size: '56' }, /hidden_size: .*number/],
    [{ vocab_size: undefined }, /vocab_size: /],
    [{ num_key_value_heads: 5 }, /must be a multiple of num_key_value_heads, got 14 and 5/],
    [{ head_dim: 7 }, /head_dim must be even, got 7/],
    [{ num_attention_heads: 6, num_key_value_heads: 3 }, /head_dim must be even, got 9\.33/],
    [{ rope_scaling: { type: 'dynamic', factor: 2 } }, /rope type must be one of default, linear, llama3, yarn, got dynamic/],
    [{ rope_scaling: { rope_type: 'longrope', short_factor: [1], long_factor: [1] } }, /rope type must be one of .* got longrope/],
    [{ rope_parameters: { rope_type: 'default', mrope_section: [2] } }, /mrope_section is not a known parameter of rope type default/],
    [{ rope_scaling: { type: 'linear' } }, /rope type linear needs factor/],
    [{ rope_scaling: { type: 'linear', factor: 'two' } }, /rope_scaling\.factor: /],
    [{ rope_parameters: { rope_type: 'default', partial_rotary_factor: 0.5 } }, /partial_rotary_factor must be 1, got 0\.5/],
    [{ partial_rotary_factor: 0.25 }, /partial_rotary_factor must be 1, got 0\.25/],
  ];
  for (const [change, error] of cases) t.throws(() => parseConfig({ ...least, ...change }, 'here'), error);
  await t.rejects(readConfig(t.testdir({ 'model.safetensors': '' })), /must hold config\.json beside its weights/);
  await t.rejects(readConfig(t.testdir({ 'model.safetensors': '', 'config.json': '{' })), /config\.json must be a JSON object/);
  const generation = { 'model.safetensors': '', 'config.json': JSON.stringify(least), 'generation_config.json': '{"eos_token_id": "</s>"}' };
  await t.rejects(readConfig(t.testdir(generation)), /generation_config\.json: eos_token_id must be a whole number or a list of them, got "<\/s>"/);
  const falcon = t.testdir({ 'model.safetensors': '', 'config.json': '{"model_type": "falcon"}' });
  await t.rejects(readConfig(falcon), /config\.json: model_type must be one of llama, mistral, qwen2, qwen3, got "falcon"/);
  const qwen2 = { ...least, model_type: 'qwen2', architectures: ['Qwen2ForCausalLM'], num_key_value_heads: 7, use_sliding_window: true, sliding_window: 7, max_window_layers: 1 };
  t.throws(() => parseConfig(qwen2, 'here'), /sliding_window must hold for all 3 layers or none, got 2 layers with it/);
  t.equal(parseConfig({ ...qwen2, max_window_layers: 0 }, 'here').window, 7);
  t.equal(parseConfig({ ...qwen2, use_sliding_window: false }, 'here').window, null);
});

interface RopeCase {
  readonly name: string;
  readonly config: Record<string, unknown>;
  readonly frequencies: readonly number[];
  readonly attentionFactor: number;
}

t.test('RoPE frequencies equal those of transformers for every kind and spelling', async (t) => {
  const cases = JSON.parse(readFileSync(join(import.meta.dirname, 'data', 'rope', 'frequencies.json'), 'utf8')) as RopeCase[];
  t.equal(cases.length, 12);
  for (const { name, config, frequencies, attentionFactor } of cases) {
    const { rope, headDim } = parseConfig({ ...config, architectures: ['LlamaForCausalLM'] }, name);
    const ours = ropeFrequencies(rope, headDim);
    t.equal(ours.frequencies.length, frequencies.length);
    // The reference computes in float32: base^x carries ln(base) half-ulps of x, then a dozen roundings.
    const tolerance = (Math.log(rope.base) + 12) * 2 ** -24;
    const worst = Math.max(...frequencies.map((wanted, k) => Math.abs(ours.frequencies[k]! / wanted - 1)));
    t.ok(worst < tolerance, `${name}: relative error ${worst}`);
    t.ok(Math.abs(ours.attentionFactor - attentionFactor) < 1e-12, `${name}: attention factor`);
  }
  t.throws(() => ropeFrequencies({ type: 'default', base: 10000 }, 7), /headDim must be even and positive, got 7/);
});

t.test('GGUF metadata: scaling by metadata, a window, and what is refused', async (t) => {
  const gguf = (extra: Readonly<Record<string, GgufValue>>): GgufFile => ({
    path: 'm.gguf',
    fileBytes: 0,
    tensors: [{ name: 'token_embd.weight', type: 0, shape: [31, 56], offset: 0 }],
    metadata: new Map<string, GgufValue>(
      Object.entries({
        'general.architecture': 'llama',
        'llama.embedding_length': 56,
        'llama.block_count': 3,
        'llama.attention.head_count': 14,
        'llama.feed_forward_length': 34,
        'llama.context_length': 4096,
        'llama.attention.layer_norm_rms_epsilon': Math.fround(1e-6),
        ...extra,
      }),
    ),
  });
  t.match(configFromGguf(gguf({})), { kvHeads: 14, headDim: 4, normEps: 1e-6, vocab: 31, tieEmbeddings: true, bosIds: [], eosIds: [], window: null });
  t.same(configFromGguf(gguf({ 'llama.rope.scaling.type': 'linear', 'llama.rope.scaling.factor': 2.5 })).rope, { type: 'linear', base: 10000, factor: 2.5 });
  const yarn = { 'llama.rope.scaling.type': 'yarn', 'llama.rope.scaling.factor': 4, 'llama.rope.scaling.original_context_length': 1024 };
  t.match(configFromGguf(gguf(yarn)).rope, { type: 'yarn', factor: 4, originalMaxPositions: 1024, betaFast: 32 });
  t.match(configFromGguf(gguf({ 'llama.attention.sliding_window': 11 })), { modelType: 'mistral', window: 11 });
  t.throws(() => configFromGguf(gguf({ 'general.architecture': 'gemma' })), /general\.architecture of m\.gguf must be one of llama, qwen2, qwen3, got gemma/);
  t.throws(() => configFromGguf(gguf({ 'llama.expert_count': 8 })), /llama\.expert_count must be absent or 0, got 8/);
  t.throws(() => configFromGguf(gguf({ 'llama.rope.dimension_count': 2 })), /llama\.rope\.dimension_count must equal the head width 4, got 2/);
  t.throws(() => configFromGguf(gguf({ 'llama.rope.scaling.type': 'longrope' })), /must be none, linear or yarn, got longrope/);
  t.throws(() => configFromGguf(gguf({ 'llama.context_length': 'long' })), /llama\.context_length must be a number, got long/);
  t.throws(() => configFromGguf(gguf({}), Float32Array.of(1)), /rope_freqs\.weight must be given exactly when/);
});
