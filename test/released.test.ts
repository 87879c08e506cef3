/** Checkpoints that MHA2MLA, TransMLA and transformers wrote: their logits in every way of running, re-laid, and refused when they lie. */
import { cp, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { readSafetensors } from '../lib/checkpoint/safetensors.ts';
import { readTorchTensor } from '../lib/checkpoint/torch-pickle.ts';
import { openModel, type Model } from '../lib/models/model.ts';
import { highestPairs, readPairTable } from '../lib/released/pair-table.ts';
import { relayModel } from '../lib/released/relay.ts';
import { openSession } from '../lib/session/session.ts';
import { windowsOf } from './support/converted.ts';
import { withDirectory } from './support/tiny.ts';

const converterPath = (name: string): string => new URL(`data/converters/${name}`, import.meta.url).pathname;
const tolerance = 5e-4; // the originals' own float32 logits, as agreed

const released: Readonly<Record<string, string>> = {
  'mha2mla-legacy-llama-gqa-tied-2-norm-svd2-kv4': 'MHA2MLA (legacy)',
  'mha2mla-legacy-llama-gqa-tied-low-svd7-kv4': 'MHA2MLA (legacy)',
  'mha2mla-legacy-llama-mha-2-norm-svd7-kv4': 'MHA2MLA (legacy)',
  'mha2mla-legacy-sq-gqa-tied-uniform-svd7-kv4': 'MHA2MLA (legacy)',
  'mha2mla-main-llama-gqa-tied-high-joint-kv24': 'MHA2MLA (main branch)',
  'mha2mla-main-llama-gqa-tied-low-joint-kv4': 'MHA2MLA (main branch)',
  'mha2mla-main-llama-gqa-tied-uniform-split-kv4': 'MHA2MLA (main branch)',
  'mha2mla-main-qwen2-2-norm-joint-kv4': 'MHA2MLA (main branch)',
  'mha2mla-main-sq-gqa-tied-2-norm-none': 'MHA2MLA (main branch)',
  'mha2mla-main-sq-gqa-tied-2-norm-joint-kv4': 'MHA2MLA (main branch)',
  'transmla-llama-gqa-tied-rope8-fold2-kv24': 'TransMLA',
  'transmla-qwen2-rope4-fold4-kv12': 'TransMLA',
  'transmla-sq-gqa-tied-rope4-fold4-kv12': 'TransMLA',
  'transmla-sq-gqa-tied-rope8-fold2-kv24-norm': 'TransMLA',
  'transmla-sq-mha-rope8-fold2-kv24-q16': 'TransMLA',
  'deepseek-v3-dense': 'DeepSeek V3 (dense)',
};

interface Golden {
  readonly ids: readonly (readonly number[])[];
  readonly logits: (row: number) => Float32Array;
}

async function goldenOf(name: string): Promise<Golden> {
  const tensors = await readSafetensors(join(converterPath(name), 'golden.safetensors'));
  const [ids, logits] = [tensors.get('ids'), tensors.get('logits')];
  if (ids === undefined || logits?.dtype !== 'float32') throw new TypeError(`test: ${name} must have ids and logits`);
  const rows = windowsOf(ids);
  const size = logits.data.length / rows.length;
  return { ids: rows, logits: (row) => logits.data.subarray(row * size, (row + 1) * size) };
}

const worst = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let gap = a.length === b.length ? 0 : Infinity;
  for (let i = 0; i < a.length; i++) gap = Math.max(gap, Math.abs((a[i] ?? NaN) - (b[i] ?? NaN)));
  return Number.isNaN(gap) ? Infinity : gap;
};

/** Logits of one prefill, of single steps (absorbed form) and of a split prefill. */
async function threeWays(model: Model, ids: readonly number[]): Promise<Record<'prefill' | 'steps' | 'split', ArrayLike<number>>> {
  const session = openSession(model, { threads: 1 });
  try {
    const prefill = (await session.logits(session.createCache(ids.length), ids)).data;
    const stepped = session.createCache(ids.length);
    const steps: number[] = [];
    for (const id of ids) steps.push(...(await session.step(stepped, id)));
    const cache = session.createCache(ids.length);
    const [first, second] = [await session.logits(cache, ids.slice(0, 10)), await session.logits(cache, ids.slice(10))];
    return { prefill, steps, split: [...first.data, ...second.data] };
  } finally {
    await session.close();
  }
}

for (const [name, format] of Object.entries(released)) {
  t.test(`${name} gives the logits of the code that wrote it`, async (t) => {
    const model = await openModel(converterPath(name));
    t.equal(model.released, format);
    const { ids, logits } = await goldenOf(name);
    for (const [row, tokens] of ids.entries()) {
      for (const [way, got] of Object.entries(await threeWays(model, tokens))) t.ok(worst(got, logits(row)) < tolerance, `row ${row}, ${way}: off by ${worst(got, logits(row))}`);
    }
  });
}

t.test('a released checkpoint is re-laid without loss, and then needs no table', async (t) => {
  for (const name of [
    'mha2mla-legacy-llama-gqa-tied-2-norm-svd2-kv4', 'mha2mla-main-qwen2-2-norm-joint-kv4', 'mha2mla-main-sq-gqa-tied-2-norm-none', 'transmla-sq-mha-rope8-fold2-kv24-q16',
    'transmla-sq-gqa-tied-rope8-fold2-kv24-norm',
  ]) {
    await withDirectory(async (directory) => {
      const out = join(directory, 'relaid');
      const source = await openModel(converterPath(name));
      const report = await relayModel(source, out, { files: { 'extra.txt': 'kept' } });
      const relaid = await openModel(out);
      t.equal(relaid.released, null, `${name}: in our layout`);
      t.equal(await readFile(join(out, 'extra.txt'), 'utf8'), 'kept');
      const { ids } = await goldenOf(name);
      const tokens = ids[0] ?? [];
      const [before, after] = [await threeWays(source, tokens), await threeWays(relaid, tokens)];
      t.equal(worst(before.prefill, after.prefill), 0, `${name}: the same numbers`);
      const session = openSession(relaid, { threads: 1 });
      t.equal(session.createCache(3).bytesPerToken, 4 * report.cacheElementsPerToken.after, `${name}: the buffers are as large as the report says`);
      await session.close();
      await t.rejects(relayModel(relaid, join(directory, 'again')), /relayModel: MODEL must be a checkpoint of another format.*in our layout already/);
    });
  }
});

/** A copy of a released checkpoint with another config.json, and without its table when `table` is null. */
async function changed<T>(name: string, change: (config: Record<string, unknown>) => void, table: string | null, work: (path: string) => Promise<T>): Promise<T> {
  return withDirectory(async (directory) => {
    const path = join(directory, 'model');
    await mkdir(path);
    await cp(join(converterPath(name), 'model.safetensors'), join(path, 'model.safetensors'));
    if (table !== null) await cp(join(converterPath(name), table), join(path, table));
    const config = JSON.parse(await readFile(join(converterPath(name), 'config.json'), 'utf8')) as Record<string, unknown>;
    change(config);
    await writeFile(join(path, 'config.json'), JSON.stringify(config));
    return work(path);
  });
}
const block = (config: Record<string, unknown>, name: string): Record<string, unknown> => config[name] as Record<string, unknown>;

t.test('what the configurations leave out or misspell', async (t) => {
  const legacy = 'mha2mla-legacy-llama-gqa-tied-2-norm-svd2-kv4';
  await changed(legacy, () => {}, null, async (path) => {
    await t.rejects(openModel(path), /which pairs rotate stands in a table outside this checkpoint \(qk_tensor\.pth\)/, 'without its table');
    const model = await openModel(path, { pairTable: join(converterPath(legacy), 'qk_tensor.pth') });
    const { ids, logits } = await goldenOf(legacy);
    t.ok(worst((await threeWays(model, ids[0] ?? [])).prefill, logits(0)) < tolerance, 'with the table from elsewhere');
    await t.rejects(openModel(path, { pairTable: join(converterPath('mha2mla-legacy-llama-mha-2-norm-svd7-kv4'), 'qk_tensor.pth') }), /must hold float scores \[3, 2, 8\] or whole ranks \[3, 2, 16\], got float32 \[3,6,8\]/);
    await t.rejects(openModel(path, { pairTable: join(path, 'absent.pth') }), /absent\.pth does not exist/);
  });
  await changed('mha2mla-legacy-llama-gqa-tied-low-svd7-kv4', (config) => {
    const rope = block(config, 'RoPE');
    rope.lask_k_rope_dim = rope.last_k_rope_dim;
    delete rope.last_k_rope_dim;
  }, null, async (path) => {
    const { ids, logits } = await goldenOf('mha2mla-legacy-llama-gqa-tied-low-svd7-kv4');
    t.ok(worst((await threeWays(await openModel(path), ids[0] ?? [])).prefill, logits(0)) < tolerance, 'lask_k_rope_dim, as in the released Llama 2 checkpoints');
  });
  for (const [name, value] of [['RoPE', { partial_rope_version: 0, top_k_rope_dim: 0 }], ['mha2mla', { is_baseline: true, partial_rope_version: 'high' }]] as const) {
    await changed('source-sq-gqa-tied', (config) => { config[name] = value; }, null, async (path) => {
      const model = await openModel(path);
      t.equal(model.released, null, `a baseline with a ${name} block is an ordinary model`);
      const { ids, logits } = await goldenOf('source-sq-gqa-tied');
      t.ok(worst((await threeWays(model, ids[0] ?? [])).prefill, logits(0)) < tolerance);
    });
  }
  const main = 'mha2mla-main-llama-gqa-tied-high-joint-kv24';
  const refusals: [string, string, (config: Record<string, unknown>) => void, RegExp][] = [
    [main, 'pairs for dims', (config) => { block(config, 'mha2mla').rope_dim_for_mla = 8; }, /self_attn\.k_r_proj\.weight .* must have 16 rows for 4 rotating pairs per head in layer 0, got 8/],
    [main, 'an odd number of dims', (config) => { block(config, 'mha2mla').rope_dim_for_mla = 3; }, /mha2mla block of .* must be valid/],
    [main, 'a strategy nobody knows', (config) => { block(config, 'mha2mla').partial_rope_version = 'middle'; }, /mha2mla block of .* must be valid/],
    [main, 'repeated heads', (config) => { block(config, 'mha2mla').is_gqa2mha2mla = true; }, /repeated KV heads are not read/],
    ['mha2mla-legacy-llama-gqa-tied-low-svd7-kv4', 'a legacy strategy nobody knows', (config) => { block(config, 'RoPE').partial_rope_version = 9; }, /RoPE block of .* must be valid/],
    ['mha2mla-legacy-sq-gqa-tied-uniform-svd7-kv4', 'a step that parts pairs', (config) => { block(config, 'RoPE').uniform_step = 3; }, /uniform_step of .* must divide the 8 pairs/],
    ['source-sq-gqa-tied', 'partial RoPE without factors', (config) => { config.RoPE = { partial_rope_version: 1, top_k_rope_dim: 4 }; }, /block RoPE of config\.json says that the model was converted/],
    ['source-sq-gqa-tied', 'a conversion that did not happen', (config) => { config.mha2mla = { is_baseline: false }; }, /block mha2mla of config\.json says that the model was converted/],
    ['deepseek-v3-dense', 'experts', (config) => { config.first_k_dense_replace = 1; }, /first_k_dense_replace must be 3 \(experts are not read\), got 1/],
    ['transmla-qwen2-rope4-fold4-kv12', 'capped scores', (config) => { config.attn_logit_softcapping = 30; }, /capped scores are not read/],
    ['transmla-qwen2-rope4-fold4-kv12', 'a missing rank', (config) => { delete config.kv_lora_rank; }, /must describe a dense model that is read here/],
  ];
  for (const [name, what, change, error] of refusals) await changed(name, change, null, (path) => t.rejects(openModel(path), error, what));
  await t.rejects(openModel(converterPath('source-sq-gqa-tied'), { pairTable: 'x.pth' }), /a pair table belongs to an MHA2MLA checkpoint/);
});

t.test('tables of pairs', async (t) => {
  const path = join(converterPath('mha2mla-main-sq-gqa-tied-2-norm-none'), '2_norm_rank.pth');
  const table = (await readSafetensors(join(converterPath('mha2mla-main-sq-gqa-tied-2-norm-none'), 'golden.safetensors'))).get('rank_table');
  t.same(await readTorchTensor(path), table, 'a torch file holds what safetensors holds');
  const scores = await readPairTable(path, { layers: 3, kvHeads: 2, headDim: 16 });
  const ranks = Array.from(table?.data ?? [], Number);
  for (const layer of [0, 1, 2]) {
    for (const kvHead of [0, 1]) {
      const kept = Array.from({ length: 8 }, (_, pair) => pair).filter((pair) => (ranks[(layer * 2 + kvHead) * 16 + pair] ?? 9) < 3);
      t.same(highestPairs(scores[layer] ?? new Float64Array(0), kvHead, 8, 3), kept);
    }
  }
  await t.rejects(readPairTable(path, { layers: 2, kvHeads: 2, headDim: 16 }), /must hold float scores \[2, 2, 8\]/);
});

/** A zip archive of stored entries, as torch.save writes it. */
function storedZip(entries: Readonly<Record<string, Uint8Array>>, method = 0): Buffer {
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let offset = 0;
  for (const [name, data] of Object.entries(entries)) {
    const local = Buffer.alloc(30);
    local.writeUInt32LE(0x04034b50, 0);
    local.writeUInt16LE(name.length, 26);
    const central = Buffer.alloc(46);
    central.writeUInt32LE(0x02014b50, 0);
    central.writeUInt16LE(method, 10);
    central.writeUInt32LE(data.length, 20);
    central.writeUInt32LE(data.length, 24);
    central.writeUInt16LE(name.length, 28);
    central.writeUInt32LE(offset, 42);
    parts.push(local, Buffer.from(name), Buffer.from(data));
    directory.push(central, Buffer.from(name));
    offset += 30 + name.length + data.length;
  }
  const end = Buffer.alloc(22);
  end.writeUInt32LE(0x06054b50, 0);
  end.writeUInt16LE(Object.keys(entries).length, 10);
  end.writeUInt32LE(Buffer.concat(directory).length, 12);
  end.writeUInt32LE(offset, 16);
  return Buffer.concat([...parts, ...directory, end]);
}

t.test('a torch file runs nothing and holds one tensor', async (t) => {
  const rebuild = (type = 'FloatStorage', stride = '\x4b\x02'): string =>
    `\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\n${type}\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQK\0K\x03K\x02\x86${stride}K\x01\x86\x89ccollections\nOrderedDict\n)RtR.`;
  const data = new Uint8Array(Float32Array.of(1, 2, 3, 4, 5, 6).buffer);
  const file = async (pickle: string, archive: Record<string, Uint8Array> = {}, method = 0): Promise<string> => {
    const path = join(t.testdir(), `${Math.random()}.pth`);
    await writeFile(path, storedZip({ 'a/data.pkl': Buffer.from(pickle, 'latin1'), 'a/data/0': data, ...archive }, method));
    return path;
  };
  t.same(await readTorchTensor(await file(rebuild())), { dtype: 'float32', shape: [3, 2], data: Float32Array.of(1, 2, 3, 4, 5, 6) });
  const cases: [string, string, RegExp][] = [
    ['a call of anything else', '\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R.', /but its pickle calls posix system/],
    ['an instruction that builds objects', '\x80\x02cbuiltins\nobject\n)\x81.', /its pickle has instruction 0x81/],
    ['a dictionary', '\x80\x02ccollections\nOrderedDict\n)R.', /must hold one tensor and nothing else, got dict/],
    ['a name alone', '\x80\x02cos\nsystem\n.', /must hold one tensor and nothing else, got os system/],
    ['a storage nobody knows', rebuild('QuantizedStorage'), /must hold a storage of a known type, got torch QuantizedStorage/],
    ['rows that do not lie behind each other', rebuild('FloatStorage', 'K\x01'), /must hold a contiguous tensor, got shape \[3,2\] with strides \[1,1\]/],
    ['too little data', rebuild('DoubleStorage'), /must hold 48 bytes of data\/0 for a float64 tensor \[3,2\], got 24/],
    ['half a pickle', rebuild().slice(0, 60), /must hold a whole pickle, but it ends early/],
    ['an empty stack', '\x80\x02R.', /its stack runs empty/],
    ['a mark that is missing', '\x80\x02K\x01t.', /a mark is missing/],
    ['nothing remembered', '\x80\x02h\x05.', /nothing is remembered as 5/],
  ];
  for (const [what, pickle, error] of cases) await t.rejects(readTorchTensor(await file(pickle)), error, what);
  await t.rejects(readTorchTensor(await file(rebuild(), { 'a/byteorder': Buffer.from('big') })), /must be little-endian/);
  await t.rejects(readTorchTensor(await file(rebuild(), {}, 8)), /must store its entries uncompressed/);
  const whole = await readFile(await file(rebuild()));
  const cut = join(t.testdir(), 'cut.pth');
  await writeFile(cut, whole.subarray(0, whole.length - 30));
  await t.rejects(readTorchTensor(cut), /must be a zip archive, but has no end record/);
  await writeFile(cut, whole.subarray(20));
  await t.rejects(readTorchTensor(cut), /zipEntries: .*must/, 'a head that is missing');
  await writeFile(cut, storedZip({ 'a/other': data }));
  await t.rejects(readTorchTensor(cut), /must hold data\.pkl/);
});
