/** Whole models: the zoo's goldens in every way of running, conversions at full and part rank, and what conversion refuses. */
import { mkdir, readFile, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { convert } from '../lib/convert.ts';
import type { Constant, Subgraph } from '../lib/graph/subgraph.ts';
import { runSubgraph } from '../lib/graph/run.ts';
import { withGemm } from '../lib/linalg/onnx-gemm.ts';
import { absorptions, layerAbsorption } from '../lib/models/absorption.ts';
import { buildDecoder, cacheLayoutOf } from '../lib/models/decoder.ts';
import { loadDecoderWeights } from '../lib/models/decoder-weights.ts';
import { isOneRow, latentCachedRows, latentPieces, rowMultiple, type CachedLayer, type CacheFormat } from '../lib/models/cache-layout.ts';
import { levelRopeKeys } from '../lib/models/level-rope-keys.ts';
import { openModel, type Model } from '../lib/models/model.ts';
import { rotateLatents } from '../lib/models/rotate-latent.ts';
import { constantValues } from '../lib/passes/constant-weight.ts';
import { decodePasses as fast } from '../lib/passes/decode-passes.ts';
import { createCache } from '../lib/session/cache.ts';
import { openSession, type Session, type SessionOptions } from '../lib/session/session.ts';
import { tokenFeeds } from '../lib/session/token-feeds.ts';
import { difference } from './support/readings.ts';
import { llamaZoo, readGolden, withDirectory, zooPath } from './support/tiny.ts';

const goldenTolerance = 2e-4; // float32 through three layers, as agreed for the zoo

async function withSession<T>(model: Model, options: SessionOptions, work: (session: Session) => Promise<T>): Promise<T> {
  const session = openSession(model, { threads: 1, ...options });
  try {
    return await work(session);
  } finally {
    await session.close();
  }
}

const worst = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let gap = a.length === b.length ? 0 : Infinity;
  for (let i = 0; i < a.length; i++) gap = Math.max(gap, Math.abs((a[i] ?? NaN) - (b[i] ?? NaN)));
  return gap;
};

const oneByOne = async (session: Session, ids: readonly number[]): Promise<Float32Array> => {
  const cache = session.createCache(ids.length);
  const rows: Float32Array[] = [];
  for (const id of ids) rows.push(await session.step(cache, id));
  return Float32Array.from(rows.flatMap((row) => [...row]));
};

const inPieces = async (session: Session, ids: readonly number[]): Promise<Float32Array> => {
  const cache = session.createCache(ids.length);
  const [first, second] = [await session.logits(cache, ids.slice(0, 10)), await session.logits(cache, ids.slice(10))];
  return Float32Array.from([...first.data, ...second.data]);
};

for (const name of llamaZoo) {
  t.test(`${name}: the logits of transformers, and a lossless conversion`, async (t) => {
    const golden = await readGolden(name);
    const model = await openModel(zooPath(name));
    const size = golden.logits.length / golden.ids.length;
    await withSession(model, {}, async (session) => {
      for (const [i, ids] of golden.ids.entries()) {
        const expected = golden.logits.subarray(i * size, (i + 1) * size);
        t.ok(worst(expected, (await session.logits(session.createCache(), ids)).data) < goldenTolerance, `row ${i} in one prefill`);
        t.ok(worst(expected, await inPieces(session, ids)) < goldenTolerance, `row ${i} in a split prefill`);
        t.ok(worst(expected, await oneByOne(session, ids)) < goldenTolerance, `row ${i} token by token`);
      }
    });
    await withDirectory(async (directory) => {
      const { kvHeads, headDim, hidden } = model.config;
      const ids = golden.ids[0] ?? [];
      const lossless = join(directory, 'lossless');
      await convert(model, lossless, { plan: 'uniform', factor: 'joint', budget: { pairs: headDim / 2, rank: Math.min(kvHeads * headDim, hidden) } });
      const converted = await openModel(lossless);
      await withSession(converted, {}, async (session) => {
        t.ok(worst(golden.logits.subarray(0, size), (await session.logits(session.createCache(), ids)).data) < goldenTolerance, 'full rank and all pairs equal the source');
      });
      const small = join(directory, 'small');
      const report = await convert(model, small, { plan: 'uniform', factor: 'joint', budget: { pairs: 2, rank: 9 } });
      const lossy = await openModel(small);
      const expanded = await withSession(lossy, {}, async (session) => {
        const whole = (await session.logits(session.createCache(), ids)).data;
        t.ok(worst(whole, await oneByOne(session, ids)) < goldenTolerance, 'cached, absorbed decode equals uncached, expanded prefill');
        t.ok(worst(whole, await inPieces(session, ids)) < goldenTolerance, 'split prefill equals one prefill');
        const cache = session.createCache(7);
        t.equal(cache.bytesPerToken, 4 * report.cacheElementsPerToken.after, 'the buffers have the size the report claims');
        t.equal(report.cacheElementsPerToken.after, model.config.layers * (2 * 2 * kvHeads + 9));
        return whole;
      });
      for (const absorption of ['llama-gqa-tied', 'llama-bias', 'mistral-window'].includes(name) ? ['separate', 'merged'] as const : []) {
        for (const appendInPlace of [true, false]) {
          const seen: string[] = [];
          const decodePasses = [...fast, (graph: Subgraph) => (seen.push(graph.name.split('-').at(-2) ?? ''), graph)];
          const steps = await withSession(lossy, { absorption, appendInPlace, decodePasses }, (session) => oneByOne(session, ids));
          t.ok(worst(expanded, steps) < goldenTolerance, `${absorption}, ${appendInPlace ? 'in place' : 'copied'}`);
          // Elsewhere something stands between the product that makes rope queries and key and their rotation: a bias, or zeros.
          if (!appendInPlace || (absorption === 'merged' && name !== 'llama-bias')) t.same(seen, [appendInPlace ? 'appended' : 'split'], 'one graph was built, of the kind asked for');
        }
      }
      if (name === 'llama-gqa-tied' || name === 'mistral-window') {
        const seen: string[] = [], decodePasses = [...fast, (graph: Subgraph) => (seen.push(graph.name.split('-').at(-2) ?? ''), graph)];
        const steps = (appendInPlace: boolean): Promise<Float32Array> => withSession(lossy, { absorption: 'merged', cache: 'int8', appendInPlace, decodePasses }, (session) => oneByOne(session, ids));
        const inPlace = await steps(true), copied = await steps(false);
        t.same(seen, ['appended', 'split'], 'codes go into the cache in place too');
        t.ok(difference(copied, inPlace) < 0.05, `codes in place and copied: ${difference(copied, inPlace)}`);
      }
      await withSession(lossy, { forms: { prefill: 'absorbed', decode: 'expanded' } }, async (session) => {
        t.ok(worst(expanded, (await session.logits(session.createCache(), ids)).data) < goldenTolerance, 'absorbed prefill equals expanded prefill');
      });
      t.ok(difference(golden.logits.subarray(0, size), expanded) > 1e-3, 'a lossy conversion is lossy');
    });
  });
}

/** Expanded logits of a model with these weights. */
async function logitsWith(model: Model, weights: ReadonlyMap<string, Constant>, ids: readonly number[]): Promise<ArrayLike<number>> {
  const graph = buildDecoder(model, weights, { form: 'expanded', join: true, output: 'logits', positions: ids.length });
  const feeds = { ...tokenFeeds({ inputs: graph.inputs.map((port) => port.name) }, ids, 0, 0), ...createCache(cacheLayoutOf(model, 'f32', ids.length), 1).feeds() };
  const { logits: made } = await runSubgraph(graph, feeds, { threads: 1 });
  return made?.dtype === 'float32' ? made.data : [];
}

t.test('latents levelled and rotated: the same logits', async (t) => {
  for (const [name, latentGroups, rank] of [['llama-gqa-tied', 1, 9], ['llama-gqa-tied', 2, 10], ['llama-bias', 1, 11]] as const) {
    await withDirectory(async (directory) => {
      const { ids: [ids = []] } = await readGolden(name), out = join(directory, 'out');
      await convert(await openModel(zooPath(name)), out, { plan: 'uniform', factor: 'joint', budget: { pairs: 2, rank }, latentGroups });
      const model = await openModel(out), constants = await loadDecoderWeights(model);
      const rotated = await withGemm((gemm) => rotateLatents(model, constants, { gemm }));
      t.ok(worst(await logitsWith(model, constants, ids), await logitsWith(model, rotated, ids)) < goldenTolerance, `${name}, ${latentGroups} latents`);
      t.not(rotated.get('model.layers.1.self_attn.v_up_proj.weight'), constants.get('model.layers.1.self_attn.v_up_proj.weight'), 'other weights');
    });
  }
});

t.test('rope keys of even size: the same scores', async (t) => {
  for (const name of ['llama-gqa-tied', 'llama-bias']) {
    await withDirectory(async (directory) => {
      const { ids: [ids = []] } = await readGolden(name);
      for (const plan of ['uniform', 'high'] as const) {
        const out = join(directory, plan);
        await convert(await openModel(zooPath(name)), out, { plan, factor: 'joint', budget: { pairs: 2, rank: 9 } });
        const model = await openModel(out), constants = await loadDecoderWeights(model), levelled = levelRopeKeys(model, constants);
        t.ok(worst(await logitsWith(model, constants, ids), await logitsWith(model, levelled, ids)) < goldenTolerance, `${name} ${plan}`);
        const read = (name: string): Float32Array => {
          const constant = levelled.get(name);
          return constant === undefined ? new Float32Array(0) : constantValues(constant).data;
        };
        const gains = read('model.layers.1.input_layernorm.weight'), width = model.config.hidden, components = model.mla?.layers[1]?.frequencies.length ?? NaN;
        const powers = (tensor: string): number[] => {
          const weight = read(`model.layers.1.self_attn.${tensor}.weight`), bias = tensor === 'k_rope_proj' ? read(`model.layers.1.self_attn.${tensor}.bias`) : [];
          return Array.from({ length: weight.length / width }, (_, row) => gains.reduce((sum, gain, j) => sum + (gain * weight[row * width + j]!) ** 2, (bias[row] ?? 0) ** 2));
        };
        const latents = powers('kv_down_proj'), keys = powers('k_rope_proj'), size = latents.reduce((a, b) => a + b, 0) / latents.length;
        for (let c = 0; c < components; c++) t.ok(Math.abs((keys[c]! + keys[c + components]!) / size - 1) < 1e-4, `component ${c} measures what a latent does`);
        await withSession(model, { cache: 'int8' }, async (session) => {
          const gap = difference(await logitsWith(model, constants, ids), await oneByOne(session, ids));
          t.ok(gap < 0.05, `an int8 cache, token by token: ${gap}`);
        });
      }
    });
  }
});

t.test('which rows lie in one array', (t) => {
  const layer = { rank: 88, nopeWidth: 64, frequencies: Array<number>(16).fill(1) };
  const by = (changed: Partial<CachedLayer>, format: CacheFormat, contexts: readonly number[]): boolean[] => contexts.map((context) => isOneRow({ ...layer, ...changed }, format, context));
  for (const format of ['f32', 'f16'] as const) t.same(by({}, format, [1, 4096, 4097, Infinity]), [true, true, false, false], `${format}: as long as rope keys are few`);
  t.same(by({ frequencies: [1] }, 'f32', [4097, 65536, 65537]), [true, true, false]);
  t.same(by({}, 'int8', [1, 4097, Infinity]), [true, true, true], 'codes always');
  t.same(by({ latentNormEps: 1e-5 }, 'int8', [1]), [false], 'but where latents have a size of their own');
  t.same(by({}, 'int4', [1]), [false]);
  for (const format of ['f32', 'int8'] as const) {
    for (const changed of [{ frequencies: [] }, { nopeWidth: 0 }, { latentGroups: 2 }]) t.same(by(changed, format, [1]), [false], `${format} ${JSON.stringify(changed)}`);
  }
  t.end();
});

t.test('which latents lie in an array for each group', (t) => {
  const layer = { rank: 96, nopeWidth: 64, frequencies: [1, 0.1], latentGroups: 3 };
  const by = (changed: Partial<CachedLayer>, format: CacheFormat, contexts: readonly number[]): number[] => contexts.map((context) => latentPieces({ ...layer, ...changed }, format, context));
  for (const format of ['f32', 'f16'] as const) t.same(by({}, format, [1, 6144, 6145, Infinity]), [1, 1, 3, 3], `${format}: as soon as there are many`);
  t.same(by({ rank: 24 }, 'f32', [24576, 24577]), [1, 3], 'the narrower, the later');
  for (const format of ['int8', 'int4'] as const) t.same(by({}, format, [Infinity]), [1], `${format}: codes share a step`);
  t.same([by({ latentGroups: 1 }, 'f32', [Infinity]), by({ headNorm: { eps: 1e-5, kvHeads: 3 } }, 'f32', [Infinity])], [[1], [1]], 'one latent, or keys with factors of their own');
  const rows = latentCachedRows({ layers: [layer, { ...layer, latentGroups: 1 }], heads: 3 }, 'f32', 6145);
  t.same(rows.map(({ layer: index, name, piece, row }) => [index, name, piece, row]), [[0, 'rope', undefined, [4]], [0, 'latent', 0, [32]], [0, 'latent', 1, [32]], [0, 'latent', 2, [32]], [1, 'row', undefined, [100]]]);
  t.same([rowMultiple(rows), rowMultiple(latentCachedRows({ layers: [layer], heads: 9 }, 'f32', 6145)), rowMultiple(latentCachedRows({ layers: [layer], heads: 3 }, 'f32', 6144))], [16, 1, 1], 'blocks where each head has a latent to itself');
  t.end();
});

t.test('the cost rule of up-projections', async (t) => {
  const { config } = await openModel(zooPath('llama-mha')), shape = { ...config, heads: 9, kvHeads: 3, headDim: 64, hidden: 576 };
  const layer = { rank: 96, nopeWidth: 56, frequencies: Array<number>(12).fill(1) };
  const wide = layerAbsorption(shape, layer, 4), shared = 10 * 24 * 576 + 96 * 576;
  t.same(wide, { chosen: 'separate', separate: { weights: shared + 9 * (56 + 64) * 576 + 3 * (56 + 64) * 96, extraNodes: 16 }, merged: { weights: shared + 18 * 96 * 576, extraNodes: 0 } });
  t.equal(layerAbsorption(shape, layer, 1).chosen, 'merged', 'with a byte a weight, operators count more');
  t.equal(layerAbsorption(shape, { ...layer, rank: 24 }, 4).chosen, 'merged', 'at a low rank merging saves weights');
  t.equal(layerAbsorption(shape, { ...layer, latentNormEps: 1e-5 }, 1).merged, null, 'a norm stands between');
  t.same(absorptions(shape, { layers: [layer, { ...layer, latentGroups: 3 }] }, 4, 'merged').map(({ chosen }) => chosen), ['merged', 'separate'], 'where it can be, a choice is taken over');
});

t.test('a window shorter than the text is honoured', async (t) => {
  const model = await openModel(zooPath('mistral-window'));
  const wide = { ...model, config: { ...model.config, window: null } };
  const [ids = []] = (await readGolden('mistral-window')).ids;
  const logits = (of: Model): Promise<Float32Array> => withSession(of, {}, async (session) => (await session.logits(session.createCache(), ids)).data);
  t.ok(worst(await logits(model), await logits(wide)) > 1e-2);
});

t.test('a session refuses what does not fit', async (t) => {
  const model = await openModel(zooPath('llama-gqa-tied'));
  await withSession(model, { contextLength: 5 }, async (session) => {
    const cache = session.createCache();
    await t.rejects(session.prefill(cache, [1, 2, 3, 4, 5, 6]), /prompt must fit the context of 5 tokens, got 0 cached and 6 new/);
    await t.rejects(session.prefill(cache, [97]), /token ids must be 0..96, got 97/);
    await t.rejects(session.prefill(cache, []), /at least one token/);
    await session.prefill(cache, [1, 2, 3, 4, 5]);
    await t.rejects(session.step(cache, 1), /context of 5 tokens is full/);
    cache.truncate(2);
    await t.resolves(session.step(cache, 1));
  });
  t.throws(() => openSession(model, { forms: { prefill: 'absorbed', decode: 'absorbed' } }), /form must be one of source .* got absorbed/);
});

t.test('conversion refuses and leaves nothing behind', async (t) => {
  await withDirectory(async (directory) => {
    const model = await openModel(zooPath('llama-gqa-tied'));
    const plain = { plan: 'uniform', factor: 'joint' } as const;
    const out = join(directory, 'out');
    const refused = async (rule: RegExp, work: () => Promise<unknown>): Promise<void> => {
      await t.rejects(work(), rule);
      t.same((await readdir(directory)).filter((name) => name !== 'occupied' && name !== 'converted' && name !== 'broken'), [], `nothing written: ${rule}`);
    };
    await refused(/rank must be 1\.\.\d+ for layer 0, got 400/, () => convert(model, out, { ...plain, budget: { pairs: 2, rank: 400 } }));
    await refused(/pairs must be 1\.\.8 per KV head, got 9/, () => convert(model, out, { ...plain, budget: { pairs: 9 } }));
    await refused(/at least share/, () => convert(model, out, { ...plain, budget: { cacheShare: 0.01 } }));
    await mkdir(join(directory, 'occupied'));
    await writeFile(join(directory, 'occupied', 'file'), 'mine');
    await refused(/must be empty or absent/, () => convert(model, join(directory, 'occupied'), plain));
    t.equal(await readFile(join(directory, 'occupied', 'file'), 'utf8'), 'mine');
    const full = Object.assign(new Error('no space left on device'), { code: 'ENOSPC' });
    await refused(/was not written: no space left/, () => convert(model, out, { ...plain, writeBytes: () => Promise.reject(full) }));
    const controller = new AbortController();
    await refused(/stopped by the test/, () => convert(model, out, { ...plain, signal: controller.signal, onProgress: () => controller.abort(new Error('stopped by the test')) }));
    const converted = join(directory, 'converted');
    await convert(model, converted, { ...plain, budget: { pairs: 2 } });
    const again = await openModel(converted);
    await refused(/converted already/, () => convert(again, out, plain));
    const broken = join(directory, 'broken');
    await mkdir(broken);
    await writeFile(join(broken, 'config.json'), await readFile(join(zooPath('llama-gqa-tied'), 'config.json')));
    const bytes = await readFile(join(zooPath('llama-gqa-tied'), 'model.safetensors'));
    await writeFile(join(broken, 'model.safetensors'), bytes.subarray(0, bytes.length - 1000));
    await refused(/model\.safetensors/, () => openModel(broken));
    const nan = Buffer.from(bytes);
    const header = Number(nan.readBigUInt64LE(0));
    const spans: Record<string, { data_offsets?: [number, number] }> = JSON.parse(nan.subarray(8, 8 + header).toString());
    nan.writeFloatLE(NaN, 8 + header + (spans['model.layers.1.self_attn.k_proj.weight']?.data_offsets?.[0] ?? 0));
    await writeFile(join(broken, 'model.safetensors'), nan);
    await refused(/finite.*model\.layers\.1\.self_attn\.k_proj\.weight/, async () => convert(await openModel(broken), out, plain));
  });
});
