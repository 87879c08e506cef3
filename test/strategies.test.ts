/** The published strategies: what the original code computes, exactness where nothing is left out, and refusals. */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import fc from 'fast-check';
import { convert, type ConvertOptions } from '../lib/convert.ts';
import { convertedModel } from '../lib/converted-model.ts';
import { openCheckpoint } from '../lib/checkpoint/checkpoint.ts';
import { readSafetensors } from '../lib/checkpoint/safetensors.ts';
import { adjustedRanks } from '../lib/factor/adjusted-ranks.ts';
import { factorStrategies, type FactorStrategyName } from '../lib/factor/index.ts';
import { plainGemm as gemm } from '../lib/linalg/gemm.ts';
import { frobeniusNorm, matrix, subtract } from '../lib/linalg/matrix.ts';
import { fingerprintOf } from '../lib/models/fingerprint.ts';
import { openModel, type Model } from '../lib/models/model.ts';
import { planStrategies, type PlanStrategyName } from '../lib/plan/index.ts';
import type { PlanStrategy } from '../lib/plan/strategy.ts';
import { twoNormScores, twoNormSumScores } from '../lib/plan/two-norm.ts';
import { searchFold } from '../lib/search-fold.ts';
import { openSession } from '../lib/session/session.ts';
import type { LayerStatistics } from '../lib/statistics/layer-statistics.ts';
import { pairsPerHead, readAttentionLayer, type AttentionLayer } from '../lib/surgery/attention-layer.ts';
import { buildMlaLayer, type MlaLayer } from '../lib/surgery/build-mla-layer.ts';
import { jointKvSvd, type JointKvSvdOptions, type KvFactors } from '../lib/surgery/joint-kv-svd.ts';
import { rankRopeDims, type RankRopeDimsOptions } from '../lib/surgery/rank-rope-dims.ts';
import type { RopePlan } from '../lib/surgery/rope-plan.ts';
import { convertedMoments, statisticsOn, windowsOf } from './support/converted.ts';
import { generator } from './support/readings.ts';
import { tinyLayer, withDirectory, zooPath } from './support/tiny.ts';

const converterPath = (name: string): string => new URL(`data/converters/${name}`, import.meta.url).pathname;
const sourcePath = (name: string): string => (name === 'sq-gqa-tied' ? converterPath('source-sq-gqa-tied') : zooPath(name));
const originalTolerance = 5e-4; // the originals' float32 logits, as agreed
const exactTolerance = 3e-4;

const worst = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let gap = a.length === b.length ? 0 : Infinity;
  for (let i = 0; i < a.length; i++) gap = Math.max(gap, Math.abs((a[i] ?? NaN) - (b[i] ?? NaN)));
  return Number.isNaN(gap) ? Infinity : gap;
};

async function attentionOf(model: Model): Promise<AttentionLayer[]> {
  return Promise.all(Array.from({ length: model.config.layers }, (_, layer) => readAttentionLayer(model, layer)));
}

type Choices = { readonly plan: RankRopeDimsOptions; readonly factor: JointKvSvdOptions };

async function layersOf(source: Model, choices: (layer: number, attention: AttentionLayer) => Choices): Promise<{ plans: RopePlan[]; layers: MlaLayer[] }> {
  const plans: RopePlan[] = [];
  const layers: MlaLayer[] = [];
  for (const [i, attention] of (await attentionOf(source)).entries()) {
    const { plan: planOptions, factor } = choices(i, attention);
    const plan = rankRopeDims(attention, planOptions);
    plans.push(plan);
    layers.push(buildMlaLayer(attention, plan, await jointKvSvd(attention, plan, { gemm, ...factor })));
  }
  return { plans, layers };
}

async function logitsOf(model: Model, windows: readonly (readonly number[])[], absorbed = false): Promise<Float32Array> {
  const session = openSession(model, { threads: 1, ...(absorbed ? { forms: { prefill: 'absorbed', decode: 'absorbed' } as const } : {}) });
  try {
    const rows: Float32Array[] = [];
    for (const ids of windows) rows.push((await session.logits(session.createCache(ids.length), ids)).data);
    return Float32Array.from(rows.flatMap((row) => Array.from(row)));
  } finally {
    await session.close();
  }
}

const numbersOf = ({ data }: { data: ArrayLike<number | bigint> }): Float64Array => Float64Array.from(data, Number);

for (const [kind, scoresOf, names] of [
  ['main', twoNormScores, ['llama-gqa-tied', 'llama-mha', 'qwen2', 'sq-gqa-tied']], ['legacy', twoNormSumScores, ['llama-gqa-tied', 'llama-mha', 'sq-gqa-tied']],
] as const) {
  t.test(`2-norm scores of MHA2MLA, ${kind}`, async (t) => {
    for (const name of names) {
      const golden = await readSafetensors(join(converterPath(`2norm-scores-${kind}`), `${name}.safetensors`));
      const [ids, scores, table] = [golden.get('ids'), golden.get('scores'), golden.get('rank_table')];
      if (ids === undefined || scores === undefined) throw new TypeError(`test: ${name} must have ids and scores`);
      const model = await openModel(sourcePath(name));
      const statistics = await statisticsOn(model, windowsOf(ids));
      const attention = await attentionOf(model);
      const ours = attention.flatMap((layer, i) => Array.from(scoresOf(layer, statistics[i] ?? statistics[0]!)));
      t.ok(worst(ours, numbersOf(scores)) < 1e-5, `${name}: scores differ by ${worst(ours, numbersOf(scores))}`);
      if (table === undefined) continue;
      const pairs = model.config.headDim / 2;
      for (const [i, layer] of attention.entries()) {
        const { components } = rankRopeDims(layer, { strategy: '2-norm', pairs: 3, statistics: statistics[i] });
        const kept = components.map(({ key }) => (key[0]?.head ?? -1) * pairs + (key[0]?.pair ?? -1));
        const wanted = Array.from({ length: layer.kvHeads * pairs }, (_, at) => at)
          .filter((at) => Number(table.data[(i * layer.kvHeads + Math.floor(at / pairs)) * 2 * pairs + (at % pairs)]) < 3);
        t.same(kept, wanted, `${name}: the pairs of layer ${i}`);
      }
    }
  });
}

/** d_kv 4 per KV head, 2 pairs per head; `split` takes the rank twice. */
const conversions: Readonly<Record<string, (statistics: LayerStatistics, attention: AttentionLayer) => Choices>> = {
  'mha2mla-main-llama-gqa-tied-high-joint-kv24': () => ({ plan: { strategy: 'high', pairs: 2 }, factor: { rankPerHead: 24 } }),
  'mha2mla-main-llama-gqa-tied-low-joint-kv4': () => ({ plan: { strategy: 'low', pairs: 2 }, factor: { rankPerHead: 4 } }),
  'mha2mla-main-llama-gqa-tied-uniform-split-kv4': () => ({ plan: { strategy: 'uniform', pairs: 2 }, factor: { strategy: 'split', rankPerHead: 8 } }),
  'mha2mla-main-sq-gqa-tied-2-norm-none': (statistics) => ({ plan: { strategy: '2-norm', pairs: 2, statistics }, factor: { strategy: 'none', rank: 56 } }),
  'mha2mla-main-qwen2-2-norm-joint-kv4': (statistics) => ({ plan: { strategy: '2-norm', pairs: 2, statistics }, factor: { rankPerHead: 4 } }),
  'mha2mla-main-sq-gqa-tied-2-norm-joint-kv4': (statistics) => ({ plan: { strategy: '2-norm', pairs: 2, statistics }, factor: { rankPerHead: 4 } }),
  'mha2mla-legacy-llama-gqa-tied-2-norm-svd2-kv4': (statistics) => ({ plan: { strategy: '2-norm-sum', pairs: 2, statistics }, factor: { strategy: 'split', rankPerHead: 8 } }),
  'mha2mla-legacy-llama-mha-2-norm-svd7-kv4': (statistics) => ({ plan: { strategy: '2-norm-sum', pairs: 2, statistics }, factor: { rankPerHead: 4 } }),
};
const modelOf = (name: string): string => ['llama-gqa-tied', 'llama-mha', 'qwen2', 'sq-gqa-tied'].find((model) => name.includes(`-${model}-`)) ?? '';

for (const [name, choices] of Object.entries(conversions)) {
  t.test(`${name}: our conversion is the original's`, async (t) => {
    const source = await openModel(sourcePath(modelOf(name)));
    const kind = name.includes('legacy') ? 'legacy' : 'main';
    const scored = await readSafetensors(join(converterPath(`2norm-scores-${kind}`), `${modelOf(name)}.safetensors`));
    const statistics = await statisticsOn(source, windowsOf(scored.get('ids')!));
    const { layers } = await layersOf(source, (i, attention) => choices(statistics[i]!, attention));
    const golden = await readSafetensors(join(converterPath(name), 'golden.safetensors'));
    const ours = await logitsOf(convertedModel(source, layers), windowsOf(golden.get('ids')!));
    t.ok(worst(ours, numbersOf(golden.get('logits')!)) < originalTolerance, `logits differ by ${worst(ours, numbersOf(golden.get('logits')!))}`);
    const checkpoint = await openCheckpoint(converterPath(name));
    for (const { layer, weights: { down } } of layers) {
      const theirs = [`kv_proj.down_kv`, 'W_down_k'].map((tensor) => `model.layers.${layer}.self_attn.${tensor}.weight`).find((tensor) => checkpoint.tensors.has(tensor));
      if (theirs === undefined || checkpoint.tensors.has(theirs.replace('down_k.', 'down_v.'))) continue; // split: two of them
      const { data, shape: [rows = 0, cols = 0] } = await checkpoint.read(theirs);
      for (let row = 0; row < rows; row++) {
        const [a, b] = [down.weight.data.subarray(row * cols, (row + 1) * cols), data.subarray(row * cols, (row + 1) * cols)];
        const sign = Math.sign(a.reduce((sum, x, i) => sum + x * (b[i] ?? 0), 0));
        if (name.includes('kv24')) continue; // full rank: the last singular values are 0, and their vectors arbitrary
        t.ok(worst(a.map((x) => sign * x), b) < 1e-4, `layer ${layer}: singular vector ${row}, up to its sign`);
      }
    }
  });
}

for (const [name, rope, fold, rank] of [['llama-gqa-tied', 8, 2, 24], ['qwen2', 4, 4, 12], ['sq-gqa-tied', 4, 4, 12]] as const) {
  t.test(`transmla ${name}: ro-rope and balanced-pca are the original's`, async (t) => {
    const golden = await readSafetensors(join(converterPath(`transmla-${name}-rope${rope}-fold${fold}-kv${rank}`), 'golden.safetensors'));
    const source = await openModel(sourcePath(name));
    const windows = windowsOf(golden.get('calibration_ids')!);
    const statistics = await statisticsOn(source, windows);
    const plan = (i: number): RankRopeDimsOptions => ({ strategy: 'ro-rope', components: rope / 2, fold, statistics: statistics[i] });
    const { kvHeads, headDim, hidden } = source.config;
    const partial = await layersOf(source, (i) => ({ plan: plan(i), factor: { rank: Math.min(hidden, 2 * kvHeads * headDim) } }));
    // TransMLA calibrates its second stage on the model that the first one left.
    const moments = await convertedMoments(convertedModel(source, partial.layers), windows);
    for (const singularValues of ['up', 'down'] as const) {
      const { layers } = await layersOf(source, (i) => ({ plan: plan(i), factor: { strategy: 'balanced-pca', rank, singularValues, statistics: { ...statistics[i]!, ...moments[i]! } } }));
      const ours = await logitsOf(convertedModel(source, layers), windowsOf(golden.get('ids')!));
      t.ok(worst(ours, numbersOf(golden.get('logits')!)) < originalTolerance, `logits differ by ${worst(ours, numbersOf(golden.get('logits')!))}`);
    }
  });
}

const calibrationWindows = (vocab: number): number[][] => {
  const random = generator(3);
  return Array.from({ length: 13 }, () => Array.from({ length: 19 }, () => Math.floor(random() * vocab)));
};
const isOurs = (name: string): boolean => name === 'bank' || name === 'two-sided';

for (const name of ['llama-gqa-tied', 'llama-mha', 'llama-bias', 'mistral-window', 'qwen2', 'qwen3']) {
  t.test(`${name}: every strategy with nothing left out equals the source`, async (t) => {
    const source = await openModel(zooPath(name));
    const golden = await readSafetensors(join(zooPath(name), 'golden.safetensors'));
    const windows = windowsOf(golden.get('ids')!).slice(0, 1);
    const wanted = numbersOf(golden.get('logits')!).subarray(0, (windows[0]?.length ?? 0) * source.config.vocab);
    const statistics = await statisticsOn(source, calibrationWindows(source.config.vocab));
    const { kvHeads, headDim, hidden } = source.config;
    const normed = name === 'qwen3';
    for (const [strategy, row] of Object.entries(planStrategies) as [PlanStrategyName, PlanStrategy][]) {
      if (isOurs(strategy)) continue;
      const size = row.counts === 'pairs' ? { pairs: headDim / 2 } : { components: (kvHeads * headDim) / 2 };
      const fold = row.takesFold === true ? { fold: 1 } : {};
      const convert = () => layersOf(source, (i) => ({ plan: { strategy, ...size, ...fold, statistics: statistics[i] }, factor: { rank: Math.min(hidden, kvHeads * headDim) } }));
      if (normed && strategy === 'ro-rope') {
        await t.rejects(convert(), /must keep whole pairs of single heads .* where heads have norms, got ro-rope for layer 0/);
        continue;
      }
      const { plans, layers } = await convert();
      t.same(plans.map(({ nopeElements }) => nopeElements.flat().length), [0, 0, 0], `${strategy} leaves no remainder`);
      const ours = await logitsOf(convertedModel(source, layers), windows, true);
      t.ok(worst(ours, wanted) < exactTolerance, `${strategy}: off by ${worst(ours, wanted)}`);
    }
    // A factor with one pair rotating: the same function as no factor at all.
    const plan = { strategy: 'high', pairs: 1 } as const;
    const [first] = await attentionOf(source);
    const keyRows = kvHeads * (headDim - 2);
    const fullRank = (strategy: FactorStrategyName): number => factorStrategies[strategy].rankRange(keyRows, kvHeads * headDim, hidden)[1];
    const reference = await logitsOf(convertedModel(source, (await layersOf(source, () => ({ plan, factor: { strategy: 'joint', rank: fullRank('joint') } }))).layers), windows);
    for (const strategy of Object.keys(factorStrategies) as FactorStrategyName[]) {
      if (isOurs(strategy)) continue;
      const { layers } = await layersOf(source, (i) => ({ plan, factor: { strategy, rank: fullRank(strategy), statistics: statistics[i] } }));
      // v's bias goes through balanced-pca's latent, which is exact where the latent holds all channels.
      if (strategy === 'balanced-pca' && first?.value.bias !== null && fullRank(strategy) < keyRows + kvHeads * headDim) continue;
      const ours = await logitsOf(convertedModel(source, layers), windows);
      t.ok(worst(ours, reference) < exactTolerance, `${strategy}: off by ${worst(ours, reference)}`);
    }
  });
}

t.test('whitening counts errors on the inputs that occur', async (t) => {
  const source = await openModel(zooPath('llama-gqa-tied'));
  const [attention] = await attentionOf(source);
  const [statistics] = await statisticsOn(source, calibrationWindows(source.config.vocab));
  if (attention === undefined || statistics === undefined) throw new RangeError('test: a layer is needed');
  const plan = rankRopeDims(attention, { strategy: 'uniform', pairs: 2 });
  const { data, rows } = statistics.secondMoment;
  const trace = (m: { rows: number; cols: number; data: Float64Array }): number => {
    let sum = 0;
    for (let r = 0; r < m.rows; r++) for (let a = 0; a < rows; a++) for (let b = 0; b < rows; b++) sum += m.data[r * rows + a]! * data[a * rows + b]! * m.data[r * rows + b]!;
    return sum;
  };
  const all = { rank: 44, gemm, statistics };
  const product = async (f: KvFactors) => gemm.multiply(matrix(f.keyUp.shape[0]! + f.valueUp.shape[0]!, f.rank, Float64Array.from([...f.keyUp.data, ...f.valueUp.data])), matrix(f.rank, rows, Float64Array.from(f.down.data)));
  const exactly = await jointKvSvd(attention, plan, { ...all, strategy: 'joint', rank: 48 });
  const target = await product(exactly);
  const lost = async (strategy: FactorStrategyName): Promise<{ onInputs: number; plain: number }> => {
    const difference = subtract(target, await product(await jointKvSvd(attention, plan, { ...all, strategy, rank: 17 })));
    return { onInputs: trace(difference), plain: frobeniusNorm(difference) };
  };
  const [joint, white, care, split] = [await lost('joint'), await lost('whitened'), await lost('care'), await lost('split')];
  t.ok(white.onInputs < joint.onInputs, `whitened loses ${white.onInputs}, joint ${joint.onInputs} on inputs`);
  t.ok(joint.plain < white.plain, `joint loses ${joint.plain}, whitened ${white.plain} of the weights`);
  t.ok(care.onInputs < split.onInputs, `care loses ${care.onInputs}, split ${split.onInputs} on inputs`);
  const weighted = await jointKvSvd(attention, plan, { ...all, strategy: 'care', rank: 17, keyRank: 5 });
  t.equal(weighted.down.shape[0], 17);
  t.ok(Array.from({ length: weighted.keyUp.shape[0]! }, (_, row) => weighted.keyUp.data.slice(row * 17 + 5, row * 17 + 17)).every((rest) => rest.every((x) => x === 0)), 'keys read 5 channels');
});

t.test('what strategies refuse', async (t) => {
  const attention = tinyLayer(); // 7 pairs, 3 KV heads
  const source = await openModel(zooPath('llama-gqa-tied'));
  const statistics = await statisticsOn(source, calibrationWindows(source.config.vocab));
  const [layer] = await attentionOf(source);
  if (layer === undefined) throw new RangeError('test: a layer is needed');
  const roRope = (options: Partial<RankRopeDimsOptions>) => () => rankRopeDims(layer, { strategy: 'ro-rope', statistics: statistics[0], ...options });
  t.throws(roRope({ components: 17 }), /components must be 1\.\.16 for layer 0, got 17/);
  t.throws(roRope({ pairs: 4 }), /strategy ro-rope takes components, got pairs 4/);
  t.throws(roRope({ components: 4, fold: 3 }), /ro-rope: fold must be a multiple of 2 that divides the 8 pairs of a head for layer 0, got 3/);
  t.throws(roRope({ components: 4, fold: 1 }), /ro-rope: fold must be a multiple of 2/);
  t.throws(() => rankRopeDims(layer, { strategy: 'ro-rope', components: 4 }), /ro-rope needs statistics of calibration text for layer 0, got none/);
  t.throws(() => rankRopeDims(layer, { strategy: 'uniform', pairs: 4, fold: 2 }), /strategy uniform takes no fold, got 2/);
  t.throws(() => rankRopeDims(attention, { strategy: '2-norm', pairs: 2, scores: new Float64Array(20) }), /scores must be 21 numbers, \[3, 7\], for layer 5, got 20/);
  t.throws(() => rankRopeDims(attention, { strategy: 'high', pairs: 2, scores: new Float64Array(21) }), /scores belong to strategies 2-norm and 2-norm-sum, got them with high/);
  t.throws(() => rankRopeDims(attention, { strategy: '2-norm', pairs: 2, scores: new Float64Array(21).fill(NaN) }), /scores must be finite/);
  const plan = rankRopeDims(attention, { strategy: 'uniform', pairs: 2 });
  await t.rejects(jointKvSvd(attention, plan, { strategy: 'joint', rank: 9, keyRank: 3, gemm }), /strategy joint has one latent for keys and values, got keyRank 3 for layer 5/);
  await t.rejects(jointKvSvd(attention, plan, { strategy: 'split', rank: 30, keyRank: 3, gemm }), /keyRank must be 7\.\.23 of rank 30 for layer 5, got 3/);
  await t.rejects(jointKvSvd(attention, plan, { strategy: 'whitened', rank: 9, gemm }), /strategy whitened needs statistics of calibration text for layer 5, got none/);
  await t.rejects(jointKvSvd(attention, plan, { strategy: 'key-only', rank: 23, gemm }), /rank must be 24\.\.46 for layer 5, got 23/);
});

t.test('a plan keeps the highest scores, whatever they are', (t) => {
  const attention = tinyLayer();
  const pairs = pairsPerHead(attention);
  fc.assert(fc.property(fc.array(fc.integer({ min: -50, max: 50 }), { minLength: 21, maxLength: 21 }), fc.integer({ min: 1, max: 7 }), (list, count) => {
    const { components } = rankRopeDims(attention, { strategy: '2-norm', pairs: count, scores: Float64Array.from(list) });
    for (const kvHead of [0, 1, 2]) {
      const own = list.slice(kvHead * pairs, (kvHead + 1) * pairs);
      const kept = components.filter(({ key }) => key[0]?.head === kvHead).map(({ key }) => key[0]?.pair ?? -1);
      const least = Math.min(...kept.map((pair) => own[pair] ?? NaN));
      if (kept.length !== count || own.some((score, pair) => !kept.includes(pair) && score > least)) return false;
    }
    return true;
  }));
  t.end();
});

t.test('ro-rope: components are orthonormal, turn heads together, and a fold is found by perplexity', async (t) => {
  const source = await openModel(zooPath('llama-gqa-tied'));
  const statistics = await statisticsOn(source, calibrationWindows(source.config.vocab));
  const [attention] = await attentionOf(source);
  if (attention === undefined || statistics[0] === undefined) throw new RangeError('test: a layer is needed');
  const vector = ({ key }: { key: readonly { head: number; pair: number; re: number }[] }): Map<number, number> => new Map(key.map(({ head, pair, re }) => [head * 8 + pair, re]));
  const plan = rankRopeDims(attention, { strategy: 'ro-rope', components: 4, fold: 4, statistics: statistics[0] });
  const vectors = [...plan.components.map(vector), ...(plan.rest ?? []).map((key) => vector({ key }))];
  t.equal(vectors.length, 16, 'components and the rest span all pairs of all heads');
  vectors.forEach((a, i) => vectors.forEach((b, j) => {
    let dot = 0;
    for (const [at, x] of a) dot += x * (b.get(at) ?? 0);
    if (Math.abs(dot - (i === j ? 1 : 0)) > 1e-10) t.fail(`components ${i} and ${j}: ${dot}`);
  }));
  t.same(plan.components.map(({ frequency }) => frequency), [0, 2, 4, 6].map((pair) => attention.frequencies[pair]), 'every second frequency stays');
  const fewer = rankRopeDims(attention, { strategy: 'ro-rope', components: 3, fold: 4, statistics: statistics[0] });
  const names = (choice: RopePlan): string[] => choice.components.map(({ frequency }) => String(frequency));
  t.equal(fewer.components.length, 3, 'a number between is the next larger one');
  t.ok(names(fewer).every((frequency) => names(plan).includes(frequency)), 'with one component less');
  const search = await searchFold(source, statistics, { components: 4, windows: calibrationWindows(source.config.vocab).slice(0, 3), threads: 1 });
  t.same(search.tried.map(({ fold }) => fold), [2, 4, 8].slice(0, search.tried.length), 'folds are doubled');
  t.equal(search.fold, search.tried.reduce((best, one) => (one.perplexity < best.perplexity ? one : best)).fold);
  t.ok(search.tried.slice(1, -1).every(({ perplexity }, i) => perplexity < (search.tried[i]?.perplexity ?? 0)), 'for as long as it helps');
  await t.rejects(searchFold(source, statistics, { components: 4, windows: [] }), /at least one window of tokens is needed, got none/);
  await t.rejects(searchFold(source, statistics.slice(1), { components: 4, windows: [[1, 2]] }), /statistics must be those of 3 layers, got 2/);
});

t.test('where no key is left, strategies still serve values', async (t) => {
  const attention = tinyLayer();
  const plan = rankRopeDims(attention, { strategy: 'uniform', pairs: 7 });
  for (const [strategy, rank] of [['none', 23], ['key-only', 23], ['value-only', 9], ['split', 9], ['joint', 9]] as const) {
    const factors = await jointKvSvd(attention, plan, { strategy, rank, gemm });
    t.equal(factors.keyError, 0, strategy);
    t.equal(factors.valueUp.shape.join(), `42,${rank}`);
  }
});

t.test('convert searches a fold and adjusts ranks over all layers', async (t) => {
  const source = await openModel(zooPath('llama-gqa-tied'));
  const windows = calibrationWindows(source.config.vocab);
  const window = 19;
  const identity = { model: await fingerprintOf(source), tokenizer: 'none', texts: [], tokens: windows.length * window, attentionTokens: 3 * window, window };
  const calibration = { identity, window, windows, attentionWindows: 3 };
  await withDirectory(async (directory) => {
    const report = await convert(source, join(directory, 'searched'), { plan: 'ro-rope', fold: 'search', factor: 'care', adjustRanks: true, budget: { components: 4, rank: 13 }, calibration, refit: false, threads: 1 });
    t.equal(report.fold, report.foldSearch?.fold);
    const ranks = report.layers.map(({ rank }) => rank);
    t.equal(ranks.reduce((a, b) => a + b, 0), 3 * 13, 'ranks differ, their sum does not');
    const converted = await openModel(join(directory, 'searched'));
    t.same(converted.mla?.layers.map(({ rank }) => rank), ranks);
    t.equal(converted.mla?.plan.fold, report.fold);
    const ids = windows.slice(0, 1);
    t.ok(worst(await logitsOf(converted, ids), await logitsOf(converted, ids, true)) < exactTolerance, 'and the model runs in both forms');
    const refused = (options: ConvertOptions, error: RegExp) => t.rejects(convert(source, join(directory, 'refused'), { calibration, refit: false, threads: 1, ...options }), error);
    await refused({ plan: 'uniform', fold: 2, factor: 'joint' }, /plan uniform takes no fold, got 2/);
    await refused({ plan: 'uniform', factor: 'split', adjustRanks: true }, /ranks are adjusted for factor care, got split/);
    await refused({ plan: 'uniform', factor: 'care', adjustRanks: true, latentGroups: 2 }, /ranks are adjusted for one latent per layer, got 2 groups/);
    t.same(await readdir(directory), ['searched'], 'nothing else is written');
  });
});

t.test('CARE: adjusted ranks spend the budget where a spectrum falls slowly', (t) => {
  /** The rule as CARE's code states it, prefix sums and all. */
  const reference = (spectra: number[][], rank: number, least: number, most: number): number[] => {
    const ranks = spectra.map(() => least);
    for (let spent = least * spectra.length; spent < rank * spectra.length; spent++) {
      const gains = spectra.map((spectrum, layer) => {
        const r = ranks[layer]!;
        if (r >= most) return -Infinity;
        const energies = spectrum.map((s) => s * s);
        const total = energies.reduce((a, b) => a + b, 0);
        if (r >= spectrum.length || total <= 0) return 0;
        const residual = Math.max(1 - energies.slice(0, r).reduce((a, b) => a + b, 0) / total, 1e-12);
        return ((energies[r]! / total / residual) * Math.sqrt((spectra.length - layer) / ((spectra.length + 1) / 2))) / Math.sqrt(Math.max(r, 1) / Math.max(least, 1));
      });
      const best = gains.indexOf(Math.max(...gains));
      if (gains[best] === -Infinity) break;
      ranks[best]!++;
    }
    return ranks;
  };
  const spectrum = fc.array(fc.double({ min: 0.01, max: 9, noNaN: true }), { minLength: 17, maxLength: 17 }).map((list) => list.sort((a, b) => b - a));
  fc.assert(fc.property(fc.array(spectrum, { minLength: 1, maxLength: 5 }), fc.integer({ min: 2, max: 8 }), (spectra, rank) => {
    const ours = adjustedRanks(spectra, { rank });
    const theirs = reference(spectra, rank, Math.max(1, Math.floor(rank / 2)), 2 * rank);
    return ours.join() === theirs.join() && ours.reduce((a, b) => a + b, 0) === rank * spectra.length;
  }));
  t.same(adjustedRanks([[9, 1, 1, 1], [9, 8, 7, 1]], { rank: 2, least: 1, most: 3 }), [1, 3]);
  t.same(adjustedRanks([[1, 1], [1, 1]], { rank: 2, least: 2 }), [2, 2]);
  t.throws(() => adjustedRanks([[1, 1]], { rank: 3 , least: 3 }), /layer 0 must have at least 3 singular values, got 2/);
  t.throws(() => adjustedRanks([[1, 1]], { rank: 2, least: 3 }), /least and most must lie around rank 2, got 3 and 4/);
  t.throws(() => adjustedRanks([[1, 1]], { rank: 0 }), /rank must be 1 or more, got 0/);
  t.end();
});
