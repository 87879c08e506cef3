/**
 * Reverse mode: the float64 reading against central differences, and the ONNX reading of the backward graph against the
 * float64 one. All axes are different primes.
 */
import t from 'tap';
import fc from 'fast-check';
import {
  decoderLayer, embedding, logits, mlaAttentionLayer, negativeLogLikelihood, ropeAngles, ropeTables, sourceAttentionLayer, swiglu, type Emit, type HostTensor,
} from '../kernels/index.ts';
import type { Word } from '../kernels/vjp.ts';
import { differentiate, gradientOf } from '../lib/autodiff/differentiate.ts';
import { traced } from '../lib/autodiff/traced.ts';
import { eager, toEager, type EagerTensor } from '../lib/eager.ts';
import { int, record, type Recorder, type Value } from '../lib/graph/record.ts';
import { runSubgraph } from '../lib/graph/run.ts';
import type { Attribute, Subgraph } from '../lib/graph/subgraph.ts';
import { difference, float32Tolerance, generator, integers, normal, numbers, recordProgram, type Program } from './support/readings.ts';

const random = generator(6);
const real = (...shape: number[]): HostTensor<'float32'> => normal(shape, random);
/** Away from 0, for what divides or takes roots. */
const positive = (...shape: number[]): HostTensor<'float32'> => { const x = real(...shape); return { ...x, data: x.data.map((v) => 0.5 + Math.abs(v)) }; };
type Feeds = Readonly<Record<string, HostTensor>>;
const need = <V>(x: Readonly<Record<string, V>>, name: string): V => {
  const value = x[name];
  if (value === undefined) throw new RangeError(`test: ${name} must be fed`);
  return value;
};
const variablesOf = (feeds: Feeds): string[] => Object.keys(feeds).filter((name) => feeds[name]?.dtype === 'float32');

/** Weighs every element of every output differently, so that no wrong gradient can hide in a symmetry: -> []. */
function weigh<V>(g: Emit<V>, outputs: Readonly<Record<string, V>>): V {
  const terms = Object.values(outputs).map((y, k) => {
    const shape = g.shape(y).map(Number);
    const count = shape.reduce((a, b) => a * b, 1);
    const axes = 'abcdef'.slice(0, shape.length);
    return g.einsum(`${axes},${axes}->`, y, g.constant({ dtype: 'float32', shape, data: Float32Array.from({ length: count }, (_, i) => Math.sin(1 + i + 7 * k)) }));
  });
  return terms.reduce((a, b) => g.add(a, b));
}

const evaluate = (program: Program, x: Readonly<Record<string, EagerTensor>>): number => weigh(eager, program(eager, x)).data[0] ?? NaN;
const eagerFeeds = (feeds: Feeds): Record<string, EagerTensor> => Object.fromEntries(Object.entries(feeds).map(([name, tensor]) => [name, toEager(tensor)]));

/** Gradients in float64 by the tracer. */
function gradients(program: Program, feeds: Feeds): ReadonlyMap<string, Float64Array> {
  const trace = traced(eager);
  const x = Object.fromEntries(Object.entries(eagerFeeds(feeds)).map(([name, tensor]) => [name, trace.track(tensor)]));
  const loss = weigh(trace.g, program(trace.g, x));
  const names = variablesOf(feeds);
  const found = trace.pullback([[loss, eager.fill(loss.value, [], 1)]], names.map((name) => need(x, name)));
  return new Map(names.map((name, i) => [name, found[i]?.data ?? new Float64Array(need(feeds, name).data.length)]));
}

/** Largest difference between <gradient, direction> and the central difference along it, relative to |gradient||direction|. */
function worstDirection(program: Program, feeds: Feeds, found: ReadonlyMap<string, Float64Array>, directions: number): number {
  const step = 1e-5;
  let worst = 0;
  for (const [name, gradient] of found) {
    const x = eagerFeeds(feeds);
    const own = need(x, name);
    const all = directions >= own.data.length;
    for (let k = 0; k < Math.min(directions, own.data.length); k++) {
      const direction = Float64Array.from(own.data, (_, i) => (all ? Number(i === k) : 2 * random() - 1));
      const along = (sign: number): number =>
        evaluate(program, { ...x, [name]: { shape: own.shape, data: own.data.map((v, i) => v + sign * step * (direction[i] ?? NaN)) } });
      const measured = (along(1) - along(-1)) / (2 * step);
      const claimed = gradient.reduce((sum, v, i) => sum + v * (direction[i] ?? NaN), 0);
      worst = Math.max(worst, Math.abs(measured - claimed) / Math.max(1, Math.hypot(...gradient) * Math.hypot(...direction)));
    }
  }
  return worst;
}

/** The backward subgraph of the same program, in float32. */
async function onnxGradients(program: Program, feeds: Feeds): Promise<Readonly<Record<string, HostTensor>>> {
  const forward = recordProgram((g, x) => ({ loss: weigh(g, program(g, x)) }), feeds);
  return runSubgraph(differentiate(forward, { loss: 'loss', wrt: variablesOf(feeds) }), feeds, { threads: 1 });
}

interface Case {
  readonly feeds: Feeds;
  readonly program: Program;
}

const ids = integers([3, 0, 3, 6, 3, 1], [2, 3]);
const words: Readonly<Record<Word, Readonly<Record<string, Case>>>> = {
  einsum: {
    'batched product': { feeds: { x: real(2, 5, 3), y: real(2, 7, 3) }, program: (g, x) => ({ y: g.einsum('bsi,bti->bst', need(x, 'x'), need(x, 'y')) }) },
    'grouped scores': { feeds: { x: real(2, 3, 5, 2, 7), y: real(2, 11, 5, 7) }, program: (g, x) => ({ y: g.einsum('bsgrk,btgk->bgrst', need(x, 'x'), need(x, 'y')) }) },
    'grouped values': { feeds: { x: real(2, 5, 2, 3, 11), y: real(2, 11, 5, 7) }, program: (g, x) => ({ y: g.einsum('bgrst,btgv->bsgrv', need(x, 'x'), need(x, 'y')) }) },
    'three operands and an axis of one': { feeds: { x: real(2, 3), y: real(3, 5), z: real(5, 7) }, program: (g, x) => ({ y: g.einsum('ab,bc,cd->ad', need(x, 'x'), need(x, 'y'), need(x, 'z')) }) },
    'an axis that is summed alone': { feeds: { x: real(2, 3, 5), y: real(5, 7) }, program: (g, x) => ({ y: g.einsum('abc,cd->ad', need(x, 'x'), need(x, 'y')) }) },
    'transposed sum': { feeds: { x: real(2, 3, 5) }, program: (g, x) => ({ y: g.einsum('abc->ca', need(x, 'x')) }) },
  },
  add: {
    'broadcast row': { feeds: { x: real(2, 3), y: real(3) }, program: (g, x) => ({ y: g.add(need(x, 'x'), need(x, 'y')) }) },
    'both broadcast': { feeds: { x: real(5, 1), y: real(2, 1, 3) }, program: (g, x) => ({ y: g.square(g.add(need(x, 'x'), need(x, 'y'))) }) },
    'used twice': { feeds: { x: real(2, 3) }, program: (g, x) => ({ y: g.add(g.mul(need(x, 'x'), need(x, 'x')), need(x, 'x')) }) },
    'compact cotangent': { feeds: { x: real(2, 1), y: real(2, 3) }, program: (g, x) => ({ y: g.sum(g.add(need(x, 'x'), need(x, 'y'))) }) },
  },
  sub: { 'broadcast column': { feeds: { x: real(2, 1), y: real(2, 3) }, program: (g, x) => ({ y: g.square(g.sub(need(x, 'x'), need(x, 'y'))) }) } },
  mul: { 'broadcast middle': { feeds: { x: real(2, 1, 3), y: real(2, 5, 3) }, program: (g, x) => ({ y: g.mul(need(x, 'x'), need(x, 'y')) }) } },
  div: { broadcast: { feeds: { x: real(2, 5, 3), y: positive(5, 1) }, program: (g, x) => ({ y: g.div(need(x, 'x'), need(x, 'y')) }) } },
  scale: { plain: { feeds: { x: real(2, 3) }, program: (g, x) => ({ y: g.scale(need(x, 'x'), -1.7) }) } },
  shift: { squared: { feeds: { x: real(2, 3) }, program: (g, x) => ({ y: g.square(g.shift(need(x, 'x'), 0.3)) }) } },
  square: { plain: { feeds: { x: real(2, 3) }, program: (g, x) => ({ y: g.square(need(x, 'x')) }) } },
  sqrt: { plain: { feeds: { x: positive(2, 3) }, program: (g, x) => ({ y: g.sqrt(need(x, 'x')) }) } },
  exp: { plain: { feeds: { x: real(2, 3) }, program: (g, x) => ({ y: g.exp(need(x, 'x')) }) } },
  log: { plain: { feeds: { x: positive(2, 3) }, program: (g, x) => ({ y: g.log(need(x, 'x')) }) } },
  sigmoid: { plain: { feeds: { x: real(2, 3) }, program: (g, x) => ({ y: g.sigmoid(need(x, 'x')) }) } },
  sum: { plain: { feeds: { x: real(2, 3) }, program: (g, x) => ({ y: g.square(g.sum(need(x, 'x'))) }) } },
  mean: { 'of squares': { feeds: { x: real(2, 5, 3) }, program: (g, x) => ({ y: g.sqrt(g.mean(g.square(need(x, 'x')))) }) } },
  softmax: { masked: { feeds: { x: real(2, 3, 5), q: integers([2, 3, 4]), k: integers([0, 1, 2, 3, 4]) }, program: (g, x) => ({ y: g.softmax(g.add(need(x, 'x'), g.causalMask(need(x, 'q'), need(x, 'k'), 4))) }) } },
  logSumExp: { plain: { feeds: { x: real(2, 3, 5) }, program: (g, x) => ({ y: g.square(g.logSumExp(need(x, 'x'))) }) } },
  rotate: {
    'one sequence': { feeds: { x: real(1, 3, 5, 14), c: real(3, 7), s: real(3, 7) }, program: (g, x) => ({ y: g.rotate(need(x, 'x'), need(x, 'c'), need(x, 's')) }) },
    'elements behind the pairs': { feeds: { x: real(2, 3, 5, 17), c: real(3, 7), s: real(3, 7) }, program: (g, x) => ({ y: g.rotate(need(x, 'x'), need(x, 'c'), need(x, 's')) }) },
    'two sequences': { feeds: { x: real(2, 3, 5, 14), c: real(3, 7), s: real(3, 7) }, program: (g, x) => ({ y: g.rotate(need(x, 'x'), need(x, 'c'), need(x, 's')) }) },
  },
  gather: {
    'repeated rows': { feeds: { x: real(7, 5), ids }, program: (g, x) => ({ y: g.square(g.gather(need(x, 'x'), need(x, 'ids'))) }) },
    'rows and the whole table': { feeds: { x: real(7, 5), ids }, program: (g, x) => ({ y: g.gather(need(x, 'x'), need(x, 'ids')), z: g.square(need(x, 'x')) }) },
  },
  pick: {
    'one per row': { feeds: { x: real(2, 3, 7), ids }, program: (g, x) => ({ y: g.square(g.pick(need(x, 'x'), need(x, 'ids'))) }) },
    'beside logSumExp': { feeds: { x: real(2, 3, 7), ids }, program: (g, x) => ({ y: negativeLogLikelihood(g, need(x, 'x'), need(x, 'ids')) }) },
  },
  concat: { 'middle axis': { feeds: { x: real(2, 3, 5), y: real(2, 7, 5) }, program: (g, x) => ({ y: g.square(g.concat(1, [need(x, 'x'), need(x, 'y'), need(x, 'x')])) }) } },
  split: { 'one piece unused': { feeds: { x: real(2, 10, 3) }, program: (g, x) => { const [a, , c] = g.split(need(x, 'x'), 1, [2, 3, 5]); return { a: g.square(a ?? need(x, 'x')), c: c ?? need(x, 'x') }; } } },
  reshape: { plain: { feeds: { x: real(2, 3, 5) }, program: (g, x) => ({ y: g.square(g.reshape(need(x, 'x'), [5, 6])) }) } },
  expand: { 'new and old axes': { feeds: { x: real(3, 1) }, program: (g, x) => ({ y: g.expand(need(x, 'x'), [2, 3, 5]) }) } },
  addRows: { repeated: { feeds: { x: real(7, 5), u: real(2, 3, 5), ids }, program: (g, x) => ({ y: g.square(g.addRows(need(x, 'x'), need(x, 'ids'), need(x, 'u'))) }) } },
  addPicked: { plain: { feeds: { x: real(2, 3, 7), u: real(2, 3, 1), ids }, program: (g, x) => ({ y: g.square(g.addPicked(need(x, 'x'), need(x, 'ids'), need(x, 'u'))) }) } },
};
/** Words that only gradients are written in have no reader for their ONNX spelling. */
const noReader: readonly string[] = ['addRows', 'addPicked'];

for (const [word, cases] of Object.entries(words)) {
  for (const [name, { feeds, program }] of Object.entries(cases)) {
    t.test(`${word}, ${name}`, async (t) => {
      const found = gradients(program, feeds);
      t.ok(worstDirection(program, feeds, found, 40) < 1e-7, 'equals central differences');
      if (noReader.includes(word)) return;
      const onnx = await onnxGradients(program, feeds);
      for (const [variable, gradient] of found) t.ok(difference(gradient, numbers(onnx[gradientOf(variable)])) < float32Tolerance(1000), `onnx d${variable}`);
    });
  }
}

const P = { b: 2, s: 3, d: 7, g: 2, r: 3, k: 10, n: 5, m: 4, c: 11, v: 5, f: 13, w: 17 };
const small = (...shape: number[]): HostTensor<'float32'> => normal(shape, random, 0.4);
const body = { attentionNorm: positive(P.d), mlpNorm: positive(P.d), gate: small(P.f, P.d), up: small(P.f, P.d), down: small(P.d, P.f) };
const table = ropeTables(Float64Array.of(1, 0.3, 0.1, 0.03, 0.01), P.s);
const shortTable = ropeTables(Float64Array.of(1, 0.1), P.s);
const positions = integers([0, 1, 2]);
const plain = <V>(weight: V): { weight: V; bias: null } => ({ weight, bias: null });
const layer = <V>(g: Emit<V>, x: Readonly<Record<string, V>>, attention: (normed: V) => V): V => decoderLayer(
  g, need(x, 'x'),
  { attentionNorm: need(x, 'attentionNorm'), mlpNorm: need(x, 'mlpNorm'), mlp: { gate: plain(need(x, 'gate')), up: plain(need(x, 'up')), down: plain(need(x, 'down')) } },
  1e-5, (normed) => ({ output: attention(normed), rows: null }),
).hidden;
const layers: Readonly<Record<'source' | 'latent, expanded' | 'embedding, tied head and loss', Case>> = {
  source: {
    feeds: { x: real(P.b, P.s, P.d), ...body, q: small(P.g * P.r * P.k, P.d), bias: small(P.g * P.r * P.k), key: small(P.g * P.k, P.d), value: small(P.g * P.k, P.d), o: small(P.d, P.g * P.r * P.k), positions },
    program: (g, x) => ({ y: layer(g, x, (normed) => sourceAttentionLayer(
      g, normed, { query: { weight: need(x, 'q'), bias: need(x, 'bias') }, key: plain(need(x, 'key')), value: plain(need(x, 'value')), output: plain(need(x, 'o')) },
      ropeAngles(g, { cos: g.constant(table.cos), sin: g.constant(table.sin) }, need(x, 'positions')), [], { join: true, masks: [g.causalMask(need(x, 'positions'), need(x, 'positions'), null)] },
      { heads: P.g * P.r, kvHeads: P.g, headDim: P.k, scale: 0.3 },
    ).output) }),
  },
  'latent, expanded': {
    feeds: {
      x: real(P.b, P.s, P.d), ...body, queryRope: small(P.g * P.r * P.m, P.d), queryNope: small(P.g * P.r * P.n, P.d), keyRope: small(P.m, P.d), latent: small(P.c, P.d),
      keyUp: small(P.g, P.n, P.c), valueUp: small(P.g, P.v, P.c), o: small(P.d, P.g * P.r * P.v), positions,
    },
    program: (g, x) => ({ y: layer(g, x, (normed) => mlaAttentionLayer(
      g, normed,
      {
        queryRope: plain(need(x, 'queryRope')), queryNope: plain(need(x, 'queryNope')), keyRope: plain(need(x, 'keyRope')), down: plain(need(x, 'latent')),
        up: { key: need(x, 'keyUp'), value: need(x, 'valueUp') }, output: plain(need(x, 'o')),
      },
      ropeAngles(g, { cos: g.constant(shortTable.cos), sin: g.constant(shortTable.sin) }, need(x, 'positions')), [], { join: true, masks: [g.causalMask(need(x, 'positions'), need(x, 'positions'), null)] },
      { heads: P.g * P.r, kvHeads: P.g, ropeWidth: P.m, nopeWidth: P.n, valueWidth: P.v, scale: 0.3 }, 'expanded',
    ).output) }),
  },
  'embedding, tied head and loss': {
    feeds: { table: small(P.w, P.d), ids, targets: integers([16, 3, 0, 5, 5, 2], [2, 3]) },
    program: (g, x) => ({ y: negativeLogLikelihood(g, logits(g, embedding(g, need(x, 'ids'), need(x, 'table')), need(x, 'table')), need(x, 'targets')) }),
  },
};
for (const [name, { feeds, program }] of Object.entries(layers)) {
  t.test(`decoder layer: ${name}`, async (t) => {
    const found = gradients(program, feeds);
    t.ok(worstDirection(program, feeds, found, 3) < 1e-7, 'equals central differences');
    const onnx = await onnxGradients(program, feeds);
    for (const [variable, gradient] of found) t.ok(difference(gradient, numbers(onnx[gradientOf(variable)])) < float32Tolerance(1e4), `onnx d${variable}`);
  });
}

/** The gradient of the plain sum of squares of y, in float64. */
function squareGradients(program: Program, feeds: Feeds): (Float64Array | undefined)[] {
  const trace = traced(eager);
  const x = Object.fromEntries(Object.entries(eagerFeeds(feeds)).map(([name, tensor]) => [name, trace.track(tensor)]));
  const y = trace.g.square(need(program(trace.g, x), 'y'));
  return trace.pullback([[y, eager.fill(y.value, trace.g.shape(y), 1)]], variablesOf(feeds).map((name) => need(x, name))).map((found) => found?.data);
}

t.test('batch and length may be symbols', async (t) => {
  for (const { feeds, program } of [layers.source, layers['latent, expanded']]) {
    const ports = Object.fromEntries(Object.entries(feeds).map(([name, { dtype, shape }]) => [name, { dtype, shape: name === 'x' ? ['b', 's', P.d] : name === 'positions' ? ['s'] : shape }]));
    const forward = record('symbolic', ports, (g, x) => ({ loss: g.einsum('bsd->', g.square(need(program(g, x), 'y'))) }));
    const onnx = await runSubgraph(differentiate(forward, { loss: 'loss', wrt: variablesOf(feeds) }), feeds, { threads: 1 });
    const expected = squareGradients(program, feeds);
    variablesOf(feeds).forEach((name, i) => t.ok(difference(expected[i] ?? [], numbers(onnx[gradientOf(name)])) < float32Tolerance(1e4), name));
  }
});

/** Three layers of the same weights behind each other, with the states between them visible. */
const deep = (feeds: Feeds, program: Program): Subgraph => record('deep', feeds, (g, x) => {
  const first = need(program(g, x), 'y');
  const second = need(program(g, { ...x, x: first }), 'y');
  return { first, second, loss: g.einsum('bsd->', g.square(need(program(g, { ...x, x: second }), 'y'))) };
});

t.test('rematerialisation changes no gradient and computes stretches twice', async (t) => {
  const { feeds, program } = layers.source;
  const forward = deep(feeds, program), wrt = variablesOf(feeds);
  const kept = differentiate(forward, { loss: 'loss', wrt });
  const cut = differentiate(forward, { loss: 'loss', wrt, checkpoints: ['first', 'second'] });
  const again = differentiate(forward, { loss: 'loss', wrt, checkpoints: ['first', 'second'], recompute: true });
  const count = (subgraph: Subgraph, op: string): number => subgraph.nodes.filter((node) => node.op === op).length;
  t.equal(count(cut, 'Softmax') - count(kept, 'Softmax'), 0);
  t.equal(count(again, 'Softmax') - count(kept, 'Softmax'), count(forward, 'Softmax') / 3); // the stretch between the two states, one of three
  const expected = await runSubgraph(kept, feeds, { threads: 1 });
  for (const [what, subgraph] of [['cut', cut], ['again', again]] as const) {
    const found = await runSubgraph(subgraph, feeds, { threads: 1 });
    for (const name of ['loss', ...wrt.map(gradientOf)]) t.ok(difference(numbers(expected[name]), numbers(found[name])) < float32Tolerance(100), `${what} ${name}`);
  }
});

t.test('of a gated MLP the way back makes again what costs little and reads only the projections', (t) => {
  const forward = record('gated', { x: { dtype: 'float32', shape: [1, 3, 5] }, gate: { dtype: 'float32', shape: [7, 5] }, up: { dtype: 'float32', shape: [7, 5] }, down: { dtype: 'float32', shape: [5, 7] } }, (g, w) => {
    const linearOf = (weight: Value) => ({ weight, bias: null });
    return { loss: g.einsum('bsd->', g.square(swiglu(g, w.x, { gate: linearOf(w.gate), up: linearOf(w.up), down: linearOf(w.down) }))) };
  });
  const { nodes } = differentiate(forward, { loss: 'loss', wrt: ['x', 'gate', 'up', 'down'] });
  const makers = new Map(nodes.flatMap((node) => node.outputs.map((edge) => [edge, node] as const)));
  const there = new Set<(typeof nodes)[number]>();
  const walk = (edge: string): void => {
    const node = makers.get(edge);
    if (node === undefined || there.has(node)) return;
    there.add(node);
    node.inputs.forEach(walk);
  };
  walk('loss');
  const readLater = (op: string): number => [...there].filter((node) => node.op === op && nodes.some((reader) => !there.has(reader) && reader.inputs.includes(node.outputs[0] ?? ''))).length;
  t.equal([...there].filter(({ op }) => op === 'Sigmoid').length, 1);
  t.equal(nodes.filter(({ op }) => op === 'Sigmoid').length, 2, 'made twice');
  t.equal(readLater('Sigmoid'), 0);
  t.equal(readLater('Mul'), 0);
  t.ok(readLater('MatMul') >= 2, 'the projections are kept');
  t.end();
});

t.test('a subgraph of operators that our kernels do not use', async (t) => {
  const feeds = { x: real(5, 3), w: real(7, 3), c: real(7), scale: positive(7) };
  const one = (g: Recorder, op: string, from: readonly Value[], shape: readonly number[], attributes: Readonly<Record<string, Attribute>> = {}): Value => {
    const [value] = g.append(op, from, [{ dtype: 'float32', shape }], attributes);
    if (value === undefined) throw new RangeError(`test: ${op} has no output`);
    return value;
  };
  const forward = record('other', feeds, (g, x) => {
    const hidden = one(g, 'Tanh', [one(g, 'Gemm', [x.x, x.w, x.c], [5, 7], { transB: int(1), alpha: { kind: 'float', value: 0.5 }, beta: { kind: 'float', value: 2 } })], [5, 7]);
    const normed = one(g, 'RMSNormalization', [hidden, x.scale], [5, 7], { epsilon: { kind: 'float', value: 0.25 } });
    const rows = one(g, 'ReduceMean', [one(g, 'Neg', [normed], [5, 7]), g.constant({ dtype: 'int64', shape: [1], data: BigInt64Array.of(0n) })], [7], { keepdims: int(0) });
    return { loss: one(g, 'ReduceSum', [one(g, 'LogSoftmax', [rows], [7])], [], { keepdims: int(0) }), rows };
  });
  const spelled: Program = (g, x) => {
    const rows = g.add(g.scale(g.einsum('bi,oi->bo', need(x, 'x'), need(x, 'w')), 0.5), g.scale(need(x, 'c'), 2));
    const hidden = g.shift(g.scale(g.sigmoid(g.scale(rows, 2)), 2), -1);
    const normed = g.mul(g.div(hidden, g.sqrt(g.shift(g.mean(g.square(hidden)), 0.25))), need(x, 'scale'));
    const mean = g.scale(g.einsum('bo->o', normed), -1 / 5);
    return { y: g.sum(g.sub(mean, g.logSumExp(mean))) };
  };
  const trace = traced(eager);
  const x = Object.fromEntries(Object.entries(eagerFeeds(feeds)).map(([name, tensor]) => [name, trace.track(tensor)]));
  const y = need(spelled(trace.g, x), 'y');
  const expected = trace.pullback([[y, eager.fill(y.value, [1], 1)]], Object.keys(feeds).map((name) => need(x, name)));
  const onnx = await runSubgraph(differentiate(forward, { loss: 'loss', wrt: Object.keys(feeds), keep: ['rows'] }), feeds, { threads: 1 });
  t.same(Object.keys(onnx), ['loss', 'rows', ...Object.keys(feeds).map(gradientOf)]);
  Object.keys(feeds).forEach((name, i) => t.ok(difference(expected[i]?.data ?? [], numbers(onnx[gradientOf(name)])) < float32Tolerance(100), name));
});

t.test('a gradient that equals an input is a copy of it', (t) => {
  const forward = record('product', { x: { dtype: 'float32', shape: [3] }, y: { dtype: 'float32', shape: [3] } }, (g, { x, y }) => ({ loss: g.einsum('a,a->', x, y) }));
  const backward = differentiate(forward, { loss: 'loss', wrt: ['x'] });
  t.ok(backward.nodes.some((node) => node.outputs.includes('gradient.x')));
  t.end();
});

t.test('refusals name the node, the operator or the variable', (t) => {
  const port = { dtype: 'float32', shape: [2, 3] } as const;
  const relu = record('relu', { x: port }, (g, { x }) => ({ loss: g.sum(g.append('Relu', [x], [port])[0] ?? x) }));
  t.throws(() => differentiate(relu, { loss: 'loss', wrt: ['x'] }), /differentiate: Relu -> Relu_0 of relu: an operator must have a reverse rule \(Add, .*\), got Relu/);
  const two = record('two', { x: port, y: port, ids: { dtype: 'int64', shape: [2] } }, (g, { x, y, ids }) => ({ loss: g.sum(x), other: g.add(y, g.gather(y, ids)) }));
  t.throws(() => differentiate(two, { loss: 'loss', wrt: ['y'] }), /loss must depend on every variable of wrt, got y/);
  t.throws(() => differentiate(two, { loss: 'lost', wrt: ['x'] }), /an output must be one of loss, other, got lost/);
  t.throws(() => differentiate(two, { loss: 'loss', wrt: [] }), /wrt must name at least one edge, got none/);
  t.throws(() => differentiate(two, { loss: 'loss', wrt: ['z'] }), /wrt must name edges, got z/);
  t.throws(() => differentiate(two, { loss: 'loss', wrt: ['ids'] }), /wrt ids must be float32 or float64, got int64/);
  t.throws(() => differentiate(two, { loss: 'loss', wrt: ['x'], checkpoints: ['hidden'] }), /a checkpoint must be an edge that leads to the outputs, got hidden/);
  const cubed = record('cubed', { x: port }, (g, { x }) => ({ loss: g.sum(g.append('Pow', [x, g.constant({ dtype: 'float32', shape: [], data: Float32Array.of(3) })], [port])[0] ?? x) }));
  t.throws(() => differentiate(cubed, { loss: 'loss', wrt: ['x'] }), /the exponent must be the constant 2, 1 or 0.5, got 3/);
  t.end();
});

t.test('products of any broadcast shapes have the gradients of central differences', (t) => {
  const lengths = fc.array(fc.constantFrom(1, 2, 3), { minLength: 1, maxLength: 3 });
  fc.assert(fc.property(lengths, fc.array(fc.boolean(), { minLength: 3, maxLength: 3 }), fc.array(fc.boolean(), { minLength: 3, maxLength: 3 }), fc.nat(2), (shape, left, right, drop) => {
    const masked = (keep: readonly boolean[]): number[] => shape.map((n, i) => (keep[i] === true ? n : 1));
    const feeds = { x: real(...masked(left)), y: real(...masked(right).slice(Math.min(drop, shape.length - 1))) };
    const program: Program = (g, x) => ({ y: g.square(g.add(g.mul(need(x, 'x'), need(x, 'y')), need(x, 'x'))) });
    return worstDirection(program, feeds, gradients(program, feeds), 30) < 1e-7;
  }), { numRuns: 60, seed: 6 });
  t.end();
});
