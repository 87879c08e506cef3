import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { errorCode, refuseOccupied, writeDirectoryAtomic, writeFileAtomic, type WriteBytes } from '../lib/atomic-write.ts';
import { openCheckpoint } from '../lib/checkpoint/checkpoint.ts';
import { readBytes } from '../lib/checkpoint/read-bytes.ts';
import { openSafetensors, readSafetensors, readTensor } from '../lib/checkpoint/safetensors.ts';
import { tensorSources, writeSafetensors, writeShardedSafetensors } from '../lib/checkpoint/write-safetensors.ts';
import { tensor, tensorFromBytes, toDType, toFloat32, zeros, type HostTensor } from '../lib/tensor.ts';

const zoo = (name: string): string => join(import.meta.dirname, 'data', 'zoo', name);

/** A .safetensors file with any header text and data. */
function fileOf(header: unknown, data: Uint8Array, claimed?: number): Uint8Array {
  const text = new TextEncoder().encode(typeof header === 'string' ? header : JSON.stringify(header));
  const out = new Uint8Array(8 + text.length + data.length);
  new DataView(out.buffer).setBigUint64(0, BigInt(claimed ?? text.length), true);
  out.set(text, 8);
  out.set(data, 8 + text.length);
  return out;
}

const everyType: readonly [string, HostTensor][] = [
  ['b', tensor('bool', [3], Uint8Array.of(1, 0, 1))],
  ['w.f32', tensor('float32', [2, 3], Float32Array.of(1, 2, 3, 5, 7, 11))],
  ['w.f16', toDType(tensor('float32', [5], Float32Array.of(1, -2, 3, 0.5, 0)), 'float16')],
  ['i64', tensor('int64', [2], BigInt64Array.of(-(2n ** 62n), 3n))],
  ['i8', tensor('int8', [3], Int8Array.of(-128, 0, 127))],
  ['w.bf16', toDType(tensor('float32', [3], Float32Array.of(1, -2, 3)), 'bfloat16')],
  ['w.f64', tensor('float64', [1, 1], Float64Array.of(Math.PI))],
  ['i32', tensor('int32', [], Int32Array.of(-7))],
  ['i16', tensor('int16', [2], Int16Array.of(-32768, 5))],
  ['u8', tensor('uint8', [1], Uint8Array.of(255))],
  ['empty', zeros('float32', [0, 3])],
];

t.test('reads what the Python package wrote: int64 ids, float32 logits, config names', async (t) => {
  const golden = await readSafetensors(join(zoo('llama-mha'), 'golden.safetensors'));
  const ids = golden.get('ids');
  t.equal(ids?.dtype, 'int64');
  t.same(ids?.shape, [2, 23]);
  t.ok(ids?.dtype === 'int64' && ids.data.every((id) => id >= 3n && id < 97n));
  t.same(golden.get('logits')?.shape, [2, 23, 97]);

  const checkpoint = await openCheckpoint(zoo('llama-mha'));
  t.equal(checkpoint.format, 'safetensors');
  t.same(checkpoint.tensors.get('model.layers.2.self_attn.q_proj.weight'), {
    name: 'model.layers.2.self_attn.q_proj.weight',
    storage: 'F32',
    shape: [96, 48],
    bytes: 96 * 48 * 4,
  });
  const norm = await checkpoint.read('model.norm.weight');
  const stored = checkpoint.stored('model.norm.weight');
  t.ok(stored !== null);
  if (stored === null) return;
  const { path, offset, bytes } = stored.file;
  t.same(tensorFromBytes('float32', [48], await readBytes(path, offset, bytes)), norm, 'stored() points at the same numbers');
  await t.rejects(checkpoint.read('model.layers.3.mlp.up_proj.weight'), /read: .*llama-mha has no tensor model\.layers\.3\.mlp\.up_proj\.weight; it has .*in all/);
  t.throws(() => checkpoint.stored('nothing'), /has no tensor nothing/);
});

t.test('writing and reading gives every type back; data are aligned', async (t) => {
  const path = join(t.testdir(), 'all.safetensors');
  await writeSafetensors(path, tensorSources(everyType), { metadata: { note: 'ä' } });
  const file = await openSafetensors(path);
  t.same(file.metadata, { note: 'ä' });
  for (const [name, wanted] of everyType) {
    t.same(await readTensor(file, name), wanted, name);
    const entry = file.tensors.get(name);
    t.equal((entry?.offset ?? 1) % wanted.data.BYTES_PER_ELEMENT, 0, `${name} lies at a multiple of its width`);
  }
  t.equal(Math.min(...[...file.tensors.values()].map((entry) => entry.offset)) % 64, 0);
  const checkpoint = await openCheckpoint(path);
  t.same((await checkpoint.read('w.bf16')).data, Float32Array.of(1, -2, 3));
  t.same((await checkpoint.read('w.f64')).data, Float32Array.of(Math.PI));
  t.equal(checkpoint.stored('w.bf16')?.dtype, 'bfloat16');
  t.equal(checkpoint.stored('w.f64'), null);
  await t.rejects(checkpoint.read('i32'), /weights must be F64, F32, F16 or BF16, tensor i32 .* is I32/);
});

t.test('shards: split by size, indexed, opened as one', async (t) => {
  const directory = t.testdir();
  const weights = ['a', 'b', 'c', 'd'].map((name, i) => [name, tensor('float32', [5], new Float32Array(5).fill(i))] as const);
  const files = await writeShardedSafetensors(directory, tensorSources(weights), { maxShardBytes: 41 });
  t.same(files, ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors', 'model.safetensors.index.json']);
  const checkpoint = await openCheckpoint(directory);
  for (const [name, wanted] of weights) t.same(await checkpoint.read(name), wanted);
  t.equal(checkpoint.stored('c')?.file.path, join(directory, files[1] ?? ''));
  t.same(await writeShardedSafetensors(join(directory, 'one'), tensorSources(weights)), ['model.safetensors']);

  const index = (map: object): Promise<void> => writeFile(join(directory, 'model.safetensors.index.json'), JSON.stringify({ weight_map: map }));
  await index({ a: 'model-00002-of-00002.safetensors' });
  await t.rejects(openCheckpoint(directory), /says that model-00002-of-00002\.safetensors holds tensor a, which it does not/);
  await index({ a: '../model.safetensors' });
  await t.rejects(openCheckpoint(directory), /must name a file beside it for tensor a/);
});

t.test('bad files are refused with the file, the rule and the value', async (t) => {
  const f32 = (begin: number, end: number, shape: unknown = [2]): object => ({ dtype: 'F32', shape, data_offsets: [begin, end] });
  const data = new Uint8Array(16);
  const cases: readonly [string, Uint8Array, RegExp][] = [
    ['short', new Uint8Array(5), /must start with 8 bytes of header length, got 5 bytes/],
    ['header', fileOf({}, new Uint8Array(0), 900), /header of .* is 900 bytes but the file has 10/],
    ['huge', fileOf({}, new Uint8Array(0), 2 ** 60), /header of .* is 1152921504606846976 bytes but/],
    ['json', fileOf('{"a": ', data), /header of .* is not JSON/],
    ['array', fileOf('[]', data), /must be a JSON object/],
    ['dtype', fileOf({ a: { dtype: 'F8_E4M3', shape: [16], data_offsets: [0, 16] } }, data), /tensor a of .* must have a dtype of F64, .* got F8_E4M3/],
    ['proto', fileOf({ a: { dtype: 'constructor', shape: [16], data_offsets: [0, 16] } }, data), /got constructor/],
    ['shape', fileOf({ a: f32(0, 16, [2, -2]) }, data), /tensor a of .* shape of whole numbers, got \[2,-2\]/],
    ['size', fileOf({ a: f32(0, 16, [3]) }, data), /F32 \[3\] needs 12 bytes, got offsets 0\.\.16/],
    ['overlap', fileOf({ a: f32(0, 8), b: f32(4, 12), c: f32(8, 16) }, data), /tensors a and b of .* overlap at 4\.\.12/],
    ['outside', fileOf({ a: f32(0, 8), b: f32(16, 24) }, data), /tensor b of .* lies at 16\.\.24 but the file has 16 bytes of data/],
    ['hole', fileOf({ a: f32(8, 16) }, data), /has a hole of 8 bytes before tensor a/],
    ['rest', fileOf({ a: f32(0, 8) }, data), /has 8 bytes after the last tensor, a/],
    ['offsets', fileOf({ a: { dtype: 'F32', shape: [4] } }, data), /must have two data_offsets, got undefined/],
  ];
  for (const [name, bytes, error] of cases) {
    const path = join(t.testdir(), `${name}.safetensors`);
    await writeFile(path, bytes);
    await t.rejects(openSafetensors(path), error, name);
  }
  const whole = await readFile(join(zoo('llama-mqa'), 'model.safetensors'));
  const cut = join(t.testdir({}), 'model.safetensors');
  await writeFile(cut, whole.subarray(0, whole.length - 100));
  await t.rejects(openCheckpoint(cut), /lies at .* but the file has/, 'truncated');
});

t.test('NaN and infinity are refused where they are', async (t) => {
  for (const [bad, dtype] of [[NaN, 'float32'], [Infinity, 'bfloat16'], [-Infinity, 'float16']] as const) {
    const values = tensor('float32', [3, 5], new Float32Array(15));
    values.data[13] = bad;
    const path = join(t.testdir(), 'model.safetensors');
    await writeSafetensors(path, tensorSources([['w', toDType(values, dtype)]]));
    await t.rejects((await openCheckpoint(path)).read('w'), new RegExp(`tensor w of .* has ${bad} at \\[2, 3\\]`));
  }
  t.same(toFloat32(zeros('float32', [1])).data, Float32Array.of(0));
});

t.test('what is no model is refused with what was found', async (t) => {
  await t.rejects(openCheckpoint(t.testdir({ 'readme.txt': '' })), /must hold model\.safetensors, .* got readme\.txt/);
  await t.rejects(openCheckpoint(t.testdir({ 'a.gguf': '', 'b.gguf': '' })), /exactly one \.gguf file, got a\.gguf, b\.gguf/);
  await t.rejects(openCheckpoint(join(t.testdir({ 'model.bin': '' }), 'model.bin')), /a directory, a \.safetensors or a \.gguf file, got/);
  await t.rejects(openCheckpoint(t.testdir({})), /got an empty directory/);
});

t.test('a failed write names the file and leaves nothing, or what was there', async (t) => {
  const directory = t.testdir({ 'model.safetensors': 'before' });
  const path = join(directory, 'model.safetensors');
  const full: WriteBytes = async (file, bytes, position) => {
    if (position >= 64) throw Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' });
    return (await file.write(bytes, 0, Math.min(bytes.length, 5), position)).bytesWritten; // short writes go on
  };
  const untouched = async (what: string): Promise<void> => {
    t.same(await readdir(directory), ['model.safetensors'], `${what}: no other file`);
    t.equal(await readFile(path, 'utf8'), 'before', `${what}: the old file`);
  };
  const sources = tensorSources(everyType);
  const error = await writeSafetensors(path, sources, { writeBytes: full }).then(() => null, (e: unknown) => e);
  t.match(error, { message: /writeFileAtomic: .*model\.safetensors was not written: ENOSPC/ });
  t.equal(errorCode(error instanceof Error ? error.cause : null), 'ENOSPC');
  await untouched('disk full');

  const stop = new AbortController();
  const aborting = [...sources, { name: 'late', dtype: 'float32' as const, shape: [1], read: () => (stop.abort(new Error('stopped')), zeros('float32', [1])) }];
  await t.rejects(writeSafetensors(path, aborting, { signal: stop.signal }), /stopped/);
  await untouched('aborted');

  await t.rejects(
    writeSafetensors(path, [{ name: 'w', dtype: 'float32', shape: [3], read: () => zeros('float32', [2]) }]),
    /tensor w of .* was announced as float32 \[3\], got float32 \[2\]/,
  );
  await t.rejects(writeSafetensors(path, [...sources, ...sources]), /names .* must be unique/);
  await untouched('bad tensors');
  await t.rejects(writeFileAtomic(join(directory, 'none', 'x'), 'x'), /none.x was not written: ENOENT/);
  await writeFileAtomic(path, 'after');
  t.equal(await readFile(path, 'utf8'), 'after');
});

t.test('a directory appears whole or not at all, and never over another', async (t) => {
  const root = t.testdir({ full: { 'x.txt': '' }, empty: {}, file: '' });
  const fill = (directory: string): Promise<void> => writeFileAtomic(join(directory, 'a.txt'), 'a');
  await writeDirectoryAtomic(join(root, 'new'), fill);
  await writeDirectoryAtomic(join(root, 'empty'), fill);
  for (const name of ['new', 'empty']) t.same(await readdir(join(root, name)), ['a.txt']);
  await t.rejects(writeDirectoryAtomic(join(root, 'full'), fill), /output directory must be empty or absent, .*full holds x\.txt/);
  await t.rejects(refuseOccupied(join(root, 'file')), /output must be a directory/);
  const half = async (directory: string): Promise<void> => {
    await fill(directory);
    t.notOk(existsSync(join(root, 'half')));
    throw new Error('half way');
  };
  await t.rejects(writeDirectoryAtomic(join(root, 'half'), half), /half way/);
  const signal = AbortSignal.abort(new Error('stopped'));
  await t.rejects(writeDirectoryAtomic(join(root, 'never'), fill, { signal }), /stopped/);
  const late = async (directory: string): Promise<void> => {
    await fill(directory);
    await mkdir(join(root, 'late'));
    await writeFile(join(root, 'late', 'theirs'), '');
  };
  await t.rejects(writeDirectoryAtomic(join(root, 'late'), late), 'what another program put there meanwhile stays');
  t.same((await readdir(root)).sort(), ['empty', 'file', 'full', 'late', 'new']);
  t.same(await readdir(join(root, 'late')), ['theirs']);
});
