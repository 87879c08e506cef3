/** Our own conversion: the frequency bank, two-sided factors, the refit, and the budget that plans them. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { resolveBudget, ropeShare } from '../lib/budget.ts';
import { convert } from '../lib/convert.ts';
import { conversionWarnings } from '../lib/conversion-warnings.ts';
import { leadingDirections } from '../lib/factor/leading-directions.ts';
import { record } from '../lib/graph/record.ts';
import { runSubgraph } from '../lib/graph/run.ts';
import { hermitianEighSmall } from '../lib/linalg/hermitian-eigh.ts';
import { plainGemm } from '../lib/linalg/gemm.ts';
import { matrix, transpose, type Matrix } from '../lib/linalg/matrix.ts';
import { openModel, type Model } from '../lib/models/model.ts';
import { chooseSegments, type SegmentGains } from '../lib/plan/frequency-segments.ts';
import { meanRotations } from '../lib/plan/mean-rotation.ts';
import { normals, seededRandom } from '../lib/random.ts';
import { openRefit } from '../lib/refit.ts';
import { openSession } from '../lib/session/session.ts';
import type { Calibration } from '../lib/statistics/calibration.ts';
import { collectStatistics } from '../lib/statistics/collect-statistics.ts';
import type { LayerStatistics } from '../lib/statistics/layer-statistics.ts';
import { readAttentionLayer, type AttentionLayer } from '../lib/surgery/attention-layer.ts';
import { buildMlaLayer, recordMlaLayer } from '../lib/surgery/build-mla-layer.ts';
import { jointKvSvd } from '../lib/surgery/joint-kv-svd.ts';
import { rankRopeDims } from '../lib/surgery/rank-rope-dims.ts';
import { valuesFromLatent } from '../lib/surgery/refitted-output.ts';
import type { RopePlan } from '../lib/surgery/rope-plan.ts';
import { randomCalibration } from './support/random-calibration.ts';
import { difference, float32Tolerance, generator, integers, normal, numbers } from './support/readings.ts';
import { readGolden, tinyLayer, withDirectory, zooPath } from './support/tiny.ts';

const window = 29;
/** Float32 through three layers, as agreed for conversions at full rank. */
const losslessTolerance = 3e-4;

const calibrationFor = (model: Model, count: number): Promise<Calibration> => randomCalibration(model, count, window);

async function statisticsOf(model: Model, calibration: Calibration): Promise<LayerStatistics[]> {
  const all: LayerStatistics[] = [];
  for await (const layer of collectStatistics(model, calibration, { threads: 1 })) all.push(layer);
  return all;
}

/** One zoo layer with its statistics. */
async function zooLayer(name: string, layer: number): Promise<{ attention: AttentionLayer; statistics: LayerStatistics }> {
  const model = await openModel(zooPath(name));
  const statistics = (await statisticsOf(model, await calibrationFor(model, 5)))[layer];
  if (statistics === undefined) throw new RangeError('zooLayer: no such layer');
  return { attention: await readAttentionLayer(model, layer), statistics };
}

t.test('small Hermitian matrices: eigenvectors rebuild them', (t) => {
  const random = generator(5);
  for (const n of [1, 2, 7, 24]) {
    const [re, im] = [new Float64Array(n * n), new Float64Array(n * n)];
    for (let r = 0; r < n; r++) {
      for (let c = 0; c <= r; c++) {
        re[r * n + c] = re[c * n + r] = random() - 0.5;
        if (c < r) im[c * n + r] = -(im[r * n + c] = random() - 0.5);
      }
    }
    const { values, vectors } = hermitianEighSmall({ real: matrix(n, n, re), imaginary: matrix(n, n, im) });
    let worst = 0;
    for (let r = 0; r < n; r++) {
      for (let k = 0; k < n; k++) {
        let [x, y] = [0, 0];
        for (let c = 0; c < n; c++) {
          const [a, b, u, v] = [re[r * n + c] ?? NaN, im[r * n + c] ?? NaN, vectors.real.data[c * n + k] ?? NaN, vectors.imaginary.data[c * n + k] ?? NaN];
          x += a * u - b * v;
          y += a * v + b * u;
        }
        worst = Math.max(worst, Math.hypot(x - (values[k] ?? NaN) * (vectors.real.data[r * n + k] ?? NaN), y - (values[k] ?? NaN) * (vectors.imaginary.data[r * n + k] ?? NaN)));
      }
    }
    t.ok(worst < n * 1e-15, `A V = V D for n = ${n}`);
  }
  t.end();
});

t.test('mean rotation is the characteristic function of the distances', (t) => {
  const [heads, length] = [3, 307];
  const random = generator(11);
  const distances = matrix(heads, length, Float64Array.from({ length: heads * length }, () => random() / length));
  for (const frequency of [0, 1e-4, 0.37, -2.9]) {
    const { re, im } = meanRotations(distances, frequency);
    for (let head = 0; head < heads; head++) {
      let [x, y] = [0, 0];
      for (let distance = 0; distance < length; distance++) {
        x += (distances.data[head * length + distance] ?? NaN) * Math.cos(frequency * distance);
        y += (distances.data[head * length + distance] ?? NaN) * Math.sin(frequency * distance);
      }
      t.ok(Math.hypot((re[head] ?? NaN) - x, (im[head] ?? NaN) - y) < 1e-13, `head ${head} at ${frequency}`);
    }
  }
  t.end();
});

t.test('the dynamic programme finds what trying everything finds', (t) => {
  const frequencies = 5;
  const spans = Array.from({ length: frequencies }, (_, from) => Array.from({ length: 3 }, (_, i) => [from, from + i + 1] as const)).flat().filter(([, to]) => to <= frequencies);
  fc.assert(fc.property(fc.array(fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: 1, maxLength: 3 }), { minLength: spans.length, maxLength: spans.length }), fc.integer({ min: 1, max: 5 }), (steps, wanted) => {
    const segments = spans.map(([from, to], i): SegmentGains => ({ from, to, gains: (steps[i] ?? []).reduce((gains, step) => [...gains, (gains.at(-1) ?? 0) + step], [0]) }));
    const everything = (from: number, left: number): number => (from === frequencies ? (left === 0 ? 0 : -Infinity)
      : Math.max(...segments.filter((segment) => segment.from === from).flatMap(({ to, gains }) => gains.map((gain, m) => (m > left ? -Infinity : gain + everything(to, left - m))))));
    const best = everything(0, wanted);
    if (best === -Infinity) return; // these segments cannot hold so many
    const chosen = chooseSegments(segments, frequencies, wanted);
    const gain = chosen.reduce((sum, { segment, components }) => sum + (segment.gains[components] ?? NaN), 0);
    if (Math.abs(gain - best) > 1e-12 || chosen.reduce((sum, { components }) => sum + components, 0) !== wanted) throw new Error(`got ${gain}, best is ${best}`);
    if (chosen.some(({ segment }, i) => i > 0 && segment.from < (chosen[i - 1]?.segment.to ?? 0))) throw new Error('segments overlap');
  }));
  t.throws(() => chooseSegments([{ from: 0, to: 1, gains: [0, 1] }], 1, 2), /must hold 2 components/);
  t.end();
});

/** Score error that a plan's components save, by the definition: energy at each pair times how much less its rotation errs. */
function savedBy(plan: Pick<RopePlan, 'components'>, { heads, kvHeads, headDim, frequencies }: AttentionLayer, statistics: LayerStatistics): number {
  const half = headDim / 2;
  const key = (g: number, f: number, h: number, k: number): { re: number; im: number } => {
    const { data, cols } = statistics.keyMoment;
    const at = (a: number, b: number): number => data[a * cols + b] ?? NaN;
    const [i, j] = [g * headDim + f, h * headDim + k];
    return { re: at(i, j) + at(i + half, j + half), im: at(i + half, j) - at(i, j + half) };
  };
  const lost = (head: number, frequency: number): number => {
    let [x, y] = [0, 0];
    for (let distance = 0; distance < statistics.distances.cols; distance++) {
      const share = statistics.distances.data[head * statistics.distances.cols + distance] ?? NaN;
      x += share * Math.cos(frequency * distance);
      y += share * Math.sin(frequency * distance);
    }
    return 1 - x * x - y * y;
  };
  let saved = 0;
  for (const { frequency, key: terms, back } of plan.components) {
    let energy = 0; // E|r|^2
    for (const a of terms) {
      for (const b of terms) {
        const { re, im } = key(a.head, a.pair, b.head, b.pair);
        const [x, y] = [a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im];
        energy += x * re - y * im;
      }
    }
    for (const { head: group, pair, re, im } of back) {
      for (let head = (group * heads) / kvHeads; head < ((group + 1) * heads) / kvHeads; head++) {
        const moment = (element: number): number => statistics.queryMoments.data[(head * headDim + element) * headDim + element] ?? NaN;
        const weight = (statistics.outputSensitivity[head] ?? NaN) * (moment(pair) + moment(pair + half));
        saved += weight * energy * (re * re + im * im) * (lost(head, frequencies[pair] ?? NaN) - lost(head, (frequencies[pair] ?? NaN) - frequency));
      }
    }
  }
  return saved;
}

for (const name of ['llama-gqa-tied', 'qwen2']) {
  t.test(`${name}: the bank saves at least as much score error as any choice of single pairs`, async (t) => {
    const { attention, statistics } = await zooLayer(name, 1);
    const { kvHeads, headDim } = attention;
    const single = (pairs: number) => ['high', 'low', 'uniform', '2-norm'].map((strategy) =>
      savedBy(rankRopeDims(attention, { strategy: strategy === 'high' ? 'high' : strategy === 'low' ? 'low' : strategy === 'uniform' ? 'uniform' : '2-norm', pairs, statistics }), attention, statistics));
    let before = 0;
    for (const pairs of [1, 2, 3]) {
      const saved = savedBy(rankRopeDims(attention, { strategy: 'bank', components: kvHeads * pairs, statistics }), attention, statistics);
      t.ok(saved > (1 - 1e-9) * Math.max(...single(pairs)), `${kvHeads * pairs} components against ${pairs} pairs per head`);
      t.ok(saved >= before, 'more components save more');
      before = saved;
    }
    const plan = rankRopeDims(attention, { strategy: 'bank', components: 5, statistics });
    t.equal(plan.components.length, 5);
    t.equal(plan.scores?.length, (kvHeads * headDim) / 2);
    t.throws(() => rankRopeDims(attention, { strategy: 'bank', components: (kvHeads * headDim) / 2 + 1, statistics }), new RegExp(`components must be 1..${(kvHeads * headDim) / 2} for layer 1, got`));
    t.throws(() => rankRopeDims(attention, { strategy: 'bank', pairs: 2, statistics }), /takes components, got pairs 2/);
    t.throws(() => rankRopeDims(attention, { strategy: 'bank', components: 2 }), /needs statistics of calibration text for layer 1/);
    t.throws(() => rankRopeDims(attention, { strategy: 'bank', components: 2, statistics: { ...statistics, layer: 0 } }), /must be those of layer 1, got layer 0/);
  });
}

/** Random statistics that fit a layer: second moments of correlated normal numbers. */
function madeUpStatistics({ layer, hidden, heads, kvHeads, headDim }: AttentionLayer): LayerStatistics {
  const random = generator(17);
  const moment = (n: number, samples: number): Matrix => {
    const rows = Array.from({ length: samples }, () => {
      const shared = random() - 0.5;
      return Float64Array.from({ length: n }, () => random() - 0.5 + 2 * shared);
    });
    return matrix(n, n, Float64Array.from({ length: n * n }, (_, at) => rows.reduce((sum, row) => sum + (row[Math.floor(at / n)] ?? NaN) * (row[at % n] ?? NaN), 0) / samples));
  };
  const positive = (n: number): Float64Array => Float64Array.from({ length: n }, () => 0.5 + random());
  const length = 19;
  return {
    layer, identity: { model: 'm', tokenizer: 't', texts: [], tokens: 1, attentionTokens: 1, window: length },
    secondMoment: moment(hidden, 40), mean: new Float64Array(hidden), queryPairNorms: positive((heads * headDim) / 2), keyPairNorms: positive((kvHeads * headDim) / 2),
    queryMoments: matrix(heads * headDim, headDim, Float64Array.from(Array.from({ length: heads }, () => [...moment(headDim, 30).data]).flat())), keyMoment: moment(kvHeads * headDim, 200),
    distances: matrix(heads, length, Float64Array.from({ length: heads * length }, () => 1 / length)), outputSensitivity: positive(heads), meanAttended: matrix(heads, hidden, positive(heads * hidden)),
  };
}

t.test('many KV heads: segments work with the leading directions of each frequency', (t) => {
  const attention = tinyLayer({ heads: 22, kvHeads: 11, headDim: 10 });
  const statistics = madeUpStatistics(attention);
  const few = rankRopeDims(attention, { strategy: 'bank', components: 11, statistics });
  const saved = savedBy(few, attention, statistics);
  t.ok(saved > savedBy(rankRopeDims(attention, { strategy: 'high', pairs: 1, statistics }), attention, statistics));
  t.equal(few.nopeElements[0]?.length, 10, 'all pairs leave something');
  const all = rankRopeDims(attention, { strategy: 'bank', components: 55, statistics });
  t.equal(all.nopeElements[0]?.length, 0, 'all components leave nothing');
  t.end();
});

const multiply = (a: Matrix, b: Matrix): Promise<Matrix> => plainGemm.multiply(a, b);

t.test('two-sided factors: unit channels, and the least error in units of attention output', async (t) => {
  const { attention, statistics } = await zooLayer('qwen2', 1);
  const { kvHeads, headDim, hidden, heads } = attention;
  const plan = rankRopeDims(attention, { strategy: 'bank', components: 3, statistics });
  const rank = 11;
  const factors = (strategy: 'two-sided' | 'joint') => jointKvSvd(attention, plan, { strategy, rank, statistics, gemm: plainGemm });
  const [ours, joint] = [await factors('two-sided'), await factors('joint')];
  const { secondMoment, mean } = statistics;
  const centred = matrix(hidden, hidden, secondMoment.data.map((x, at) => x - (mean[Math.floor(at / hidden)] ?? NaN) * (mean[at % hidden] ?? NaN)));
  const wide = ({ shape, data }: { readonly shape: readonly number[]; readonly data: Float32Array }): Matrix => matrix(shape[0] ?? 0, shape[1] ?? 0, Float64Array.from(data));
  const down = wide(ours.down);
  const gram = await multiply(await multiply(down, centred), transpose(down));
  const apart = gram.data.reduce((worst, x, at) => Math.max(worst, Math.abs(x - (Math.floor(at / rank) === at % rank ? 1 : 0))), 0);
  t.ok(apart < 1e-4, `channels are uncorrelated with variance 1, up to float32 (${apart})`);
  /** E||W_o,h (V - up down)(x - mu)||^2 over all heads. */
  const valueLoss = async ({ valueUp, down: rows }: typeof ours): Promise<number> => {
    const rebuilt = await multiply(wide(valueUp), wide(rows));
    const lost = matrix(kvHeads * headDim, hidden, rebuilt.data.map((x, at) => (attention.value.weight.data[at] ?? NaN) - x));
    let sum = 0;
    for (let head = 0; head < heads; head++) {
      const group = Math.floor(head / (heads / kvHeads));
      const own = matrix(headDim, hidden, lost.data.slice(group * headDim * hidden, (group + 1) * headDim * hidden));
      const output = matrix(hidden, headDim, Float64Array.from({ length: hidden * headDim }, (_, at) => attention.output.weight.data[Math.floor(at / headDim) * heads * headDim + head * headDim + (at % headDim)] ?? NaN));
      const error = await multiply(output, own);
      const moved = await multiply(error, centred);
      error.data.forEach((x, at) => { sum += x * (moved.data[at] ?? NaN); });
    }
    return sum;
  };
  t.ok(await valueLoss(ours) < await valueLoss(joint), 'values lose less in units of output than with the plain SVD');
  // What the latent leaves out of the mean comes back as a bias: the mean output is exact.
  const bias = ours.outputBias?.data ?? new Float32Array(0);
  t.equal(bias.length, hidden);
  const rebuilt = await multiply(wide(ours.valueUp), down);
  const lostMean = new Float64Array(hidden);
  for (let head = 0; head < heads; head++) {
    const group = Math.floor(head / (heads / kvHeads));
    for (let v = 0; v < headDim; v++) {
      let left = 0;
      for (let a = 0; a < hidden; a++) left += ((attention.value.weight.data[(group * headDim + v) * hidden + a] ?? NaN) - (rebuilt.data[(group * headDim + v) * hidden + a] ?? NaN)) * (statistics.meanAttended.data[head * hidden + a] ?? NaN);
      for (let row = 0; row < hidden; row++) lostMean[row] = (lostMean[row] ?? NaN) + (attention.output.weight.data[row * heads * headDim + head * headDim + v] ?? NaN) * left;
    }
  }
  t.ok(lostMean.every((x, at) => Math.abs(x - (bias[at] ?? NaN)) < 1e-5), 'the bias is the mean output of what is left out');
  await t.rejects(jointKvSvd(attention, plan, { strategy: 'two-sided', rank }), /needs statistics of calibration text for layer 1/);
});

t.test('leading directions: the randomised way finds those of the exact one', async (t) => {
  const random = seededRandom(5), [n, d, rank] = [43, 31, 7];
  // Columns that fall by half: the subspace of the first few is well set apart.
  const m = matrix(n, d, normals(random, n * d).map((x, at) => x * 2 ** -(at % d)));
  const factor = matrix(d, d, normals(random, d * d));
  const covariance = await plainGemm.multiply(factor, factor, { transposeB: true });
  const exact = await leadingDirections(m, covariance, rank, { gemm: plainGemm, seed: 1 });
  const found = await leadingDirections(m, covariance, rank, { gemm: plainGemm, seed: 1, exactUpTo: 30 });
  t.same(found.directions.data, (await leadingDirections(m, covariance, rank, { gemm: plainGemm, seed: 1, exactUpTo: 30 })).directions.data, 'the same for the same seed');
  t.equal(exact.spectrum.length, n);
  t.equal(found.spectrum.length, rank);
  for (let i = 0; i < rank; i++) t.ok(Math.abs(found.spectrum[i]! / exact.spectrum[i]! - 1) < 1e-4, `value ${i}`);
  const both = await plainGemm.multiply(exact.directions, found.directions, { transposeB: true });
  t.ok(Math.abs(Math.hypot(...both.data) - Math.sqrt(rank)) < 1e-4, 'one subspace');
  // Few tokens whose variance is nearly all in one direction: what float32 leaves of the others is noise of either sign.
  const loud = Float64Array.from({ length: d }, (_, i) => 1 + i / d), noisy = matrix(d, d, Float64Array.from({ length: d * d }, (_, at) => loud[Math.floor(at / d)]! * loud[at % d]! - (at % (d + 1) === 0 ? 1e-3 : 0)));
  const { directions, spectrum } = await leadingDirections(m, noisy, 2, { gemm: plainGemm, seed: 1, exactUpTo: 30 });
  const image = await plainGemm.multiply(m, matrix(d, 1, loud)), length = Math.hypot(...image.data);
  t.ok(Math.abs(Math.abs(image.data.reduce((sum, x, i) => sum + x * directions.data[i]!, 0)) / length - 1) < 1e-3, 'the direction that there is');
  t.ok(spectrum[1]! < 0.02 * spectrum[0]!, 'and next to nothing else');
  await t.rejects(leadingDirections(m, matrix(d, d, noisy.data.map((x) => -x)), 2, { gemm: plainGemm, seed: 1, exactUpTo: 30 }), /the covariance must be that of some inputs, got pivot/);
});

for (const name of ['llama-mha', 'llama-gqa-tied', 'llama-mqa', 'llama-bias', 'llama-yarn-rope', 'mistral', 'qwen2']) {
  t.test(`${name}: all components and full rank equal the source, refitted or not`, async (t) => {
    const golden = await readGolden(name);
    const model = await openModel(zooPath(name));
    const { kvHeads, headDim, hidden, layers } = model.config;
    const calibration = await calibrationFor(model, 6);
    await withDirectory(async (directory) => {
      for (const refit of [false, true]) {
        const out = join(directory, String(refit));
        const all = (kvHeads * headDim) / 2;
        const report = await convert(model, out, { calibration, refit, threads: 1, budget: { components: all, rank: Math.min(kvHeads * headDim, hidden) } });
        t.equal(report.plan, 'bank');
        t.equal(report.factor, 'two-sided');
        t.ok(report.layers.every(({ outputError }) => outputError !== null && outputError < losslessTolerance), 'no layer loses anything');
        const session = openSession(await openModel(out), { threads: 1 });
        const ids = golden.ids[0] ?? [];
        const { data } = await session.logits(session.createCache(), ids);
        await session.close();
        const gap = data.reduce((worst, x, at) => Math.max(worst, Math.abs(x - (golden.logits[at] ?? NaN))), 0);
        t.ok(gap < losslessTolerance, `logits of transformers, refit ${refit} (${gap})`);
        t.equal(report.layers.length, layers);
      }
    });
  });
}

t.test('perplexity of held-out text, where the machine can hold the model', async (t) => {
  const model = await openModel(zooPath('llama-gqa-tied')), given = await calibrationFor(model, 6);
  const calibration = { ...given, heldOut: given.windows.slice(0, 2) };
  await withDirectory(async (directory) => {
    const options = { calibration, threads: 1, budget: { components: 3, rank: 7 } };
    const measured = await convert(model, join(directory, 'measured'), options), left = await convert(model, join(directory, 'left'), { ...options, memoryBytes: 1e5 });
    t.ok(measured.perplexity !== null && measured.perplexity.after > 0);
    t.equal(left.perplexity, null);
    t.ok(left.warnings.some((warning) => /held-out text was not measured: the weights take [\d.]+ GB in float32, more than half/.test(warning)), left.warnings.join());
    t.same(left.layers.map(({ spectrum }) => spectrum), measured.layers.map(({ spectrum }) => spectrum), 'the conversion is the same');
  });
});

t.test('the refit lowers the error of every layer', async (t) => {
  const model = await openModel(zooPath('llama-gqa-tied'));
  const calibration = await calibrationFor(model, 40);
  await withDirectory(async (directory) => {
    for (const [rank, latentGroups] of [[7, 1], [23, 1], [14, 2]] as const) {
      const fitted = await convert(model, join(directory, `fitted-${rank}`), { calibration, threads: 1, latentGroups, budget: { components: 3, rank } });
      for (const { layer, outputError, outputErrorBeforeRefit } of fitted.layers) {
        t.ok(outputError !== null && outputErrorBeforeRefit !== null && outputError < outputErrorBeforeRefit, `layer ${layer} with rank ${rank}: ${outputErrorBeforeRefit} -> ${outputError}`);
      }
      const session = openSession(await openModel(join(directory, `fitted-${rank}`)), { threads: 1, forms: { prefill: 'absorbed', decode: 'absorbed' } });
      const expanded = openSession(await openModel(join(directory, `fitted-${rank}`)), { threads: 1 });
      const ids = calibration.windows[0] ?? [];
      const [a, b] = [(await session.logits(session.createCache(), ids)).data, (await expanded.logits(expanded.createCache(), ids)).data];
      t.ok(a.every((x, at) => Math.abs(x - (b[at] ?? NaN)) < 2e-4), 'absorbed equals expanded');
      await session.close();
      await expanded.close();
    }
  });
  const attention = await readAttentionLayer(model, 1);
  const statistics = (await statisticsOf(model, calibration))[1];
  if (statistics === undefined) throw new RangeError('statistics of layer 1');
  const plan = rankRopeDims(attention, { strategy: 'bank', components: 3, statistics });
  const mla = buildMlaLayer(attention, plan, await jointKvSvd(attention, plan, { strategy: 'two-sided', rank: 7, statistics }));
  const moved = valuesFromLatent(mla);
  const absorbed = ({ weights, rank, heads, kvHeads, valueWidth, hidden }: typeof mla): Float64Array => Float64Array.from({ length: hidden * heads * rank }, (_, at) => {
    const [row, head, r] = [Math.floor(at / (heads * rank)), Math.floor(at / rank) % heads, at % rank];
    let sum = 0;
    for (let v = 0; v < valueWidth; v++) sum += (weights.output.weight.data[row * heads * valueWidth + head * valueWidth + v] ?? NaN) * (weights.valueUp.weight.data[(Math.floor(head / (heads / kvHeads)) * valueWidth + v) * rank + r] ?? NaN);
    return sum;
  });
  const [one, other] = [absorbed(mla), absorbed(moved)];
  t.ok(one.every((x, at) => Math.abs(x - (other[at] ?? NaN)) < 1e-6), 'values taken from the latent are the same function');
  const attended = async (block: number | undefined): Promise<Float64Array> => {
    const subgraph = record('attention', { x: { dtype: 'float32', shape: [1, window, attention.hidden] }, positions: { dtype: 'int64', shape: [window] } }, (g, { x, positions }) => {
      const masks = [g.causalMask(positions, positions, null)];
      return { output: recordMlaLayer(g, mla, x, positions, null, { join: false, masks, ...(block === undefined ? {} : { block }) }, 'expanded').output };
    });
    return numbers((await runSubgraph(subgraph, { x: normal([1, window, attention.hidden], generator(2)), positions: integers(Array.from({ length: window }, (_, i) => i)) }, { threads: 1 })).output);
  };
  t.ok(difference(await attended(undefined), await attended(5)) < float32Tolerance(window), 'latent attention in blocks equals attention at once');
  const refit = await openRefit(model, calibration, { gemm: plainGemm });
  await t.rejects(refit.next(mla), /layers must come in order, layer 0 is next, got 1/);
});

t.test('statistics collected now or before: the same conversion', async (t) => {
  const model = await openModel(zooPath('llama-gqa-tied'));
  const calibration = await calibrationFor(model, 9);
  await withDirectory(async (directory) => {
    const statisticsDirectory = join(directory, 'statistics');
    const budget = { components: 3, rank: 7 };
    // The first run refits on what the source gave while statistics were collected, the second runs the source itself.
    const first = await convert(model, join(directory, 'first'), { calibration, statisticsDirectory, budget, threads: 1 });
    const second = await convert(model, join(directory, 'second'), { calibration, statisticsDirectory, budget, threads: 1 });
    t.strictSame(first.layers.map(({ outputError }) => outputError?.toFixed(6)), second.layers.map(({ outputError }) => outputError?.toFixed(6)));
    t.match(second.calibration, { ...calibration.identity, refit: true });
  });
});

t.test('budgets: the measured rule, and the least that is possible', (t) => {
  const shape = { layers: 30, kvHeads: 3, headDim: 64 };
  for (const [cacheShare, components, rank] of [[0.5, 24, 144], [0.3125, 16, 88], [0.1875, 12, 48], [0.125, 8, 32]] as const) {
    const planned = resolveBudget(shape, { cacheShare }, 'components');
    t.match(planned, { components, rank, pairs: null });
    t.match(planned.reason, /the measured rule/);
    t.equal(planned.components === null ? 0 : 2 * planned.components + planned.rank, Math.floor(384 * cacheShare));
    t.match(resolveBudget(shape, { bytesPerToken: 30 * 4 * 384 * cacheShare }, 'components'), { components, rank });
  }
  fc.assert(fc.property(fc.double({ min: 0.02, max: 1, noNaN: true }), (cacheShare) => {
    const { components, rank } = resolveBudget(shape, { cacheShare }, 'components');
    return components !== null && components >= 1 && rank >= 1 && 2 * components + rank <= 384 * cacheShare + 1e-6 && ropeShare(cacheShare) >= 0.25 && ropeShare(cacheShare) <= 1 / 3;
  }));
  t.ok((resolveBudget(shape, { bytesPerToken: 30 * 128, cache: 'int8' }, 'components').rank ?? 0) > (resolveBudget(shape, { bytesPerToken: 30 * 128 }, 'components').rank ?? 0), 'int8 rows hold more elements in the same bytes');
  t.throws(() => resolveBudget(shape, { bytesPerToken: 30 * 4 * 2 }, 'components'), /at least share 0\.0078 or 360 bytes per token, got 2 elements per layer/);
  t.throws(() => resolveBudget(shape, { cacheShare: 0.1, components: 30 }, 'components'), /beside 30 rotating components, at least share 0\.1589/);
  t.throws(() => resolveBudget(shape, { components: 3 }, 'pairs'), /takes pairs per KV head, got components 3/);
  t.throws(() => resolveBudget(shape, { pairs: 3 }, 'components'), /takes components, got pairs 3/);
  t.throws(() => resolveBudget(shape, { components: 97 }, 'components'), /components must be 1\.\.96, got 97/);
  const small = { heads: 14, kvHeads: 2, headDim: 64, maxPositions: 4096, attentionBias: true };
  const identity = { model: 'm', tokenizer: 't', texts: [], tokens: 1, attentionTokens: 1, window: 1024 };
  t.equal(conversionWarnings(small, { pairs: null, components: 8 }, { window: 1024, identity }).length, 3);
  t.strictSame(conversionWarnings({ ...small, heads: 4, attentionBias: false, maxPositions: 1024 }, { pairs: 4, components: null }, { window: 1024, identity }), []);
  t.end();
});

t.test('conversion with text refuses what does not fit, and writes nothing', async (t) => {
  const model = await openModel(zooPath('llama-gqa-tied'));
  const other = await openModel(zooPath('llama-mha'));
  const calibration = await calibrationFor(model, 3);
  await withDirectory(async (directory) => {
    const out = join(directory, 'out');
    const refused = (message: RegExp, options: Parameters<typeof convert>[2], source = model): Promise<unknown> => t.rejects(convert(source, out, options), message);
    await refused(/needs calibration text or statistics, got none for plan bank/, { plan: 'bank' });
    await refused(/got none for factor two-sided/, { factor: 'two-sided' });
    await refused(/a refit needs calibration text/, { refit: true });
    await refused(/calibration must be made for this model/, { calibration }, other);
    await refused(/statistics must be of this model/, { statistics: await statisticsOf(model, calibration) }, other);
    await refused(/at least share 0\.0469/, { calibration, budget: { cacheShare: 0.01 } });
    await refused(/takes components, got pairs 2/, { calibration, plan: 'bank', budget: { pairs: 2 } });
    await refused(/rank must be 1\.\.48 for layer 0, got 60/, { calibration, budget: { rank: 60, components: 3 } });
    t.notOk(existsSync(out), 'nothing is written');
    t.equal((await convert(model, out, { calibration, refit: false, budget: { pairs: 2 } })).plan, 'uniform', 'who counts pairs gets pairs');
  });
});
