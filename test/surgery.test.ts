/** The four functions on one layer: what each subgraph computes, exactness, and refusals. */
import t from 'tap';
import fc from 'fast-check';
import { sourceAttentionLayer } from '../kernels/index.ts';
import { record } from '../lib/graph/record.ts';
import { runSubgraph } from '../lib/graph/run.ts';
import type { HostTensor, Subgraph } from '../lib/graph/subgraph.ts';
import { plainGemm } from '../lib/linalg/gemm.ts';
import { absorbUpProjections } from '../lib/surgery/absorb-up-projections.ts';
import type { AttentionLayer } from '../lib/surgery/attention-layer.ts';
import { buildMlaLayer, type MlaLayer } from '../lib/surgery/build-mla-layer.ts';
import { jointKvSvd } from '../lib/surgery/joint-kv-svd.ts';
import { projectionValues, recordAngles, layerInputs } from '../lib/surgery/layer-graph.ts';
import { rankRopeDims } from '../lib/surgery/rank-rope-dims.ts';
import { twoNormScores } from '../lib/plan/two-norm.ts';
import { difference, float32Tolerance, generator, integers, normal, numbers } from './support/readings.ts';
import { tinyLayer } from './support/tiny.ts';

const tokens = 11;
const hidden = (layer: AttentionLayer): HostTensor<'float32'> => normal([2, tokens, layer.hidden], generator(7));
const positions = integers(Array.from({ length: tokens }, (_, i) => i));
const gemm = plainGemm;
const tolerance = float32Tolerance(400);

const sourceSubgraph = (layer: AttentionLayer): Subgraph => record('source', layerInputs(layer.hidden), (g, x) => {
  const value = projectionValues(g);
  const weights = { query: value('q', layer.query), key: value('k', layer.key), value: value('v', layer.value), output: value('o', layer.output) };
  const mask = g.causalMask(x.positions, x.positions, layer.window);
  const { output, rows } = sourceAttentionLayer(g, x.hidden, weights, recordAngles(g, [...layer.frequencies], x.positions, 64), [], { join: true, masks: [mask] }, layer);
  return { output, key: rows.key, value: rows.value };
});

/** Feeds of an MLA layer with nothing cached. */
const uncached = (mla: MlaLayer, x: HostTensor<'float32'>): Record<string, HostTensor> => {
  const b = x.shape[0] ?? 1;
  const empty = (width: number): HostTensor<'float32'> => ({ dtype: 'float32', shape: [b, 0, width], data: new Float32Array(0) });
  return { hidden: x, positions, past_positions: integers([]), past_rope: empty(2 * mla.frequencies.length), past_latent: empty(mla.rank) };
};

async function convertLayer(layer: AttentionLayer, pairs: number, rank: number, strategy: 'joint' | 'split' = 'joint'): Promise<MlaLayer> {
  const plan = rankRopeDims(layer, { strategy: 'uniform', pairs });
  return buildMlaLayer(layer, plan, await jointKvSvd(layer, plan, { rank, strategy, gemm }));
}

for (const [name, layer] of Object.entries({
  'grouped heads': tinyLayer(), 'one KV head': tinyLayer({ kvHeads: 1 }), 'a KV head per head': tinyLayer({ heads: 3, kvHeads: 3 }),
  'with biases': tinyLayer({ bias: true }), 'in a window': tinyLayer({ window: 4 }),
})) {
  t.test(`${name}: full rank and all pairs kept equal the source`, async (t) => {
    const x = hidden(layer);
    const source = numbers((await runSubgraph(sourceSubgraph(layer), { hidden: x, positions })).output);
    const mla = await convertLayer(layer, layer.headDim / 2, Math.min(layer.kvHeads * layer.headDim, layer.hidden));
    const expanded = numbers((await runSubgraph(mla.subgraph, uncached(mla, x))).output);
    t.ok(difference(source, expanded) < tolerance, `expanded differs by ${difference(source, expanded)}`);
    const absorbed = numbers((await runSubgraph(absorbUpProjections(mla).subgraph, uncached(mla, x))).output);
    t.ok(difference(source, absorbed) < tolerance, `absorbed differs by ${difference(source, absorbed)}`);
  });

  t.test(`${name}: absorbed equals expanded, cached equals uncached, at part rank`, async (t) => {
    const x = hidden(layer);
    const mla = await convertLayer(layer, 3, 13);
    const whole = await runSubgraph(mla.subgraph, uncached(mla, x));
    const absorbed = await runSubgraph(absorbUpProjections(mla).subgraph, uncached(mla, x));
    t.ok(difference(numbers(whole.output), numbers(absorbed.output)) < tolerance);
    const rows = (tensor: HostTensor | undefined, from: number, to: number): HostTensor<'float32'> => {
      if (tensor?.dtype !== 'float32') throw new TypeError('test: rows must be float32');
      const [b = 0, s = 0, width = 0] = tensor.shape;
      const data = Float32Array.from(Array.from({ length: b }, (_, i) => [...tensor.data.subarray((i * s + from) * width, (i * s + to) * width)]).flat());
      return { dtype: 'float32', shape: [b, to - from, width], data };
    };
    const cut = 5;
    const later = await runSubgraph(absorbUpProjections(mla).subgraph, {
      hidden: rows(x, cut, tokens), positions: integers(Array.from({ length: tokens - cut }, (_, i) => cut + i)), past_positions: integers([0, 1, 2, 3, 4]),
      past_rope: rows(whole.rope, 0, cut), past_latent: rows(whole.latent, 0, cut),
    });
    t.ok(difference(numbers(rows(whole.output, cut, tokens)), numbers(later.output)) < tolerance, 'the last rows from a cache');
    t.equal(mla.cacheElementsPerToken, 2 * 3 * layer.kvHeads + 13);
  });
}

t.test('a plan keeps every score when all pairs rotate, and splits keys without loss', async (t) => {
  const layer = tinyLayer({ bias: true });
  const x = hidden(layer);
  const plan = rankRopeDims(layer, { strategy: 'high', pairs: 2 });
  const out = await runSubgraph(plan.subgraph, { hidden: x, positions });
  t.same(out.qRope?.shape, [2, tokens, 6, 12]);
  t.same(out.kRope?.shape, [2, tokens, 12]);
  t.same(out.qNope?.shape, [2, tokens, 6, 14]);
  t.same(out.kNope?.shape, [2, tokens, 3, 14]);
  const nope = numbers(out.kNope);
  const isKept = (element: number): boolean => element % 7 < 2;
  t.ok(nope.every((v, i) => !isKept(i % 14) || v === 0), 'kept pairs leave no remainder');
  t.ok(nope.some((v, i) => !isKept(i % 14) && v !== 0), 'the others stay');
  t.equal(plan.keptShare, 2 / 7);
  t.same(plan.nopeElements[0], [2, 3, 4, 5, 6, 9, 10, 11, 12, 13]);
});

t.test('the pairs that each strategy keeps', (t) => {
  const layer = tinyLayer({ headDim: 64, hidden: 29 });
  const kept = (strategy: 'high' | 'low' | 'uniform', pairs: number): number[] =>
    rankRopeDims(layer, { strategy, pairs }).components.filter(({ key }) => key[0]?.head === 1).map(({ key }) => key[0]?.pair ?? -1);
  t.same(kept('high', 4), [0, 1, 2, 3]);
  t.same(kept('low', 4), [28, 29, 30, 31]);
  t.same(kept('uniform', 4), [0, 8, 16, 24]);
  t.same(kept('uniform', 3), [0, 10, 21]);
  t.end();
});

t.test('the factors are the best of their rank, whatever the placement', async (t) => {
  const layer = tinyLayer();
  const plan = rankRopeDims(layer, { pairs: 3 });
  const full = await jointKvSvd(layer, plan, { rank: 23, gemm });
  t.ok(full.energyKept > 1 - 1e-12);
  for (const singularValues of ['up', 'sqrt', 'down'] as const) {
    const { spectrum, energyKept, subgraph } = await jointKvSvd(layer, plan, { rank: 7, singularValues, gemm });
    const energy = (s: Float64Array): number => s.reduce((sum, v) => sum + v * v, 0);
    t.ok(Math.abs(energyKept - energy(spectrum) / energy(full.spectrum)) < 1e-12, `${singularValues}: kept energy is that of the kept singular values`);
    const out = await runSubgraph(subgraph, { hidden: hidden(layer) });
    t.same([out.latent?.shape, out.kNope?.shape, out.v?.shape], [[2, tokens, 7], [2, tokens, 3, 8], [2, tokens, 3, 14]]);
  }
  const [one, other] = await Promise.all((['up', 'sqrt'] as const).map(async (singularValues) => numbers((await runSubgraph((await jointKvSvd(layer, plan, { rank: 7, singularValues, gemm })).subgraph, { hidden: hidden(layer) })).v)));
  t.ok(difference(one ?? [], other ?? []) < tolerance, 'placement does not change the product');
  const split = await jointKvSvd(layer, plan, { rank: 7, strategy: 'split', gemm });
  const joint = await jointKvSvd(layer, plan, { rank: 7, gemm });
  t.ok(split.energyKept < joint.energyKept, 'split latents keep less than a joint one of the same width');
  t.equal((await jointKvSvd(layer, plan, { rankPerHead: 2, gemm })).rank, 6);
});

t.test('a latent per group of heads: exact at full rank, both forms agree, ranks and heads must divide', async (t) => {
  const layer = tinyLayer({ heads: 8, kvHeads: 4, bias: true, hidden: 61 });
  const x = hidden(layer);
  const source = numbers((await runSubgraph(sourceSubgraph(layer), { hidden: x, positions })).output);
  const grouped = async (pairs: number, rank: number): Promise<MlaLayer> => {
    const plan = rankRopeDims(layer, { pairs });
    const factors = await jointKvSvd(layer, plan, { rank, latentGroups: 2, gemm });
    const whole = await runSubgraph(factors.subgraph, { hidden: x });
    t.same(whole.v?.shape, [2, tokens, 4, 14]);
    return buildMlaLayer(layer, plan, factors);
  };
  const lossless = await grouped(7, 56);
  for (const { subgraph } of [lossless, absorbUpProjections(lossless)]) {
    const gap = difference(source, numbers((await runSubgraph(subgraph, uncached(lossless, x))).output));
    t.ok(gap < tolerance, `full rank equals the source to ${gap}`);
  }
  const lossy = await grouped(2, 18);
  t.same(lossy.weights.valueUp.weight.shape, [56, 9]);
  const [one, other] = [await runSubgraph(lossy.subgraph, uncached(lossy, x)), await runSubgraph(absorbUpProjections(lossy).subgraph, uncached(lossy, x))];
  t.ok(difference(numbers(one.output), numbers(other.output)) < tolerance, 'absorbed equals expanded');
  const plan = rankRopeDims(layer, { pairs: 2 });
  const energy = async (latentGroups: number): Promise<number> => (await jointKvSvd(layer, plan, { rank: 18, latentGroups, gemm })).energyKept;
  t.ok(await energy(2) < await energy(1), 'one latent for all keeps more');
  await t.rejects(jointKvSvd(layer, plan, { rank: 18, latentGroups: 3, gemm }), /latentGroups must divide the 4 KV heads of layer 5, got 3/);
  await t.rejects(jointKvSvd(layer, plan, { rank: 17, latentGroups: 2, gemm }), /rank must be a multiple of the 2 latent groups/);
});

t.test('2-norm: scores are the products of mean norms, and the best pairs are kept', (t) => {
  const layer = tinyLayer({ heads: 2, kvHeads: 1, headDim: 6 });
  const statistics = { queryPairNorms: Float64Array.of(1, 2, 3, 5, 1, 1), keyPairNorms: Float64Array.of(2, 3, 1) };
  t.same([...twoNormScores(layer, statistics)], [12, 9, 4]);
  t.end();
});

t.test('refusals name the function, the layer and both values', async (t) => {
  const layer = tinyLayer();
  const plan = rankRopeDims(layer, { pairs: 3 });
  t.throws(() => rankRopeDims(layer, { pairs: 8 }), /rankRopeDims: pairs must be 1..7 per KV head for layer 5, got 8/);
  t.throws(() => rankRopeDims(layer, { pairs: 2.5 }), /pairs must be 1..7/);
  t.throws(() => rankRopeDims(layer, { pairs: 3, strategy: '2-norm' }), /needs statistics/);
  await t.rejects(jointKvSvd(layer, plan, { rank: 67, gemm }), /jointKvSvd: rank must be 1..23 for layer 5, got 67/);
  await t.rejects(jointKvSvd({ ...layer, layer: 4 }, plan, { rank: 7, gemm }), /plan must be that of layer 4, got layer 5/);
  const broken = { ...layer, key: { ...layer.key, weight: { ...layer.key.weight, data: layer.key.weight.data.slice() } } };
  broken.key.weight.data[3] = NaN;
  t.throws(() => rankRopeDims(broken, { pairs: 3 }), /key weight must be finite, got NaN at element 3 \(layer 5\)/);
  t.throws(() => rankRopeDims({ ...layer, kvHeads: 4 }, { pairs: 3 }), /heads must be a multiple of kvHeads/);
});

t.test('arguments are not changed', async (t) => {
  await fc.assert(fc.asyncProperty(fc.integer({ min: 1, max: 7 }), fc.integer({ min: 1, max: 23 }), fc.integer({ min: 1, max: 99 }), async (pairs, rank, seed) => {
    const layer = tinyLayer({ seed });
    const before = structuredClone(layer);
    const plan = rankRopeDims(layer, { pairs });
    const factors = await jointKvSvd(layer, plan, { rank, gemm });
    buildMlaLayer(layer, plan, factors);
    return JSON.stringify(before.key.weight.data) === JSON.stringify(layer.key.weight.data) && factors.energyKept <= 1 + 1e-12 && factors.keyError <= 1 + 1e-12;
  }), { numRuns: 15 });
  t.pass();
});
