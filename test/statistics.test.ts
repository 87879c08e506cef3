/** Statistics of calibration text: against plain loops in float64, and as something that is saved, reused, resumed and refused. */
import { join } from 'node:path';
import t from 'tap';
import { blockwiseAttention, groupedQueryAttention } from '../kernels/index.ts';
import { constantsFirst, openWidening } from '../lib/graph/open-for-windows.ts';
import { openRuntime } from '../lib/graph/runtime.ts';
import type { HostTensor } from '../lib/graph/subgraph.ts';
import { loadLayerWeights } from '../lib/models/decoder-weights.ts';
import { openModel, type Model } from '../lib/models/model.ts';
import { calibrationOf, type Calibration } from '../lib/statistics/calibration.ts';
import { collectStatistics, type CollectOptions } from '../lib/statistics/collect-statistics.ts';
import { sourceLayerSubgraph } from '../lib/statistics/layer-graph.ts';
import type { LayerStatistics } from '../lib/statistics/layer-statistics.ts';
import { openStatistics } from '../lib/statistics/saved-statistics.ts';
import { readAttentionLayer } from '../lib/surgery/attention-layer.ts';
import { bothReadings, difference, float32Tolerance, generator, normal, numbers, type Program } from './support/readings.ts';
import { withDirectory, zooPath } from './support/tiny.ts';

const window = 13;

/** Seeded windows of ids, and a made-up identity. */
function calibrationFor(model: Model, count: number, attentionWindows: number, seed = 1): Calibration {
  const random = generator(seed);
  const windows = Array.from({ length: count }, () => Array.from({ length: window }, () => Math.floor(random() * model.config.vocab)));
  return { window, windows, attentionWindows, identity: { model: 'm', tokenizer: 't', texts: [{ name: 'text', sha256: String(seed) }], tokens: count * window, attentionTokens: attentionWindows * window, window } };
}

async function collected(model: Model, calibration: Calibration, options: CollectOptions = {}): Promise<LayerStatistics[]> {
  const all: LayerStatistics[] = [];
  for await (const layer of collectStatistics(model, calibration, { threads: 1, ...options })) all.push(layer);
  return all;
}

/** Embeddings, then layer 0's output: the input of layer `layer`, per window. */
async function inputsOf(model: Model, calibration: Calibration, layer: number): Promise<Float64Array[]> {
  const { hidden } = model.config;
  const table = await model.checkpoint.read(`${model.family.embedding}.weight`);
  const states = calibration.windows.map((ids): Float32Array => Float32Array.from(ids.flatMap((id) => [...table.data.subarray(id * hidden, (id + 1) * hidden)])));
  for (let below = 0; below < layer; below++) {
    const runtime = await openRuntime(sourceLayerSubgraph(model, await loadLayerWeights(model, below), below, window, ['next']), { threads: 1 });
    for (const [at, data] of states.entries()) {
      const { next } = await runtime.run({ hidden: { dtype: 'float32', shape: [1, window, hidden], data } });
      if (next?.dtype === 'float32') states[at] = next.data;
    }
    await runtime.release();
  }
  return states.map((state) => Float64Array.from(state));
}

/** Everything LayerStatistics holds, by the formulas of its comments. */
async function reference(model: Model, calibration: Calibration, layer: number): Promise<Omit<LayerStatistics, 'identity' | 'layer'>> {
  const { hidden: d, heads, kvHeads, headDim, normEps } = model.config;
  const attention = await readAttentionLayer(model, layer);
  const norm = (await model.checkpoint.read(`${model.family.layer(layer).attentionNorm}.weight`)).data;
  const half = headDim / 2;
  const width = heads * headDim;
  const T = window;
  const out = {
    secondMoment: new Float64Array(d * d), mean: new Float64Array(d), queryPairNorms: new Float64Array(heads * half), keyPairNorms: new Float64Array(kvHeads * half),
    queryMoments: new Float64Array(heads * headDim ** 2), keyMoment: new Float64Array((kvHeads * headDim) ** 2),
    distances: new Float64Array(heads * T), outputSensitivity: new Float64Array(heads), meanAttended: new Float64Array(heads * d),
  };
  const add = (into: Float64Array, at: number, value: number): void => { into[at] = (into[at] ?? NaN) + value; };
  for (const [w, state] of (await inputsOf(model, calibration, layer)).entries()) {
    const x = Array.from({ length: T }, (_, i) => {
      const row = state.subarray(i * d, (i + 1) * d);
      const rms = Math.sqrt(row.reduce((sum, v) => sum + v * v, 0) / d + normEps);
      return row.map((v, at) => (v / rms) * (norm[at] ?? NaN));
    });
    const project = ({ weight, bias }: typeof attention.query, i: number, row: number): number => {
      let sum = bias?.data[row] ?? 0;
      for (let at = 0; at < d; at++) sum += (weight.data[row * d + at] ?? NaN) * (x[i]?.[at] ?? NaN);
      return sum;
    };
    const heads2 = (projection: typeof attention.query, count: number): number[][] => x.map((_, i) => Array.from({ length: count * headDim }, (_, row) => project(projection, i, row)));
    const [q, k, v] = [heads2(attention.query, heads), heads2(attention.key, kvHeads), heads2(attention.value, kvHeads)];
    const turned = (rows: number[][], i: number, head: number): number[] => Array.from({ length: headDim }, (_, e) => {
      const pair = e % half;
      const angle = i * (attention.frequencies[pair] ?? NaN);
      const [re, im] = [rows[i]?.[head * headDim + pair] ?? NaN, rows[i]?.[head * headDim + pair + half] ?? NaN];
      return e < half ? re * Math.cos(angle) - im * Math.sin(angle) : im * Math.cos(angle) + re * Math.sin(angle);
    });
    for (let i = 0; i < T; i++) {
      for (let a = 0; a < d; a++) {
        add(out.mean, a, x[i]?.[a] ?? NaN);
        for (let b = 0; b < d; b++) add(out.secondMoment, a * d + b, (x[i]?.[a] ?? NaN) * (x[i]?.[b] ?? NaN));
      }
      for (const [rows, count, norms] of [[q, heads, out.queryPairNorms], [k, kvHeads, out.keyPairNorms]] as const) {
        for (let at = 0; at < count * half; at++) {
          const [head, pair] = [Math.floor(at / half), at % half];
          add(norms, at, Math.hypot(rows[i]?.[head * headDim + pair] ?? NaN, rows[i]?.[head * headDim + pair + half] ?? NaN));
        }
      }
      for (let a = 0; a < width; a++) for (let b = 0; b < headDim; b++) add(out.queryMoments, a * headDim + b, (q[i]?.[a] ?? NaN) * (q[i]?.[Math.floor(a / headDim) * headDim + b] ?? NaN));
      for (let a = 0; a < kvHeads * headDim; a++) for (let b = 0; b < kvHeads * headDim; b++) add(out.keyMoment, a * kvHeads * headDim + b, (k[i]?.[a] ?? NaN) * (k[i]?.[b] ?? NaN));
    }
    if (w >= calibration.attentionWindows) continue;
    for (let head = 0; head < heads; head++) {
      const group = Math.floor(head / (heads / kvHeads));
      const outputs = Array.from({ length: T }, (_, j) => Array.from({ length: d }, (_, row) => {
        let sum = 0;
        for (let e = 0; e < headDim; e++) sum += (attention.output.weight.data[row * width + head * headDim + e] ?? NaN) * (v[j]?.[group * headDim + e] ?? NaN);
        return sum;
      }));
      const keys = Array.from({ length: T }, (_, j) => turned(k, j, group));
      for (let i = 0; i < T; i++) {
        const query = turned(q, i, head);
        const from = attention.window === null ? 0 : Math.max(0, i - attention.window + 1);
        const scores = Array.from({ length: T }, (_, j) => (j > i || j < from ? -Infinity : attention.scale * query.reduce((sum, a, e) => sum + a * (keys[j]?.[e] ?? NaN), 0)));
        const top = Math.max(...scores);
        const total = scores.reduce((sum, s) => sum + Math.exp(s - top), 0);
        const p = scores.map((s) => Math.exp(s - top) / total);
        const mean = Array.from({ length: d }, (_, row) => p.reduce((sum, share, j) => sum + share * (outputs[j]?.[row] ?? NaN), 0));
        for (let j = 0; j <= i; j++) {
          const gap = (outputs[j] ?? []).reduce((sum, value, row) => sum + (value - (mean[row] ?? NaN)) ** 2, 0);
          add(out.outputSensitivity, head, (p[j] ?? NaN) * gap);
          if (i > 0 && j > 0) add(out.distances, head * T + i - j, p[j] ?? NaN);
          for (let a = 0; a < d; a++) add(out.meanAttended, head * d + a, (p[j] ?? NaN) * (x[j]?.[a] ?? NaN));
        }
      }
    }
  }
  const over = (sum: Float64Array, count: number): Float64Array => sum.map((value) => value / count);
  const [tokens, attentionTokens] = [calibration.windows.length * T, calibration.attentionWindows * T];
  const shares = out.distances.map((value, at) => {
    const head = Math.floor(at / T);
    return value / out.distances.subarray(head * T, (head + 1) * T).reduce((a, b) => a + b, 0);
  });
  const matrix = (rows: number, data: Float64Array) => ({ rows, cols: data.length / rows, data });
  return {
    secondMoment: matrix(d, over(out.secondMoment, tokens)), mean: over(out.mean, tokens), queryPairNorms: over(out.queryPairNorms, tokens), keyPairNorms: over(out.keyPairNorms, tokens),
    queryMoments: matrix(width, over(out.queryMoments, tokens)), keyMoment: matrix(kvHeads * headDim, over(out.keyMoment, tokens)),
    distances: matrix(heads, shares), outputSensitivity: over(out.outputSensitivity, attentionTokens), meanAttended: matrix(heads, over(out.meanAttended, attentionTokens)),
  };
}

const fields = ['secondMoment', 'mean', 'queryPairNorms', 'keyPairNorms', 'queryMoments', 'keyMoment', 'distances', 'outputSensitivity', 'meanAttended'] as const;
const numbersOf = (statistics: Omit<LayerStatistics, 'identity' | 'layer'>, field: (typeof fields)[number]): Float64Array => {
  const value = statistics[field];
  return value instanceof Float64Array ? value : value.data;
};
/** Relative to the largest number of the field, however small that is. */
const gap = (a: Float64Array, b: Float64Array): number => difference(a.map((x) => x / Math.max(...b.map(Math.abs))), b.map((x) => x / Math.max(...b.map(Math.abs))));

for (const name of ['llama-gqa-tied', 'qwen2', 'mistral-window']) {
  t.test(`${name}: every statistic by plain loops in float64`, async (t) => {
    const model = await openModel(zooPath(name));
    const calibration = calibrationFor(model, 3, 2);
    const all = await collected(model, calibration);
    t.equal(all.length, model.config.layers);
    for (const layer of [0, 1]) {
      const expected = await reference(model, calibration, layer);
      const got = all[layer];
      for (const field of fields) {
        t.ok(got !== undefined && gap(numbersOf(got, field), numbersOf(expected, field)) < 8 * float32Tolerance(model.config.hidden), `${field} of layer ${layer}`);
      }
    }
  });
}

t.test('attention in blocks equals attention at once', async (t) => {
  const random = generator(7);
  const [tokens, groups, perGroup, width] = [11, 2, 3, 5];
  const feeds: Record<string, HostTensor> = {
    query: normal([1, tokens, groups, perGroup, width], random), key: normal([1, tokens, groups, width], random), value: normal([1, tokens, groups, width], random),
    positions: { dtype: 'int64', shape: [tokens], data: BigInt64Array.from({ length: tokens }, (_, i) => BigInt(i)) },
  };
  const program: Program = (g, { query, key, value, positions }) => {
    if (query === undefined || key === undefined || value === undefined || positions === undefined) throw new RangeError('feeds');
    const segment = { key, value, mask: g.causalMask(positions, positions, null) };
    return { whole: groupedQueryAttention(g, query, [segment], 0.7), three: blockwiseAttention(g, query, segment, 0.7, 3), one: blockwiseAttention(g, query, segment, 0.7, 100) };
  };
  const { reference, onnx } = await bothReadings(program, feeds);
  for (const spelling of ['three', 'one']) {
    t.ok(difference(reference.whole?.data ?? [], reference[spelling]?.data ?? []) < 1e-14, `${spelling}, float64`);
    t.ok(difference(reference.whole?.data ?? [], Float64Array.from(onnx[spelling]?.data ?? [], Number)) < float32Tolerance(tokens), `${spelling}, onnx`);
  }
});

t.test('weights widened in every run give what weights widened once give', async (t) => {
  const model = await openModel(zooPath('llama-gqa-tied'));
  const subgraph = sourceLayerSubgraph(model, await loadLayerWeights(model, 0), 0, window, ['next', 'second', 'sensitivity']);
  const { nodes } = constantsFirst(subgraph);
  const computed = new Set(subgraph.inputs.map(({ name }) => name));
  const late = nodes.map(({ inputs, outputs }) => {
    const isLate = inputs.some((name) => computed.has(name));
    if (isLate) for (const name of outputs) computed.add(name);
    return isLate;
  });
  t.ok(late.includes(false) && late.indexOf(true) > late.lastIndexOf(false), 'what needs no input comes first');
  t.same(new Set(nodes), new Set(subgraph.nodes));
  const feeds = { hidden: normal([1, window, model.config.hidden], generator(3)) };
  const [once, everyRun] = [await openRuntime(subgraph, { threads: 1 }), await openWidening(subgraph, { threads: 1 })];
  const [want, got] = [await once.run(feeds), await everyRun.run(feeds)];
  for (const [name, tensor] of Object.entries(want)) t.ok(difference(numbers(tensor), numbers(got[name])) < float32Tolerance(model.config.hidden), name);
  await Promise.all([once.release(), everyRun.release()]);
});

t.test('statistics are saved, reused, and gone on with where they stopped', async (t) => {
  const model = await openModel(zooPath('llama-gqa-tied'));
  const calibration = calibrationFor(model, 3, 1);
  const plain = await collected(model, calibration);
  const equal = (a: readonly LayerStatistics[], message: string): void => {
    for (const field of fields) t.strictSame(a.map((layer) => numbersOf(layer, field)), plain.map((layer) => numbersOf(layer, field)), `${message}: ${field}`);
  };
  await withDirectory(async (parent) => {
    const directory = join(parent, 'statistics');
    const controller = new AbortController();
    const windows: number[] = [];
    // stops in the middle of layer 1
    const stop = (done: number): void => { if (done === 4) controller.abort(new Error('stopped by the test')); };
    await t.rejects(collected(model, calibration, { directory, signal: controller.signal, onProgress: stop }), /stopped by the test/);
    await t.rejects((await openStatistics(directory)).layer(1), /layer 1 must be in .* collecting stopped before it/);
    equal(await collected(model, calibration, { directory, onProgress: (done) => windows.push(done) }), 'resumed');
    t.equal(windows[0], 4, 'layer 0 is not run again');
    equal(await collected(model, calibration, { directory, onProgress: () => t.fail('nothing is run') }), 'reused');
    const other = { ...calibration, identity: { ...calibration.identity, model: 'another' } };
    await t.rejects(collected(model, other, { directory }), /must be of this model, "another", got "m"/);
    await t.rejects(collected(model, calibrationFor(model, 3, 1, 2), { directory }), /must be of this calibration text/);
    await t.rejects(openStatistics(directory, { tokenizer: 'u' }), /must be of this tokenizer/);
    await t.rejects(openStatistics(parent), /must exist: no statistics were saved there/);
  });
});

t.test('texts become windows that take turns', async (t) => {
  const model = await openModel(zooPath('llama-gqa-tied'));
  const tokenizer = { fingerprint: 'f', encode: (text: string) => [...text].map((character) => character.charCodeAt(0) % 97) };
  const texts = [{ name: 'one', text: 'a'.repeat(40) }, { name: 'two', text: 'b'.repeat(100) }];
  const { windows, identity, attentionWindows } = await calibrationOf(model, tokenizer, texts, { window, windows: 7 });
  const [a, b] = ['a', 'b'].map((character) => character.charCodeAt(0) % 97);
  t.strictSame(windows.map(([first]) => first), [a, b, a, b, a, b, b], 'a text that ends early leaves its turns to the others');
  t.equal(identity.tokens, 7 * window);
  t.equal(attentionWindows, 4);
  t.not(identity.texts[0]?.sha256, identity.texts[1]?.sha256);
  await t.rejects(calibrationOf(model, tokenizer, [{ name: 'short', text: 'a'.repeat(12) }], { window }), /calibration text short must have at least one window of 13 tokens, got 12/);
  await t.rejects(calibrationOf(model, tokenizer, [], { window }), /at least one calibration text/);
  await t.rejects(calibrationOf(model, tokenizer, texts, { window: 1000 }), /window must be 2\.\.64 tokens, got 1000/);
  await t.rejects(calibrationOf(model, tokenizer, texts, { window, windows: 0 }), /windows must be 1 or more, got 0/);
});
