import { existsSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { openCheckpoint, readGgufTensor } from '../lib/checkpoint/checkpoint.ts';
import { readConfig } from '../lib/checkpoint/config.ts';
import { deinterleaveRows } from '../lib/checkpoint/gguf-names.ts';
import { ggufBoolean, ggufNumber, ggufNumbers, ggufString, ggufStrings, openGguf, readGgufMetadata } from '../lib/checkpoint/gguf.ts';
import { readBytes } from '../lib/checkpoint/read-bytes.ts';
import { readSafetensors } from '../lib/checkpoint/safetensors.ts';
import { tensorFromBytes, toFloat32 } from '../lib/tensor.ts';

const data = join(import.meta.dirname, 'data', 'gguf');
const llama = join(data, 'llama.gguf');
const realModel = join(import.meta.dirname, '..', '.models', 'SmolLM2-135M-Instruct.Q4_1.gguf');

const bits = (values: Float32Array): number[] => [...new Uint32Array(values.buffer, values.byteOffset, values.length)];

t.test('every block format decodes to the bits that llama.cpp decodes', async (t) => {
  const file = await openGguf(join(data, 'formats.gguf'));
  const wanted = await readSafetensors(join(data, 'formats.safetensors'));
  t.equal(file.tensors.length, 13);
  for (const entry of file.tensors) {
    const reference = wanted.get(entry.name);
    t.same(entry.shape, reference?.shape, `${entry.name} shape`);
    t.ok(reference?.dtype === 'float32');
    if (reference?.dtype === 'float32') t.same(bits(await readGgufTensor(file, entry)), bits(reference.data), entry.name);
  }
});

t.test('metadata keep their kinds', async (t) => {
  const metadata = await readGgufMetadata(llama);
  t.equal(ggufString(metadata, 'general.architecture'), 'llama');
  t.equal(ggufNumber(metadata, 'llama.embedding_length'), 32);
  t.same(ggufStrings(metadata, 'tokenizer.ggml.tokens'), ['a', 'ä', '<|end|>']);
  t.same(ggufNumbers(metadata, 'test.numbers'), [2, 3, 5]);
  t.equal(ggufBoolean(metadata, 'test.bool'), true);
  t.equal(metadata.get('test.large'), 2n ** 63n + 1n);
  t.equal(metadata.get('test.negative'), -17);
  t.equal(ggufString(metadata, 'absent'), null);
  t.throws(() => ggufString(metadata, 'llama.embedding_length'), /llama\.embedding_length must be a string, got 32/);
  t.throws(() => ggufNumber(metadata, 'test.large'), /must be a number/);
});

t.test('a llama file reads as the Hugging Face model it was converted from', async (t) => {
  const checkpoint = await openCheckpoint(llama);
  const wanted = await readSafetensors(join(data, 'llama.safetensors'));
  t.same([...checkpoint.tensors.keys()].sort(), [...wanted.keys()].sort(), 'names; rope_freqs is no weight');
  for (const [name, reference] of wanted) t.same(await checkpoint.read(name), reference, name);
  t.same(checkpoint.tensors.get('lm_head.weight'), { name: 'lm_head.weight', storage: 'Q4_0', shape: [37, 32], bytes: 37 * 18 });

  const prefix = 'model.layers.0.self_attn.';
  for (const name of ['q_proj.weight', 'q_proj.bias', 'k_proj.weight', 'k_proj.bias']) {
    t.equal(checkpoint.stored(prefix + name), null, `${name}: rows are not in place`);
  }
  t.equal(checkpoint.stored('lm_head.weight'), null, 'quantised');
  for (const [name, dtype] of [['v_proj.weight', 'float16'], ['o_proj.weight', 'bfloat16'], ['v_proj.bias', 'float32']] as const) {
    const stored = checkpoint.stored(prefix + name);
    t.equal(stored?.dtype, dtype);
    if (stored === null) continue;
    const mapped = tensorFromBytes(dtype, stored.shape, await readBytes(stored.file.path, stored.file.offset, stored.file.bytes));
    t.same(toFloat32(mapped), wanted.get(prefix + name), `${name}: the file's own bytes`);
  }
  await t.rejects(checkpoint.read('model.layers.1.mlp.up_proj.weight'), /has no tensor model\.layers\.1/);
});

t.test('interleaved rows go back to halves', async (t) => {
  // Two heads of width 6, one column: pair k is stored at 2k, 2k + 1.
  const stored = Float32Array.of(0, 3, 1, 4, 2, 5, 10, 13, 11, 14, 12, 15);
  t.same([...deinterleaveRows(stored, 12, 2)], [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]);
  t.throws(() => deinterleaveRows(stored, 12, 4), /an even number per head, got 12 rows and 4 heads/);
});

t.test('the configuration comes from the metadata', async (t) => {
  const config = await readConfig(llama);
  const { raw, ...record } = config;
  t.same(record, {
    modelType: 'llama',
    architecture: 'LlamaForCausalLM',
    hidden: 32,
    layers: 1,
    heads: 3,
    kvHeads: 1,
    headDim: 8,
    ffn: 64,
    vocab: 37,
    normEps: 1e-5,
    maxPositions: 131072,
    tieEmbeddings: false,
    attentionBias: true,
    mlpBias: false,
    window: null,
    rope: { type: 'llama3', base: 500000, factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositions: 8192 },
    bosIds: [3],
    eosIds: [5, 7],
  });
  t.match(raw, { model_type: 'llama', rope_theta: 500000, rope_scaling: { rope_type: 'llama3', factor: 8 }, eos_token_id: [5, 7] });
});

t.test('bad files are refused with the file and the rule', async (t) => {
  const good = await readFile(llama);
  const directory = t.testdir({});
  const path = join(directory, 'bad.gguf');
  const refused = async (bytes: Uint8Array, error: RegExp, what: string): Promise<void> => {
    await writeFile(path, bytes);
    await t.rejects(openCheckpoint(path), error, what);
  };
  const changed = (change: (bytes: Buffer) => void): Buffer => {
    const bytes = Buffer.from(good);
    change(bytes);
    return bytes;
  };
  /** Overwrites text by text of the same length. */
  const replaced = (from: string, to: string): Buffer => changed((bytes) => void bytes.write(to, bytes.indexOf(from), 'latin1'));
  /** The type field follows the name, the number of axes and the axes. */
  const typed = (name: string, axes: number, type: number): Buffer =>
    changed((bytes) => void bytes.writeUInt32LE(type, bytes.indexOf(name) + name.length + 4 + 8 * axes));

  await refused(replaced('GGUF', 'GGML'), /bad\.gguf: must start with the magic GGUF, got 0x4c4d4747/, 'magic');
  await refused(changed((bytes) => void bytes.writeUInt32LE(1, 4)), /must be GGUF version 2 or 3, little-endian, got 1/, 'version');
  await refused(changed((bytes) => void bytes.writeUInt32BE(3, 4)), /got a big-endian file/, 'byte order');
  await refused(good.subarray(0, 2), /ends at byte 2, inside its header/, 'no header');
  await refused(good.subarray(0, 1000), /ends at byte 1000, inside its header/, 'half a header');
  await refused(good.subarray(0, good.length - 700), /tensor .* lies at \d+\.\.\d+ but the file has \d+ bytes/, 'half the data');
  await refused(changed((bytes) => void bytes.writeBigUInt64LE(2n ** 60n, 8)), /inside its header/, 'tensor count');
  await refused(typed('blk.0.ffn_up.weight', 2, 20), /tensor blk\.0\.ffn_up\.weight of .* must be of type F32, .* got IQ4_NL/, 'known but not read');
  await refused(typed('blk.0.ffn_up.weight', 2, 99), /must be of type F32, .* got number 99/, 'unknown type');
  await refused(typed('blk.0.attn_v.bias', 1, 2), /rows of blk\.0\.attn_v\.bias of .* must be whole Q4_0 blocks of 32, got 8/, 'part of a block');
  await refused(replaced('blk.0.ffn_up.weight', 'blk.0.ffn_xy.weight'), /tensor blk\.0\.ffn_xy\.weight of .* is not known for architecture llama/, 'name');
  const offsetField = (bytes: Buffer, name: string, axes: number): number => bytes.indexOf(name) + name.length + 4 + 8 * axes + 4;
  const overlapping = changed((bytes) => {
    const other = bytes.readBigUInt64LE(offsetField(bytes, 'blk.0.ffn_up.weight', 2));
    bytes.writeBigUInt64LE(other, offsetField(bytes, 'blk.0.ffn_down.weight', 2));
  });
  await refused(overlapping, /tensor blk\.0\.ffn_down\.weight of .* overlaps the tensor before it/, 'overlap');
  const moved = changed((bytes) => void bytes.writeBigUInt64LE(7n, offsetField(bytes, 'output.weight', 2)));
  await refused(moved, /tensor output\.weight must start at a multiple of 32 bytes, got 7/, 'alignment');
  await refused(replaced('blk.0.ffn_gate.weight', 'blk.0.ffn_down.weight'), /must hold tensor blk\.0\.ffn_down\.weight once/, 'twice');
  const architecture = good.indexOf('llama', good.indexOf('general.architecture'));
  await refused(changed((bytes) => void bytes.write('falco', architecture)), /general\.architecture of .* must be one of llama, qwen2, qwen3, got falco/, 'architecture');
  await t.rejects(readConfig(path), /must be one of llama, qwen2, qwen3, got falco/);

  const factors = (await openGguf(llama)).tensors.find((tensor) => tensor.name === 'rope_freqs.weight');
  await writeFile(path, changed((bytes) => void bytes.writeFloatLE(3, (factors?.offset ?? 0) + 4)));
  await t.rejects(readConfig(path), /rope_freqs\.weight must be Llama 3's scaling by 8, got 3 at pair 1/);

  for (const [name, bad] of [['output_norm.weight', NaN], ['blk.0.ffn_up.weight', -Infinity]] as const) {
    const entry = (await openGguf(llama)).tensors.find((tensor) => tensor.name === name);
    await writeFile(path, changed((bytes) => void bytes.writeFloatLE(bad, (entry?.offset ?? 0) + 4 * 13)));
    const checkpoint = await openCheckpoint(path);
    const hf = name === 'output_norm.weight' ? 'model.norm.weight' : 'model.layers.0.mlp.up_proj.weight';
    await t.rejects(checkpoint.read(hf), new RegExp(`tensor ${hf.replaceAll('.', '\\.')} of .* has ${bad} at \\[(0, )?13\\]`));
  }
});

t.test('the real model opens as an HF model', { skip: existsSync(realModel) ? false : 'needs .models/SmolLM2-135M-Instruct.Q4_1.gguf' }, async (t) => {
  const config = await readConfig(realModel);
  t.match(config, { modelType: 'llama', hidden: 576, layers: 30, heads: 9, kvHeads: 3, headDim: 64, vocab: 49152, normEps: 1e-5, tieEmbeddings: true });
  const checkpoint = await openCheckpoint(realModel);
  t.equal(checkpoint.tensors.size, 272);
  t.same(checkpoint.tensors.get('model.layers.29.mlp.down_proj.weight')?.shape, [576, 1536]);
  // By gguf.dequantize and numpy: rows 1 and 65 of k_proj in half-split order, row 12345 of the embedding.
  const key = await checkpoint.read('model.layers.3.self_attn.k_proj.weight');
  t.same(key.shape, [192, 576]);
  t.same([...key.data.subarray(576, 579)], [0.05596923828125, -0.123779296875, -0.01593017578125]);
  t.same([...key.data.subarray(65 * 576, 65 * 576 + 3)], [0.0635986328125, 0.13714599609375, 0.43133544921875]);
  const embedding = await checkpoint.read('model.embed_tokens.weight');
  t.same([...embedding.data.subarray(12345 * 576, 12345 * 576 + 3)], [0.06287956237792969, -0.05608177185058594, 0.1410541534423828]);
  t.equal(checkpoint.stored('model.embed_tokens.weight'), null);
});
