/** Training: the same losses as PyTorch, the same weights after kill -9, and data, schedules, losses and refusals one by one. */
import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { nextTokenLoss, regressionLoss, sampledTeacherLoss, teacherLoss, type HostTensor } from '../kernels/index.ts';
import { runCli } from '../lib/cli.ts';
import { convertAndHeal } from '../lib/convert-and-heal.ts';
import { convert } from '../lib/convert.ts';
import { eager, toEager } from '../lib/eager.ts';
import { openModel, type Model } from '../lib/models/model.ts';
import { verifyAgainstModel } from '../lib/session/verify.ts';
import { tensorBytes } from '../lib/tensor.ts';
import { createAdamW, relativeRates } from '../lib/train/adamw.ts';
import { healLayers } from '../lib/train/heal-layers.ts';
import { heal } from '../lib/train/heal.ts';
import { initialWeights } from '../lib/train/initialise.ts';
import { loadWeights } from '../lib/train/load-weights.ts';
import { losses } from '../lib/train/losses.ts';
import { optimiserKernel } from '../lib/train/optimiser-kernel.ts';
import { rememberStates } from '../lib/train/remembered-states.ts';
import { learningRateFactor, schedules } from '../lib/train/schedule.ts';
import { openSequences } from '../lib/train/sequences.ts';
import { openTokenSource, type TokenSource, type TokenSourceOptions } from '../lib/train/token-source.ts';
import { train, type TrainOptions } from '../lib/train/train.ts';
import { trainableNames } from '../lib/train/trainable.ts';
import { placeWeights } from '../lib/train/placed-weights.ts';
import { createTrainer } from '../lib/train/trainer.ts';
import { vocabularySampler } from '../lib/train/vocabulary-sample.ts';
import { bothReadings, difference, float32Tolerance, generator, integers, normal, numbers, type Program } from './support/readings.ts';
import { zooModelWithTokenizer } from './support/zoo-model.ts';

const zoo = fileURLToPath(new URL('data/zoo/llama-gqa-tied', import.meta.url));
const model = await openModel(zoo);
const scratch = await mkdtemp(join(tmpdir(), 'train-test-'));
t.teardown(() => rm(scratch, { recursive: true, force: true }));
const random = generator(9);
const threads = { threads: 1, spinning: false };

/** A text that can be learnt: each token follows from the one before, but for a little noise. */
function tokensOf(count: number, vocab = 97): Uint32Array {
  let x = 3;
  return Uint32Array.from({ length: count }, () => (x = (x * 5 + (random() < 0.75 ? 1 : 2)) % vocab));
}
const inMemory = (name: string, tokens: Uint32Array): TokenSource => ({ name, length: tokens.length, read: async (from, count) => tokens.slice(from, from + count) });
const plenty = inMemory('plenty', tokensOf(4000));

t.test('twenty steps of AdamW give the losses of PyTorch', async (t) => {
  const golden: { tokens: number[]; losses: number[]; gradientNorms: number[]; row: number[]; weight: string; steps: number; micro: number; batch: number; sequenceLength: number; warmupSteps: number; learningRate: number; weightDecay: number } =
    JSON.parse(await readFile(new URL('data/train/golden.json', import.meta.url), 'utf8'));
  const { steps, micro, batch, sequenceLength, warmupSteps } = golden;
  for (const recompute of [false, true]) {
    const loaded = await loadWeights(model), trainable = trainableNames(model, loaded.keys(), 'all');
    // Once where they were read, once in the optimiser's memory.
    const { weights, ...placed } = recompute ? placeWeights(loaded, trainable) : { weights: loaded };
    const objective = await losses['next-token'].open({ model, weights, teacher: null, batch, sequenceLength });
    const trainer = await createTrainer({
      subgraph: objective.subgraph, weights, ...placed, trainable, checkpoints: objective.checkpoints, recompute,
      optimiser: { weightDecay: golden.weightDecay }, runtime: threads,
    });
    let at = 0;
    const rows = (shift: number): HostTensor<'int64'> =>
      integers(Array.from({ length: batch }, (_, b) => golden.tokens.slice(at + b * sequenceLength + shift, at + (b + 1) * sequenceLength + shift)).flat(), [batch, sequenceLength]);
    let worst = 0;
    for (let step = 0; step < steps; step++) {
      const feeds = [];
      for (let i = 0; i < micro; i++) {
        feeds.push({ ids: rows(0), targets: rows(1) });
        at += batch * sequenceLength;
      }
      const update = await trainer.update(feeds, golden.learningRate * learningRateFactor(step, { schedule: 'warmup-stable-decay', steps, warmupSteps }));
      const [loss = NaN, norm = NaN] = [golden.losses[step], golden.gradientNorms[step]];
      worst = Math.max(worst, Math.abs(update.loss / loss - 1), Math.abs(update.gradientNorm / norm - 1));
    }
    t.ok(worst < 1e-5, `losses and gradient norms, ${recompute ? 'recomputed' : 'kept'}: ${worst}`);
    const trained = weights.get(golden.weight);
    t.ok(difference(golden.row, trained?.data.subarray(0, golden.row.length) ?? []) < 1e-5, 'a row of a weight');
    await trainer.close();
  }
});

t.test('losses: chunks, readings, and what they are zero for', async (t) => {
  const feeds = { h: normal([2, 5, 3], random), w: normal([7, 3], random), h2: normal([2, 5, 11], random), w2: normal([7, 11], random), y: integers([0, 6, 3, 3, 1, 2, 5, 6, 0, 4], [2, 5]), r: normal([5, 1], random),
    copies: { dtype: 'float32', shape: [7], data: Float32Array.of(1, 3, 1, 2, 1, 1, 4) } as const, each: integers([0, 1, 1, 1, 2, 3, 3, 4, 5, 6, 6, 6, 6], [13]) };
  const get = <V>(x: Readonly<Record<string, V>>, name: string): V => {
    const value = x[name];
    if (value === undefined) throw new RangeError(`test: ${name} must be fed`);
    return value;
  };
  const program = (chunk: number): Program => (g, x) => ({
    next: nextTokenLoss(g, get(x, 'h'), get(x, 'w'), get(x, 'y'), chunk),
    teacher: teacherLoss(g, { hidden: get(x, 'h'), head: get(x, 'w') }, { hidden: get(x, 'h2'), head: get(x, 'w2') }, chunk),
    same: teacherLoss(g, { hidden: get(x, 'h'), head: get(x, 'w') }, { hidden: get(x, 'h'), head: get(x, 'w') }, chunk),
    sampled: sampledTeacherLoss(g, { hidden: get(x, 'h'), head: get(x, 'w') }, { hidden: get(x, 'h2'), head: get(x, 'w2') }, g.log(get(x, 'copies')), chunk),
    repeated: teacherLoss(g, { hidden: get(x, 'h'), head: g.gather(get(x, 'w'), get(x, 'each')) }, { hidden: get(x, 'h2'), head: g.gather(get(x, 'w2'), get(x, 'each')) }, chunk),
    regression: regressionLoss(g, get(x, 'h'), g.scale(get(x, 'h'), 0.5), g.square(get(x, 'r'))),
  });
  const whole = await bothReadings(program(100), feeds), parts = await bothReadings(program(3), feeds);
  for (const name of ['next', 'teacher', 'same', 'sampled', 'repeated', 'regression']) {
    const reference = whole.reference[name]?.data ?? [];
    t.ok(difference(reference, numbers(whole.onnx[name])) < float32Tolerance(100), `${name}: both readings`);
    t.ok(difference(reference, parts.reference[name]?.data ?? []) < 1e-14, `${name}: chunks`);
  }
  t.ok(Math.abs(whole.reference.same?.data[0] ?? NaN) < 1e-14, 'nothing to learn from oneself');
  t.ok(difference(whole.reference.sampled?.data ?? [], whole.reference.repeated?.data ?? []) < 1e-13, 'an entry that stands for n is as n such entries');
  t.ok(Math.abs((whole.reference.regression?.data[0] ?? NaN) - 1) < 1e-12, '|y - y/2|^2 / |y/2|^2');
  // By hand, over the vocabulary: mean of sum p_t (log p_t - log p_s).
  const softmax = (h: HostTensor, w: HostTensor): Float64Array => eager.softmax(eager.einsum('bsd,wd->bsw', toEager(h), toEager(w))).data;
  const [p, q] = [softmax(feeds.h2, feeds.w2), softmax(feeds.h, feeds.w)];
  const kl = p.reduce((sum, v, i) => sum + v * Math.log(v / (q[i] ?? NaN)), 0) / 10;
  t.ok(Math.abs(kl - (whole.reference.teacher?.data[0] ?? NaN)) < 1e-12);
});

t.test('a sample of the vocabulary: all of it is the exact loss, a part changes what it has seen alone', async (t) => {
  for (const name of ['llama-gqa-tied', 'llama-mha']) {
    const teacher = await openModel(fileURLToPath(new URL(`data/zoo/${name}`, import.meta.url)));
    const run = async (loss: 'teacher' | 'teacher-sampled', entries: number, steps: number) => {
      const weights = initialWeights(teacher.config, { seed: 5 }), trainable = [...weights.keys()];
      const objective = await losses[loss].open({ model: teacher, weights, trainable, teacher, batch: 2, sequenceLength: 17, runtime: threads, sampling: { batches: 2, sources: [{ source: plenty }], entries } });
      const trainer = await createTrainer({ subgraph: objective.subgraph, checkpoints: objective.checkpoints, rows: objective.rows, weights, trainable, runtime: threads });
      const sequences = openSequences([{ source: plenty }], { sequenceLength: 17, batch: 2, seed: 1 });
      const seen: number[] = [], ids = new Set<number>();
      for (let step = 0; step < steps; step++) {
        const feeds = await objective.feeds([await sequences.next(), await sequences.next()], weights);
        for (const id of feeds[0]?.vocabulary_ids?.data ?? []) ids.add(Number(id));
        seen.push((await trainer.update(feeds, 1e-3)).loss);
        if (loss === 'teacher-sampled' && step === 0) {
          const [one = {}, two = {}] = feeds;
          const other = { ...two, vocabulary_ids: integers([...ids].reverse(), [ids.size]) };
          await t.rejects(trainer.update([one, other], 1e-3), /vocabulary_ids must be the same in all 2 batches of an update/);
        }
      }
      await trainer.close();
      await objective.close();
      return { seen, ids, weights };
    };
    const exact = await run('teacher', 0, 5), whole = await run('teacher-sampled', 97, 5), part = await run('teacher-sampled', 83, 1);
    t.equal(whole.ids.size, 97);
    t.ok(difference(exact.seen, whole.seen) < 1e-5, `${name}: losses ${exact.seen} and ${whole.seen}`);
    for (const [weight, { data }] of exact.weights) t.ok(difference(data, whole.weights.get(weight)?.data ?? []) < 1e-5, `${name}: ${weight}`);
    t.equal(part.ids.size, 83);
    const start = initialWeights(teacher.config, { seed: 5 });
    for (const weight of trainableNames(teacher, start.keys(), 'all').filter((one) => !trainableNames(teacher, start.keys(), 'layers').includes(one))) {
      const width = teacher.config.hidden, now = part.weights.get(weight)?.data ?? [];
      const changed = new Set(Array.from(start.get(weight)?.data ?? [], (x, i) => (x === now[i] ? -1 : Math.floor(i / width))).filter((row) => row >= 0));
      t.ok(changed.size > 10 && [...changed].every((row) => part.ids.has(row)), `${name}: ${weight}, ${changed.size} rows`);
    }
    await t.rejects(run('teacher-sampled', 31, 1), /the tokens of an update and 15 frequent ones must be at most 31, got \d+/);
    const sample = (await vocabularySampler([], 97, 7))([BigInt64Array.of(96n, 95n, 96n)]);
    t.same([[...sample.ids].slice(0, 2), new Set(sample.ids).size, [...sample.placesOf(BigInt64Array.of(95n, 96n))]], [[96n, 95n], 7, [1n, 0n]], 'without a text nothing is frequent');
    t.same(sample.logCopies, Float32Array.of(0, 0, ...Array<number>(5).fill(Math.log(19))));
    t.throws(() => sample.placesOf(BigInt64Array.of(BigInt(Array.from({ length: 97 }, (_, id) => id).find((id) => !sample.ids.includes(BigInt(id))) ?? 0))), /tokens must be of the update, got \d+/);
    await t.rejects(run('teacher-sampled', 98, 1), /entries must be a whole number of 1 to 97, got 98/);
  }
});

t.test('the optimiser equals a plain loop, whatever the length, wherever the rows lie', (t) => {
  const lengths = [1, 3, 4, 31, 16384, 16387, 40001];
  const kernel = optimiserKernel(lengths.flatMap((length) => [length, length]));
  const own = (values: Float32Array): Float32Array => {
    const row = kernel.row(values.length);
    row.set(values);
    return row;
  };
  const made: Float32Array[] = [];
  for (const length of lengths) {
    const row = (): Float32Array => normal([length], random).data;
    const [weights, first, gradient] = [row(), row(), own(row())];
    const second = row().map((v) => v * v);
    const [w, m, v] = [weights.slice(), own(first), second.slice()];
    made.push(gradient, m);
    t.equal(gradient.buffer, m.buffer);
    kernel.adamw({ weights: w, first: m, second: v, gradient }, { gradientScale: 0.5, beta1: 0.9, beta2: 0.95, keep: 0.99, stepSize: 0.01, rootScale: 1.3, epsilon: 1e-3 });
    const expected = [weights, first, second].map((a) => Float64Array.from(a));
    for (let i = 0; i < length; i++) {
      const g = 0.5 * (gradient[i] ?? NaN), mean = 0.9 * (first[i] ?? NaN) + 0.1 * g, square = 0.95 * (second[i] ?? NaN) + 0.05 * g * g;
      [mean, square, 0.99 * (weights[i] ?? NaN) - (0.01 * mean) / (Math.sqrt(square) * 1.3 + 1e-3)].forEach((value, k) => { (expected[(k + 1) % 3] ?? weights)[i] = value; });
    }
    for (const [k, found] of [w, m, v].entries()) t.ok(difference(expected[k] ?? [], found) < 1e-6, `${length}: ${k}`);
    t.ok(Math.abs(kernel.squares(gradient) / gradient.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-6);
    const sum = weights.slice();
    kernel.add(sum, gradient);
    t.equal(difference(weights.map((x, i) => x + (gradient[i] ?? NaN)), sum), 0);
    kernel.add(gradient, m);
    t.equal(difference(sum.map((x, i) => x - (weights[i] ?? NaN) + (m[i] ?? NaN)), gradient) < 1e-6, true);
  }
  const ends = made.map((row) => row.byteOffset + row.byteLength);
  t.ok(made.slice(1).every((row, i) => row.byteOffset >= (ends[i] ?? NaN)), 'rows do not touch');
  t.not(kernel.row(70000).buffer, made[0]?.buffer, 'what no memory was asked for lies elsewhere');
  t.same([...kernel.row(70000)], [...new Float32Array(70000)]);
  t.end();
});

t.test('clipping, decay on matrices only, relative rates, a gradient that is not finite', (t) => {
  const one = (shape: readonly number[], value: number): HostTensor<'float32'> => ({ dtype: 'float32', shape, data: new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(value) });
  const weights = new Map([['matrix', one([3, 5], 2)], ['vector', one([7], 2)]]);
  const gradients = new Map([['matrix', new Float32Array(15).fill(4)], ['vector', new Float32Array(7).fill(3)]]);
  const { norm, largest } = createAdamW({ weightDecay: 0.5, clipNorm: 1e-6, epsilon: 1 }).update(weights, gradients, 2, 0.1);
  t.ok(Math.abs(norm - Math.sqrt(15 * 4 + 7 * 2.25)) < 1e-6, 'of the mean over micro-batches');
  t.equal(largest, 'matrix');
  t.ok(Math.abs((weights.get('matrix')?.data[0] ?? NaN) - 1.9) < 1e-6, 'decayed; the clipped gradient moves next to nothing');
  t.ok(Math.abs((weights.get('vector')?.data[0] ?? NaN) - 2) < 1e-6, 'not decayed');
  t.same(relativeRates(new Map([['a', one([4], -3)], ['b', one([2], 0)]])), { a: 3, b: 1e-6 });
  const before = weights.get('matrix')?.data.slice();
  t.throws(() => createAdamW().update(weights, new Map([['matrix', new Float32Array(15).fill(NaN)]]), 1, 0.1), /gradient of matrix must be finite, got a norm of NaN/);
  const rows = (row: bigint, gradient = 5): void => { createAdamW().update(weights, new Map([['matrix', new Float32Array(gradient).fill(1)]]), 1, 0.1, new Map([['matrix', BigInt64Array.of(row)]])); };
  t.throws(() => rows(3n), /rows of matrix must be 0..2, got 3/);
  t.throws(() => rows(0n, 7), /gradient of matrix must have 1 rows of 5, got 7 elements/);
  t.same(weights.get('matrix')?.data, before, 'nothing has changed');
  rows(1n);
  t.same(weights.get('matrix')?.data.map((x, i) => (x === before?.[i] ? 0 : 1)), Float32Array.from({ length: 15 }, (_, i) => (i >= 5 && i < 10 ? 1 : 0)), 'one row alone');
  t.end();
});

t.test('schedules', (t) => {
  const at = (schedule: keyof typeof schedules) => (step: number): number => learningRateFactor(step, { schedule, steps: 110, warmupSteps: 10 });
  for (const name of Object.keys(schedules) as (keyof typeof schedules)[]) {
    t.same([0, 4, 9, 10].map(at(name)), [0.1, 0.5, 1, 1], `${name}: warm-up`);
    const rest = Array.from({ length: 100 }, (_, i) => at(name)(10 + i));
    t.ok(rest.every((factor, i) => factor > 0 && (i === 0 || factor <= (rest[i - 1] ?? 0))), `${name}: falls, stays above 0`);
  }
  t.equal(at('warmup-stable-decay')(89), 1);
  t.ok(Math.abs(at('warmup-stable-decay')(95) - (1 - Math.sqrt(0.25))) < 1e-12);
  t.ok(Math.abs(at('cosine')(60) - 0.5) < 1e-12);
  t.ok(Math.abs(at('linear')(85) - 0.25) < 1e-12);
  t.end();
});

t.test('random weights: the shapes of the model, the widths of the normal, the same from the same seed', async (t) => {
  const weights = initialWeights(model.config, { seed: 3, deviation: 0.05 });
  const loaded = await loadWeights(model);
  t.same(new Map([...weights].map(([name, { shape }]) => [name, shape])), new Map([...loaded].map(([name, { shape }]) => [name, shape])));
  t.same(initialWeights(model.config, { seed: 3, deviation: 0.05 }), weights);
  for (const [name, { shape, data }] of weights) {
    if (shape.length === 1) t.ok(data.every((value) => value === 1), `${name} is a norm`);
    else {
      const width = /(o_proj|down_proj)\.weight$/.test(name) ? 0.05 / Math.sqrt(2 * 3) : 0.05;
      const measured = Math.sqrt(data.reduce((sum, value) => sum + value * value, 0) / data.length);
      // five standard errors of a standard deviation over so many numbers
      t.ok(Math.abs(measured / width - 1) < 5 / Math.sqrt(2 * data.length), `${name} has width ${width}, got ${measured}`);
    }
  }
  const qwen = initialWeights((await openModel(fileURLToPath(new URL('data/zoo/qwen2', import.meta.url)))).config);
  t.ok(qwen.get('model.layers.0.self_attn.q_proj.bias')?.data.every((value) => value === 0), 'biases are 0');
  t.throws(() => initialWeights(model.config, { deviation: 0 }), { message: 'initialWeights: deviation must be positive, got 0' });
});

t.test('data: formats, and refusals by name', async (t) => {
  const options: TokenSourceOptions = { vocab: 300, endOfText: 7, tokenizer: async () => ({ encode: (text: string) => [...text].map((c) => c.charCodeAt(0)) }) };
  const file = async (name: string, content: string | Uint8Array): Promise<string> => { await writeFile(join(scratch, name), content); return join(scratch, name); };
  const read = async (path: string, from: number, count: number): Promise<number[]> => [...await (await openTokenSource(path, options)).read(from, count)];
  t.same(await read(await file('a.txt', 'hello'), 1, 3), [101, 108, 108]);
  t.same(await read(await file('a.jsonl', '{"text":"ab"}\n\n{"text":"c","more":1}\n'), 0, 5), [97, 98, 7, 99, 7]);
  t.same(await read(await file('a.u16', new Uint8Array(Uint16Array.of(1, 299, 5).buffer)), 1, 2), [299, 5]);
  t.same(await read(await file('a.u32', new Uint8Array(Uint32Array.of(1, 299, 5).buffer)), 1, 2), [299, 5]);
  const refuse = (path: string, rule: RegExp): Promise<unknown> => t.rejects(read(path, 0, 1), rule);
  await refuse(join(scratch, 'none.txt'), /data must be a readable file, got .*none.txt \(ENOENT\)/);
  await refuse(await file('empty.txt', ' \n'), /got an empty file .*empty.txt/);
  await refuse(await file('empty.u16', ''), /got an empty file .*empty.u16/);
  await refuse(await file('odd.u32', new Uint8Array(7)), /odd.u32 must hold whole tokens of 4 bytes, got 7 bytes/);
  await refuse(await file('large.u16', new Uint8Array(Uint16Array.of(300).buffer)), /tokens of .*large.u16 must be 0..299, got 300 at 0/);
  await refuse(await file('large.txt', 'aŁ'), /tokens of .*large.txt must be 0..299, got 321 at 1/);
  await refuse(await file('binary.txt', new Uint8Array([255, 254, 0])), /data must be UTF-8 text, got other bytes in .*binary.txt/);
  await refuse(await file('bad.jsonl', '{"text":"a"}\n{"txt":"b"}\n'), /line 2 of .*bad.jsonl must be a JSON object with a string `text`, got \{"txt":"b"\}/);
});

t.test('sequences: each once before any twice, shares, the same order from the same seed, skipping', async (t) => {
  const source = (name: string, length: number, offset: number): TokenSource => inMemory(name, Uint32Array.from({ length }, (_, i) => offset + i));
  const firsts = async (sequences: ReturnType<typeof openSequences>, batches: number): Promise<number[]> => {
    const found: number[] = [];
    for (let i = 0; i < batches; i++) {
      const { ids, targets } = await sequences.next();
      for (let b = 0; b < 3; b++) {
        found.push(Number(ids.data[b * 5]));
        for (let i = 5 * b; i < 5 * b + 5; i++) if (targets.data[i] !== (ids.data[i] ?? 0n) + 1n) t.fail('a target is the token that follows');
      }
    }
    return found;
  };
  const options = { sequenceLength: 5, batch: 3, seed: 4 };
  const single = [{ source: source('a', 62, 0) }]; // 12 sequences
  const order = await firsts(openSequences(single, options), 8);
  t.same([...order.slice(0, 12)].sort((a, b) => a - b), Array.from({ length: 12 }, (_, i) => 5 * i));
  t.same([...order.slice(12)].sort((a, b) => a - b), [...order.slice(0, 12)].sort((a, b) => a - b));
  t.not(order.slice(12).join(), order.slice(0, 12).join(), 'another order the second time');
  t.same(await firsts(openSequences(single, options), 8), order);
  t.not((await firsts(openSequences(single, { ...options, seed: 5 }), 8)).join(), order.join());
  const skipped = openSequences(single, options);
  skipped.skip(3);
  t.same(await firsts(skipped, 5), order.slice(9));
  const two = await firsts(openSequences([{ source: source('a', 200, 0), weight: 3 }, { source: source('b', 5000, 1000), weight: 1 }], options), 200);
  const share = two.filter((first) => first < 1000).length / two.length;
  t.ok(Math.abs(share - 0.75) < 0.06, `share ${share}`); // three standard deviations of 600 draws
  t.throws(() => openSequences([{ source: source('short', 5, 0) }], options), /short must have 6 tokens or more for sequences of 5, got 5/);
  t.throws(() => openSequences([], options), /at least one source, got none/);
  t.throws(() => openSequences([{ source: source('a', 62, 0), weight: 0 }], options), /the weight of a must be positive, got 0/);
});

const small: TrainOptions = { data: [{ source: plenty }], steps: 12, sequenceLength: 17, batch: 2, learningRate: 5e-3, runtime: threads };

t.test('a converted model learns from its source: every set of weights, every loss', async (t) => {
  const converted = join(scratch, 'converted');
  await convert(model, converted, { budget: { pairs: 2, rank: 12 } });
  const student = await openModel(converted);
  const start = await loadWeights(student);
  const runs = [
    { loss: 'teacher', train: 'attention' }, { loss: 'teacher', train: 'factors' }, { loss: 'layers', train: 'attention' }, { loss: 'layers-own', train: 'attention' },
    { loss: 'next-token', train: 'attention-and-norms' }, { loss: 'teacher-sampled', train: 'layers' },
  ] as const;
  for (const [i, { loss, train: which }] of runs.entries()) {
    const out = join(scratch, `healed-${i}`);
    const seen: number[] = [];
    await train(student, out, { ...small, steps: 15, teacher: model, loss, train: which, relativeRates: true, learningRate: 2e-2, optimiser: { weightDecay: 0 }, onUpdate: (progress) => seen.push(progress.loss) });
    const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length;
    t.ok(mean(seen.slice(-4)) < mean(seen.slice(0, 4)), `${loss}, ${which}: ${mean(seen.slice(0, 4))} -> ${mean(seen.slice(-4))}`);
    const after = await loadWeights(await openModel(out));
    const names = new Set(trainableNames(student, start.keys(), which));
    const changed = [...start].filter(([name, { data }]) => data.some((value, k) => value !== after.get(name)?.data[k])).map(([name]) => name);
    t.same(changed.filter((name) => !names.has(name)), [], `${which}: frozen weights are as they were`);
    t.ok(changed.length > 0 && names.size < start.size, `${changed.length} of ${names.size} weights have changed`);
  }
  t.same([...start.keys()].filter((name) => !trainableNames(student, start.keys(), 'layers').includes(name)), ['model.embed_tokens.weight', 'lm_head.weight'].filter((name) => start.has(name)));
  await t.rejects(train(student, join(scratch, 'idle'), { ...small, teacher: model, loss: 'layers', train: 'all' }), /weights of all must take part in loss layers, got model.embed_tokens.weight; try attention/);
  t.throws(() => trainableNames(model, start.keys(), 'factors'), /factors are there in converted models only/);
});

t.test('what a run leaves behind', async (t) => {
  const out = join(scratch, 'run');
  const result = await train(model, out, { ...small, saveEvery: 5, evaluation: inMemory('aside', tokensOf(100)), files: { 'tokenizer.json': '{}' } });
  t.equal(result.steps, 12);
  t.equal(result.tokens, 12 * 2 * 17);
  t.ok(result.evaluation !== null && result.evaluation.after < result.evaluation.before);
  const lines = readFileSync(join(out, 'training', 'metrics.jsonl'), 'utf8').trim().split('\n').map((line) => {
    const parsed: { step: number; loss?: number; evaluation?: number } = JSON.parse(line);
    return parsed;
  });
  t.same(lines.filter((line) => line.loss !== undefined).map((line) => line.step), Array.from({ length: 12 }, (_, i) => i + 1));
  t.same(lines.filter((line) => line.evaluation !== undefined).map((line) => line.step), [0, 5, 10, 12]);
  const svg = readFileSync(join(out, 'training', 'curve.svg'), 'utf8');
  t.match(svg, /^<svg xmlns="http:\/\/www.w3.org\/2000\/svg".*<polyline/s);
  t.equal(svg.match(/<circle/g)?.length, 4);
  t.notMatch(svg, /NaN|Infinity/);
  t.same((await openModel(out)).config.raw, model.config.raw);
  t.equal(readFileSync(join(out, 'tokenizer.json'), 'utf8'), '{}');
  await t.rejects(train(model, out, small), /output directory must be empty or absent/);
  await t.rejects(train(model, out, { ...small, resume: true }), /must not be finished, but .* holds config.json/);
});

t.test('refusals before anything is written', async (t) => {
  const out = join(scratch, 'refused');
  await t.rejects(train(model, out, { ...small, loss: 'teacher' }), /loss teacher needs a teacher, got none/);
  await t.rejects(train(model, out, { ...small, steps: 0 }), /steps must be a whole number of 1 or more, got 0/);
  await t.rejects(train(model, out, { ...small, learningRate: -1 }), /learningRate must be positive, got -1/);
  await t.rejects(train(model, out, { ...small, data: [{ source: inMemory('short', tokensOf(17)) }] }), /short must have 18 tokens or more/);
  t.notOk(existsSync(out));
});

t.test('a loss that is not a number, or explodes, stops with the step, the place and the last good save', async (t) => {
  const nan = join(scratch, 'nan');
  await t.rejects(train(model, nan, { ...small, saveEvery: 3, learningRate: 1e25, optimiser: { clipNorm: null }, schedule: 'constant', warmupSteps: 0 }),
    /^train: step [2-9]: .*(must be finite|explode).*; first seen in .*; last good save: (none|.*step-\d+)$/);
  t.notOk(existsSync(join(nan, 'config.json')));

  // Good steps and a save first; then a model whose second layer gives infinities goes on from it.
  const out = join(scratch, 'broken');
  const stop = new AbortController();
  await t.rejects(train(model, out, { ...small, saveEvery: 4, signal: stop.signal, onUpdate: ({ step }) => { if (step === 5) stop.abort(new Error('enough')); } }), /enough/);
  t.ok(existsSync(join(out, 'training', 'step-00000005')), 'a stopped run saves what it has');
  const broken = { ...model, checkpoint: { ...model.checkpoint, read: async (name: string) => {
    const tensor = await model.checkpoint.read(name);
    return name === 'model.layers.1.mlp.down_proj.weight' ? { ...tensor, data: tensor.data.map(() => 3e38) } : tensor;
  } } };
  await t.rejects(train(broken, join(scratch, 'broken-2'), { ...small, train: 'attention' }), /^train: step 1: .*finite, got NaN; first seen in layer 1; last good save: none$/);
  await t.rejects(train(broken, out, { ...small, saveEvery: 4, resume: true, train: 'attention' }), /train must be all to go on from .*step-00000005, got attention/);
});

t.test('convert and heal: the loss falls, absorbed equals expanded; stopped and gone on with, the same weights', async (t) => {
  const text = { data: [{ source: plenty }], aside: inMemory('aside', tokensOf(60)) };
  const request = { budget: { pairs: 2, rank: 12 }, threads: 1, heal: { tokens: 500, text, sequenceLength: 17, learningRate: 2e-2 } };
  const whole = join(scratch, 'healed-whole'), stopped = join(scratch, 'healed-stopped');
  const report = await convertAndHeal(model, whole, request);
  const { healing } = report;
  t.match(healing, { tokens: 510, steps: 30, sequenceLength: 17, loss: 'teacher-sampled', train: 'all', learningRate: 2e-2, seed: 0, texts: ['plenty'], finalLoss: Number, seconds: Number });
  t.match(healing?.perplexity, { source: Number, before: Number, after: Number });
  t.same(JSON.parse(readFileSync(join(whole, 'conversion.json'), 'utf8')), JSON.parse(JSON.stringify(report)));
  t.match(readFileSync(join(whole, 'report.html'), 'utf8'), /healing.*510 tokens of plenty/);
  // Tokens that it did not learn from.
  const aside = Array.from(tokensOf(60)), plain = join(scratch, 'not-healed');
  await convert(model, plain, { budget: request.budget });
  const before = await verifyAgainstModel(await openModel(plain), model, aside, { threads: 1 });
  const after = await verifyAgainstModel(await openModel(whole), model, aside, { threads: 1 });
  t.ok(after.meanKl < 0.8 * before.meanKl, `KL ${before.meanKl} -> ${after.meanKl}`);
  t.ok(after.absorbedVsExpanded !== null && after.absorbedVsExpanded < 2e-4, `absorbed against expanded ${after.absorbedVsExpanded}`);

  const stop = new AbortController();
  const halt = { onUpdate: ({ step }: { step: number }): void => { if (step === 7) stop.abort(new Error('enough')); } };
  await t.rejects(convertAndHeal(model, stopped, { ...request, signal: stop.signal, heal: { ...request.heal, ...halt } }), /enough/);
  t.notOk(existsSync(stopped), 'nothing under the name asked for');
  t.ok(existsSync(join(`${stopped}.healing`, 'conversion', 'config.json')), 'the conversion is kept');
  await t.rejects(convertAndHeal(model, stopped, { ...request, heal: { ...request.heal, tokens: 600 } }), /convertAndHeal: tokens must be 500 to go on from .*healing, got 600/);
  const seen: number[] = [];
  await convertAndHeal(model, stopped, { ...request, heal: { ...request.heal, onUpdate: ({ step }) => seen.push(step) } });
  t.equal(seen[0], 8, 'goes on where it was stopped');
  t.equal(Buffer.compare(await readFile(join(stopped, 'model.safetensors')), await readFile(join(whole, 'model.safetensors'))), 0, 'weights');
  t.notOk(existsSync(`${stopped}.healing`));

  await t.rejects(heal(model, model, join(scratch, 'h'), request.heal), /heal: the model must be a converted one/);
  const other = await openModel(fileURLToPath(new URL('data/zoo/llama-mha', import.meta.url)));
  await t.rejects(heal(other, await openModel(whole), join(scratch, 'h'), request.heal), /heal: the source must be llama-gqa-tied, which .* was converted from, got .*llama-mha/);
});

t.test('a teacher sees a text once: its states are kept, up to so many bytes', async (t) => {
  let runs = 0;
  const remembered = rememberStates(async (ids) => {
    runs++;
    return { dtype: 'float32', shape: [2], data: Float32Array.from(ids.data, Number) };
  }, 16);
  const [a, b, c] = [integers([1, 2], [1, 2]), integers([3, 4], [1, 2]), integers([5, 6], [1, 2])];
  for (const ids of [a, b, a, integers([1, 2], [1, 2]), b]) t.same([...(await remembered(ids)).data], Array.from(ids.data, Number));
  t.equal(runs, 2);
  await remembered(c);
  await remembered(c);
  t.equal(runs, 4, 'no room for a third');
});

t.test('convert --heal on the command line', async (t) => {
  const source = zooModelWithTokenizer('llama-gqa-tied', join(scratch, 'cli-source')), out = join(scratch, 'cli-healed'), text = join(scratch, 'text.txt');
  await writeFile(text, 'It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife. '.repeat(30));
  const run = async (...line: readonly string[]): Promise<{ code: number; stdout: string; stderr: string }> => {
    let stdout = '', stderr = '';
    const sink = new Writable({ write(chunk: Buffer, _encoding, done) { stderr += chunk.toString(); done(); } });
    const code = await runCli(['convert', source, '--out', out, '--pairs', '2', '--rank', '12', '--no-calibration', '--threads', '1', ...line], {
      out: (written) => { stdout += written; }, stderr: sink, signal: new AbortController().signal, clock: () => performance.now(), environment: {},
    });
    return { code, stdout, stderr };
  };
  t.match(await run('--heal-text', text), { code: 2, stderr: /--heal-text says what --heal trains on, got no --heal/ });
  t.match(await run('--heal-train', 'attention'), { code: 2, stderr: /--heal-train says what --heal trains, got no --heal/ });
  t.match(await run('--heal', '300'), { code: 2, stderr: /--heal needs --heal-text where there is no calibration text/ });
  t.notOk(existsSync(out));
  const done = await run('--heal', '300', '--heal-text', text, '--heal-train', 'attention', '--json');
  t.equal(done.code, 0, done.stderr);
  t.match(JSON.parse(done.stdout), { out, healing: { texts: ['text.txt'], loss: 'teacher-sampled', train: 'attention', learningRate: 1e-3, finalLoss: Number } });
  const [from, to] = [await openModel(source), await openModel(out)], same = async (name: string): Promise<boolean> => Buffer.compare(tensorBytes(await from.checkpoint.read(name)), tensorBytes(await to.checkpoint.read(name))) === 0;
  t.same([await same('model.layers.0.mlp.down_proj.weight'), await same('model.layers.0.self_attn.o_proj.weight')], [true, false], 'what was not to learn is as it was');
  t.match(done.stderr, /step \d+\/\d+ {2}loss /);
  t.ok((await openModel(out)).mla !== null);
});

t.test('layer after layer: every layer nears its source, one layer in memory at a time', async (t) => {
  const plain = join(scratch, 'layers-start'), out = join(scratch, 'layers-healed');
  await convert(model, plain, { budget: { pairs: 2, rank: 12 } });
  const reads: string[] = [];
  const spied = (of: Model): Model => ({ ...of, checkpoint: { ...of.checkpoint, read: (name) => { reads.push(name); return of.checkpoint.read(name); } } });
  const converted = await openModel(plain);
  const windows = Array.from({ length: 7 }, (_, i) => Array.from(tokensOf(19 * (i + 1)).slice(19 * i)));
  const report = await healLayers(spied(model), spied(converted), out, { windows, passes: 5, learningRate: 2e-2, threads: 1, files: { 'tokenizer.json': '{}' } });
  t.same(report.map(({ layer }) => layer), [0, 1, 2]);
  for (const { layer, before, after } of report) t.ok(after < 0.9 * before, `layer ${layer}: ${before} -> ${after}`);
  const order = reads.flatMap((name) => /layers\.(\d+)\.self_attn/.exec(name)?.[1] ?? []).map(Number);
  t.same(order, [...order].sort((a, b) => a - b), 'a layer is not read again once the next is');
  const healed = await openModel(out);
  t.same(healed.mla, converted.mla);
  for (const [name, { data }] of await loadWeights(converted)) {
    const now = (await healed.checkpoint.read(name)).data;
    t.equal(data.every((x, i) => x === now[i]), !name.includes('self_attn'), name);
  }
  await t.rejects(healLayers(model, converted, join(scratch, 'uneven'), { windows: [[1, 2, 3], [1, 2]] }), /windows must be one or more of one length of 2 or more, got lengths 3,2/);
  await t.rejects(healLayers(model, model, join(scratch, 'uneven'), { windows }), /healLayers: the model must be a converted one/);
});

t.test('kill -9 at any moment, --resume, and the weights are bit by bit those of a run that was not killed', async (t) => {
  const data = join(scratch, 'data.u16');
  await writeFile(data, new Uint8Array(Uint16Array.from(tokensOf(3000)).buffer));
  const args = (out: string): string[] => ['train', zoo, '--data', data, '--out', out, '--steps', '50', '--save-every', '6', '--sequence-length', '17', '--accumulate', '2', '--learning-rate', '0.01', '--threads', '1', '--json'];
  const run = (line: readonly string[], kill: ((metrics: string) => boolean) | null, metricsFile: string): Promise<number | string | null> => new Promise((done, fail) => {
    const child = spawn(process.execPath, ['--import=tsx', fileURLToPath(new URL('../lib/cli.ts', import.meta.url)), ...line], { stdio: 'ignore' });
    const timer = setInterval(() => { if (kill !== null && existsSync(metricsFile) && kill(readFileSync(metricsFile, 'utf8'))) child.kill('SIGKILL'); }, 3);
    child.on('error', fail);
    child.on('exit', (code, signal) => { clearInterval(timer); done(signal ?? code); });
  });
  const whole = join(scratch, 'whole'), killed = join(scratch, 'killed');
  const metrics = join(killed, 'training', 'metrics.jsonl');
  const lines = (text: string): number => text.split('\n').length - 1;
  t.equal(await run(args(killed), (text) => lines(text) >= 3, metrics), 'SIGKILL', 'before the first save, or soon after');
  t.equal(await run([...args(killed), '--resume'], (text) => lines(text) >= 22, metrics), 'SIGKILL', 'between saves');
  t.equal(await run([...args(killed), '--resume'], null, metrics), 0);
  const source = await openTokenSource(data, { vocab: 97, endOfText: null, tokenizer: () => Promise.reject(new Error('a token file needs no tokenizer')) });
  await train(model, whole, { data: [{ source }], steps: 50, saveEvery: 6, sequenceLength: 17, accumulate: 2, learningRate: 0.01, runtime: { threads: 1 } });
  t.equal(Buffer.compare(await readFile(join(killed, 'model.safetensors')), await readFile(join(whole, 'model.safetensors'))), 0, 'weights');
  t.equal(await readFile(metrics, 'utf8'), await readFile(join(whole, 'training', 'metrics.jsonl'), 'utf8'), 'metrics');
});
