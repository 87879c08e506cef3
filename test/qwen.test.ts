/** Qwen 2 (biases) and Qwen 3 (a norm on every head): the logits of transformers, and conversions that keep both exact. */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { headNorms, sourceAttentionLayer } from '../kernels/index.ts';
import { configFromGguf } from '../lib/checkpoint/config.ts';
import type { GgufValue } from '../lib/checkpoint/gguf.ts';
import { convert } from '../lib/convert.ts';
import { record } from '../lib/graph/record.ts';
import { runSubgraph } from '../lib/graph/run.ts';
import type { HostTensor, Subgraph } from '../lib/graph/subgraph.ts';
import { plainGemm as gemm } from '../lib/linalg/gemm.ts';
import { fingerprintOf } from '../lib/models/fingerprint.ts';
import { openModel, type Model } from '../lib/models/model.ts';
import { openSession } from '../lib/session/session.ts';
import { absorbUpProjections } from '../lib/surgery/absorb-up-projections.ts';
import type { AttentionLayer } from '../lib/surgery/attention-layer.ts';
import { buildMlaLayer, type MlaLayer } from '../lib/surgery/build-mla-layer.ts';
import { jointKvSvd } from '../lib/surgery/joint-kv-svd.ts';
import { layerInputs, projectionValues, recordAngles } from '../lib/surgery/layer-graph.ts';
import { rankRopeDims, ropePlan } from '../lib/surgery/rank-rope-dims.ts';
import { singlePair } from '../lib/surgery/rope-plan.ts';
import { statisticsOn } from './support/converted.ts';
import { difference, float32Tolerance, generator, integers, normal, numbers } from './support/readings.ts';
import { readGolden, tinyLayer, withDirectory, zooPath } from './support/tiny.ts';

const goldenTolerance = 2e-4; // float32 through three layers, as agreed for the zoo

const worst = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let gap = a.length === b.length ? 0 : Infinity;
  for (let i = 0; i < a.length; i++) gap = Math.max(gap, Math.abs((a[i] ?? NaN) - (b[i] ?? NaN)));
  return Number.isNaN(gap) ? Infinity : gap;
};

/** Logits of one prefill, of single steps and of a split prefill. */
async function threeWays(model: Model, ids: readonly number[]): Promise<{ prefill: Float32Array; steps: number[]; split: number[]; bytesPerToken: number }> {
  const session = openSession(model, { threads: 1 });
  try {
    const prefill = (await session.logits(session.createCache(ids.length), ids)).data;
    const stepped = session.createCache(ids.length);
    const steps: number[] = [];
    for (const id of ids) steps.push(...(await session.step(stepped, id)));
    const cache = session.createCache(ids.length);
    const [first, second] = [await session.logits(cache, ids.slice(0, 10)), await session.logits(cache, ids.slice(10))];
    return { prefill, steps, split: [...first.data, ...second.data], bytesPerToken: cache.bytesPerToken };
  } finally {
    await session.close();
  }
}

for (const name of ['qwen2', 'qwen3']) {
  t.test(`${name}: the logits of transformers, from safetensors and from GGUF`, async (t) => {
    const golden = await readGolden(name);
    const size = golden.logits.length / golden.ids.length;
    for (const path of [zooPath(name), new URL(`data/qwen/${name}.gguf`, import.meta.url).pathname]) {
      const model = await openModel(path);
      t.equal(model.config.modelType, name);
      for (const [row, ids] of golden.ids.entries()) {
        const wanted = golden.logits.subarray(row * size, (row + 1) * size);
        const { prefill, steps, split } = await threeWays(model, ids);
        for (const [way, got] of Object.entries({ prefill, steps, split })) t.ok(worst(got, wanted) < goldenTolerance, `row ${row}, ${way}: off by ${worst(got, wanted)}`);
      }
    }
  });

  t.test(`${name}: converted whole it equals the source; converted in part, absorbed decode equals expanded prefill`, async (t) => {
    const golden = await readGolden(name);
    const size = golden.logits.length / golden.ids.length;
    const model = await openModel(zooPath(name));
    const { kvHeads, headDim, hidden, layers } = model.config;
    const scales = name === 'qwen3' ? kvHeads : 0; // cached beside the row
    await withDirectory(async (directory) => {
      const whole = join(directory, 'whole');
      await convert(model, whole, { plan: 'uniform', factor: 'joint', budget: { pairs: headDim / 2, rank: Math.min(kvHeads * headDim, hidden) } });
      const { bytesPerToken: _, ...ways } = await threeWays(await openModel(whole), golden.ids[1] ?? []);
      for (const [way, got] of Object.entries(ways)) t.ok(worst(got, golden.logits.subarray(size)) < goldenTolerance, `${way}: off by ${worst(got, golden.logits.subarray(size))}`);
      const part = join(directory, 'part');
      const report = await convert(model, part, { plan: 'high', factor: 'split', budget: { pairs: 3, rank: 11 } });
      const { prefill, steps, split, bytesPerToken } = await threeWays(await openModel(part), golden.ids[0] ?? []);
      t.ok(worst(prefill, steps) < goldenTolerance, `steps: off by ${worst(prefill, steps)}`);
      t.ok(worst(prefill, split) < goldenTolerance, `split prefill: off by ${worst(prefill, split)}`);
      t.equal(report.cacheElementsPerToken.after, layers * (2 * 3 * kvHeads + 11 + scales));
      t.equal(bytesPerToken, 4 * report.cacheElementsPerToken.after, 'the buffers have that size');
      t.ok(worst(prefill, golden.logits.subarray(0, size)) > 1e-2, 'a lossy conversion is lossy');
    });
  });
}

/** A layer whose heads have norms; pairs outside `turning` do not rotate in the source either. */
function normedLayer(turning: readonly number[], seed: number): AttentionLayer {
  const layer = tinyLayer({ seed });
  const random = generator(seed + 100);
  return {
    ...layer,
    headNorm: { query: normal([layer.headDim], random), key: normal([layer.headDim], random), eps: 0.03 },
    frequencies: layer.frequencies.map((frequency, pair) => (turning.includes(pair) ? frequency : 0)),
  };
}

const tokens = 11;
const positions = integers(Array.from({ length: tokens }, (_, i) => i));

const sourceSubgraph = (layer: AttentionLayer): Subgraph => record('source', layerInputs(layer.hidden), (g, x) => {
  const value = projectionValues(g);
  const weights = { query: value('q', layer.query), key: value('k', layer.key), value: value('v', layer.value), output: value('o', layer.output) };
  const norm = layer.headNorm ?? null;
  const before = headNorms(g, { query: norm === null ? null : g.parameter('q_norm', norm.query), key: norm === null ? null : g.parameter('k_norm', norm.key) }, norm?.eps ?? 0);
  const mask = g.causalMask(x.positions, x.positions, layer.window);
  const { output, rows, query } = sourceAttentionLayer(g, x.hidden, weights, recordAngles(g, [...layer.frequencies], x.positions, 64), [], { join: true, masks: [mask] }, layer, before);
  return { output, key: rows.key, query };
});

const uncached = (mla: MlaLayer, x: HostTensor<'float32'>): Record<string, HostTensor> => {
  const empty = (width: number): HostTensor<'float32'> => ({ dtype: 'float32', shape: [2, 0, width], data: new Float32Array(0) });
  return { hidden: x, positions, past_positions: integers([]), past_rope: empty(2 * mla.frequencies.length), past_latent: empty(mla.rank), past_key_scale: empty(mla.kvHeads) };
};

for (const [what, turning, strategy] of [['some pairs', [0, 2, 4], 'uniform'], ['the first pairs', [0, 1], 'high'], ['the last pair', [6], 'low']] as const) {
  t.test(`a norm per head is exact where ${what} rotate and others do not, at full rank and in both forms`, async (t) => {
    const layer = normedLayer(turning, 7 + turning.length);
    const x = normal([2, tokens, layer.hidden], generator(3));
    const tolerance = float32Tolerance(400);
    const plan = rankRopeDims(layer, { strategy, pairs: turning.length });
    t.same(plan.components.slice(0, turning.length).map(({ key }) => key[0]?.pair), turning);
    const source = await runSubgraph(sourceSubgraph(layer), { hidden: x, positions });
    const mla = buildMlaLayer(layer, plan, await jointKvSvd(layer, plan, { rank: layer.hidden, gemm }));
    for (const [form, subgraph] of [['expanded', mla.subgraph], ['absorbed', absorbUpProjections(mla).subgraph]] as const) {
      const { output, key_scale: scale } = await runSubgraph(subgraph, uncached(mla, x));
      t.ok(difference(numbers(source.output), numbers(output)) < tolerance, `${form} differs by ${difference(numbers(source.output), numbers(output))}`);
      t.same(scale?.shape, [2, tokens, layer.kvHeads], 'one scale per KV head and token');
    }
    t.equal(mla.cacheElementsPerToken, 2 * turning.length * layer.kvHeads + layer.hidden + layer.kvHeads);
    // The plan's own subgraph gives the same scores: rotating and resting part together.
    const parts = await runSubgraph(plan.subgraph, { hidden: x, positions });
    const at = (tensor: HostTensor | undefined, ...index: readonly number[]): number => Number(tensor?.data[index.reduce((sum, i, axis) => sum * (tensor.shape[axis] ?? 0) + i, 0)]);
    const dot = (a: HostTensor | undefined, aIndex: readonly number[], b: HostTensor | undefined, bIndex: readonly number[], width: number): number =>
      Array.from({ length: width }, (_, i) => at(a, ...aIndex, i) * at(b, ...bIndex, i)).reduce((sum, term) => sum + term, 0);
    for (const [head, i, j] of [[0, 10, 3], [3, 7, 7], [5, 4, 0]] as const) {
      const group = Math.floor(head / 2);
      const whole = dot(source.query, [1, i, head], source.key, [1, j, group], layer.headDim);
      const split = dot(parts.qRope, [1, i, head], parts.kRope, [1, j], 2 * plan.components.length) + dot(parts.qNope, [1, i, head], parts.kNope, [1, j, group], layer.headDim);
      t.ok(Math.abs(whole - split) < tolerance * Math.max(1, Math.abs(whole)) * 10, `score of head ${head}: ${whole} and ${split}`);
    }
  });
}

t.test('what a norm per head does not allow', async (t) => {
  const layer = normedLayer([0, 1, 2], 5);
  const frequency = (pair: number): number => layer.frequencies[pair] ?? NaN;
  const none = { scores: null, fold: [] };
  const uneven = [singlePair(0, 0, frequency(0), 2), singlePair(0, 1, frequency(1), 2), singlePair(1, 0, frequency(0), 2)];
  t.throws(() => ropePlan(layer, 'mine', { ...none, components: uneven }), /strategy must keep whole pairs of single heads .* where heads have norms, got mine for layer 5/);
  const mixed = [0, 1, 2].map((head) => ({ ...singlePair(head, 0, frequency(0), 2), key: [{ head, pair: 0, re: 0.8, im: 0.6 }] }));
  t.throws(() => ropePlan(layer, 'mine', { ...none, components: mixed }), /must keep whole pairs of single heads/);
  const even = [0, 1, 2].map((head) => singlePair(head, 0, frequency(0), 2));
  t.doesNotThrow(() => ropePlan(layer, 'mine', { ...none, components: even }));
  t.throws(() => ropePlan(layer, 'mine', { ...none, components: even, fold: [{ head: 0, pair: 1, re: 0.5, im: 0 }] }), /must keep whole pairs of single heads/);
  const biased = { ...layer, key: { ...layer.key, bias: normal([layer.kvHeads * layer.headDim], generator(1)) } };
  t.throws(() => rankRopeDims(biased, { strategy: 'high', pairs: 2 }), /keys must have no bias where heads have norms, got one for layer 5/);
  const qwen3 = await openModel(zooPath('qwen3'));
  const ids = Array.from({ length: 3 }, (_, row) => Array.from({ length: 13 }, (_, i) => (7 * i + 11 * row) % 97));
  const fingerprint = await fingerprintOf(qwen3);
  const statistics = (await statisticsOn(qwen3, ids)).map((layer) => ({ ...layer, identity: { ...layer.identity, model: fingerprint } }));
  await withDirectory(async (directory) => {
    for (const [plan, factor, error] of [
      ['ro-rope', 'joint', /must keep whole pairs of single heads \(uniform, high, low, 2-norm\) where heads have norms, got ro-rope for layer 0/],
      ['bank', 'joint', /where heads have norms, got bank for layer 0/], ['uniform', 'two-sided', /two-sided: layer 0 must not norm its heads/],
    ] as const) {
      const budget = plan === 'uniform' ? { pairs: 2, rank: 9 } : { components: 4, rank: 9 };
      await t.rejects(convert(qwen3, join(directory, 'refused'), { plan, factor, budget, statistics }), error, `${plan} and ${factor}`);
    }
    t.same(await readdir(directory), [], 'nothing is written');
    await convert(qwen3, join(directory, 'norms'), { plan: '2-norm', factor: 'whitened', budget: { pairs: 8, rank: 32 }, statistics });
    const golden = await readGolden('qwen3');
    const { prefill } = await threeWays(await openModel(join(directory, 'norms')), golden.ids[0] ?? []);
    t.ok(worst(prefill, golden.logits.subarray(0, prefill.length)) < goldenTolerance, '2-norm and whitened, whole');
  });
  const metadata = new Map<string, GgufValue>(Object.entries({
    'general.architecture': 'qwen2', 'qwen2.embedding_length': 48, 'qwen2.attention.head_count': 6, 'qwen2.block_count': 1, 'qwen2.feed_forward_length': 8,
    'qwen2.context_length': 64, 'qwen2.attention.layer_norm_rms_epsilon': 1e-5, 'qwen2.attention.sliding_window': 7, 'qwen2.vocab_size': 97,
  }));
  t.throws(() => configFromGguf({ path: 'q.gguf', fileBytes: 0, tensors: [], metadata }), /qwen2\.attention\.sliding_window must be absent or 0, got 7/);
});
