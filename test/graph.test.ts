import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { compose, prune } from '../lib/graph/compose.ts';
import { addDims, canonicalDim, divDims, divideExactly, evaluateDim, mulDims, sameDim, subDims, substituteDim, symbolsOfDim } from '../lib/graph/dims.ts';
import { inferShapes } from '../lib/graph/infer.ts';
import { readModel, writeModel } from '../lib/graph/model-file.ts';
import { fromModel, toModel } from '../lib/graph/onnx.ts';
import { printSubgraph } from '../lib/graph/print.ts';
import { renamePorts, replaceSymbols } from '../lib/graph/rename.ts';
import { benchmarkSubgraph, runSubgraph } from '../lib/graph/run.ts';
import { openRuntime } from '../lib/graph/runtime.ts';
import { spillConstants } from '../lib/graph/spill.ts';
import { outputsStay } from '../lib/graph/uncopied-outputs.ts';
import { isStored, type Attribute, type Constant, type Dim, type DType, type HostTensor, type Node, type Port, type Subgraph } from '../lib/graph/subgraph.ts';
import { tensor, tensorBytes, toDType, zeros } from '../lib/tensor.ts';

const int = (value: number): Attribute => ({ kind: 'int', value });
const float = (value: number): Attribute => ({ kind: 'float', value });
const ints = (...value: number[]): Attribute => ({ kind: 'ints', value });
const string = (value: string): Attribute => ({ kind: 'string', value });
const f32 = (name: string, ...shape: Dim[]): Port => ({ name, dtype: 'float32', shape });
const node = (op: string, inputs: string[], outputs: string[], attributes: Record<string, Attribute> = {}, domain = ''): Node => ({ op, domain, inputs, outputs, attributes });
const i64 = (...values: number[]): HostTensor => tensor('int64', [values.length], BigInt64Array.from(values, BigInt));
const ramp = (shape: number[], phase = 0): HostTensor<'float32'> => {
  const count = shape.reduce((a, b) => a * b, 1);
  return tensor('float32', shape, Float32Array.from({ length: count }, (_, i) => Math.sin(i + 1 + phase)));
};
const values = (x: HostTensor | undefined): number[] => Array.from<number | bigint, number>(x?.data ?? [], Number);

// ---------------------------------------------------------------------------------------------------------- dims

/** A random expression: its text, with parentheses, and its value under the bindings. */
const BINDINGS = { a: 2, b: 3, c: 5 };
const expression: fc.Arbitrary<{ text: string; value: number }> = fc.letrec<{ e: { text: string; value: number } }>((tie) => ({
  e: fc.oneof({ maxDepth: 3 },
    fc.integer({ min: 0, max: 9 }).map((n) => ({ text: `${n}`, value: n })),
    fc.constantFrom('a' as const, 'b' as const, 'c' as const).map((s) => ({ text: s, value: BINDINGS[s] })),
    fc.tuple(tie('e'), fc.constantFrom('+', '-', '*'), tie('e')).map(([x, op, y]) => ({
      text: `(${x.text} ${op} ${y.text})`,
      value: op === '+' ? x.value + y.value : op === '-' ? x.value - y.value : x.value * y.value,
    }))),
})).e;

t.test('dims: polynomials in symbols', async (t) => {
  t.equal(addDims('s', 'p'), 'p+s');
  t.equal(mulDims(3, 'p + s'), '3*p+3*s');
  t.equal(mulDims('s', 'b'), 'b*s');
  t.equal(subDims('p+s', 's'), 'p');
  t.equal(subDims('s', 's'), 0);
  t.equal(divDims('3*b*p+3*b*s', 'p+s'), '3*b');
  t.same(symbolsOfDim('2*s+p*s'), ['p', 's']);
  t.throws(() => divDims('s', 2), { message: 'divDims: s must be a multiple of 2' });
  t.throws(() => evaluateDim('p+s', { p: 1 }), /evaluateDim: every symbol of p\+s needs a value, got none for s/);
  t.throws(() => canonicalDim('s/2'), /unreadable at "\/2"/);
  t.throws(() => canonicalDim('s+'), /got "its end"/);

  fc.assert(fc.property(expression, ({ text, value }) => evaluateDim(text, BINDINGS) === value));
  fc.assert(fc.property(expression, expression, expression, ({ text: x }, { text: y }, { text: z }) =>
    addDims(x, y) === addDims(y, x) && mulDims(x, y) === mulDims(y, x)
    && mulDims(x, addDims(y, z)) === addDims(mulDims(x, y), mulDims(x, z))
    && addDims(subDims(x, y), y) === canonicalDim(x)));
  fc.assert(fc.property(expression, expression, ({ text: x }, { text: y }) => canonicalDim(y) === 0 || divideExactly(mulDims(x, y), y) === canonicalDim(x)));
  fc.assert(fc.property(expression, ({ text, value }) => evaluateDim(substituteDim(text, { a: 'b-1' }), BINDINGS) === value && sameDim(text, canonicalDim(text))));
});

// ------------------------------------------------------------------------------------------------------ protobuf

const everyAttribute: Subgraph = {
  name: 'every',
  inputs: [f32('x', 'b', 'p+s', 7), { name: 'keep', dtype: 'bool', shape: [] }],
  outputs: [f32('y', 'b', 'p+s', 7)],
  nodes: [
    node('Whatever', ['x', '', 'w'], ['z', ''], {
      i: int(-3), f: float(0.5), s: string('naïve'), is: ints(1, -2), fs: { kind: 'floats', value: [0.25, -8] },
      ss: { kind: 'strings', value: ['a', ''] }, t: { kind: 'tensor', value: i64(5, -6) },
    }, 'com.microsoft'),
    node('If', ['keep'], ['y'], {
      then_branch: { kind: 'graph', value: { name: 'then', inputs: [], outputs: [f32('u', 'b', 'p+s', 7)], nodes: [node('Identity', ['z'], ['u'])], constants: new Map() } },
      else_branch: { kind: 'graph', value: { name: 'else', inputs: [], outputs: [f32('v', 'b', 'p+s', 7)], nodes: [node('Mul', ['z', 'k'], ['v'])], constants: new Map([['k', ramp([7])]]) } },
    }),
  ],
  constants: new Map<string, Constant>([
    ['w', tensor('bfloat16', [3], Uint16Array.of(1, 2, 65535))],
    ['q', { dtype: 'float16', shape: [11], file: { path: 'dir/weights.bin', offset: 13, bytes: 22 } }],
    ['flag', tensor('bool', [2], Uint8Array.of(0, 1))],
    ['scalar', tensor('float64', [], Float64Array.of(Math.PI))],
  ]),
};

t.test('protobuf: a subgraph survives the round trip', async (t) => {
  const place = (_name: string, c: Constant) => ('file' in c ? { location: 'weights.bin', offset: c.file.offset } : null);
  const back = fromModel(toModel(everyAttribute, { place }), { directory: 'dir' });
  t.strictSame(back, everyAttribute);
  t.strictSame(prune(everyAttribute).constants.size, 1, 'a body keeps what it reads from around it');
  t.strictSame(prune(everyAttribute).nodes.length, 2);

  t.throws(() => toModel(everyAttribute, { place: () => null }), /toModel: constant q of every lies in dir\/weights\.bin and cannot be embedded/);
  t.throws(() => toModel(everyAttribute, { opset: 17 }), /opset must be 18\.\.24, got 17/);
  const foreign = { ...everyAttribute, nodes: [node('Op', [], ['y'], {}, 'my.domain')] };
  t.throws(() => toModel(foreign, { place }), /domain my\.domain of Op in every needs a version/);
  t.doesNotThrow(() => toModel(foreign, { place, domains: { 'my.domain': 2 } }));
  t.throws(() => fromModel(toModel(everyAttribute, { place: () => ({ location: '../up', offset: 0 }) }), { directory: 'dir' }), /must lie inside the model's directory, got \.\.\/up/);
});

t.test('protobuf: what the onnx package wrote is read or refused by name', async (t) => {
  const read = (name: string): Subgraph => fromModel(readFileSync(new URL(`data/graph/${name}.onnx`, import.meta.url)), { directory: '.' });
  const foreign = read('typed-fields');
  t.same([foreign.inputs[0]?.shape, foreign.outputs[0]?.shape], [['batch', 'axis1_of_x', 3], ['batch', 'axis1_of_y', 3]]);
  t.same(foreign.nodes, [node('Relu', ['x'], ['y'])]);
  t.doesNotThrow(() => inferShapes(foreign));
  t.strictSame(Object.fromEntries(foreign.constants), {
    float32: tensor('float32', [3], Float32Array.of(0.5, -1.25, 3e-5)),
    float64: tensor('float64', [2], Float64Array.of(0.1, -2)),
    float16: tensor('float16', [2], Uint16Array.of(0x3800, 0xfbff)),
    bfloat16: tensor('bfloat16', [2], Uint16Array.of(0x3f80, 0xc000)),
    int8: tensor('int8', [2], Int8Array.of(-128, 127)),
    uint8: tensor('uint8', [2], Uint8Array.of(0, 255)),
    int32: tensor('int32', [], Int32Array.of(-7)),
    uint32: tensor('uint32', [1], Uint32Array.of(4294967295)),
    int64: tensor('int64', [2], BigInt64Array.of(2n ** 63n - 1n, -(2n ** 63n))),
    bool: tensor('bool', [2], Uint8Array.of(1, 0)),
  });
  t.throws(() => read('old-opset'), { message: 'fromModel: the opset must be 18..24, got 13' });
  t.throws(() => read('default-input'), { message: 'fromModel: inputs with a default value cannot be held, got x' });
  t.throws(() => read('text'), { message: 'fromModel: tensor words must have a type the library holds, got STRING' });
  t.throws(() => read('sequence'), { message: 'fromModel: port z must be a tensor, got sequenceType' });
  t.throws(() => read('function'), { message: 'fromModel: local functions cannot be held, got Double' });
});

t.test('model files: weights stream beside the model, stored ones stay where they lie', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'graph-test-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const elsewhere = join(directory, 'elsewhere');
  const w = ramp([11, 13]);
  writeFileSync(elsewhere, Buffer.concat([Buffer.from('abc'), new Uint8Array(w.data.buffer)]));
  const stored: Constant = { dtype: 'float32', shape: [11, 13], file: { path: elsewhere, offset: 3, bytes: 4 * 11 * 13 } };
  const v = ramp([13, 17], 2);
  const g: Subgraph = {
    name: 'two', inputs: [f32('x', 's', 11)], outputs: [f32('y', 's', 17)],
    nodes: [node('MatMul', ['x', 'w'], ['h']), node('MatMul', ['h', 'v'], ['g']), node('Mul', ['g', 'half'], ['y'])],
    constants: new Map<string, Constant>([['w', stored], ['v', v], ['half', tensor('float32', [], Float32Array.of(0.5))]]),
  };
  const feeds = { x: ramp([5, 11], 1) };
  const want = values((await runSubgraph(g, feeds)).y);

  const path = join(directory, 'm.onnx');
  await writeModel(g, path, { outsideBytes: 64 });
  t.same(readdirSync(directory).sort(), ['elsewhere', 'm.data', 'm.onnx'], 'no temporary file is left');
  t.equal(readFileSync(join(directory, 'm.data')).length, 4 * 13 * 17);
  const back = await readModel(path);
  t.strictSame(back.constants.get('w'), stored);
  t.same(values((await runSubgraph(back, feeds)).y), want);

  // All weights into the file that some of them are read from.
  await writeModel(back, path, { copyStored: true });
  t.equal(readFileSync(join(directory, 'm.data')).length, 4 * 11 * 13 + 4 + 4 * 13 * 17, 'the second tensor starts at a multiple of 64');
  const whole = await readModel(path);
  t.same(values((await runSubgraph(whole, feeds)).y), want);

  const outside = mkdtempSync(join(tmpdir(), 'graph-test-'));
  t.teardown(() => rmSync(outside, { recursive: true }));
  await t.rejects(writeModel(g, join(outside, 'm.onnx')), /stored constants must lie below .* unless copyStored is set, got .*elsewhere for w/);
  t.same(readdirSync(outside), [], 'nothing is written on refusal');
  writeFileSync(join(directory, 'm.data'), 'short');
  await t.rejects(readModel(path), /readModel: .*m\.data must hold .* bytes/);
});

// ------------------------------------------------------------------------------------------------------ inference

const SYMBOLS = { b: 2, s: 5, p: 3 };
interface Row { op: string; inputs: (Port | Constant)[]; attributes?: Record<string, Attribute>; domain?: string; outputs?: number; absent?: number[] }
const x = (...shape: Dim[]): Port => f32('', ...shape);
const typed = (dtype: DType, ...shape: Dim[]): Port => ({ name: '', dtype, shape });
const ms = 'com.microsoft';
const bytes = (...shape: number[]): HostTensor => zeros('uint8', shape);

/** Every axis is a prime of its own or a symbol. */
const ROWS: Row[] = [
  { op: 'Add', inputs: [x('b', 1, 'p+s'), x('s', 1)] },
  { op: 'Pow', inputs: [x('s', 7), tensor('int64', [], BigInt64Array.of(2n))] },
  { op: 'Max', inputs: [x('s', 7), x(7), x('s', 1)] },
  { op: 'Where', inputs: [typed('bool', 's', 1), x(7), x('b', 1, 1)] },
  { op: 'LessOrEqual', inputs: [x('s', 1), x('p+s')] },
  { op: 'And', inputs: [typed('bool', 's', 1), typed('bool', 7)] },
  ...['Neg', 'Exp', 'Log', 'Sqrt', 'Sigmoid', 'Tanh', 'Erf', 'Softmax', 'Reciprocal', 'Identity'].map((op) => ({ op, inputs: [x('b', 's', 7)] })),
  { op: 'QuickGelu', domain: ms, inputs: [x('s', 7)] },
  { op: 'CumSum', inputs: [x('s', 7), tensor('int64', [], BigInt64Array.of(1n))] },
  { op: 'Trilu', inputs: [x('s', 's')] },
  { op: 'Cast', inputs: [x('s')], attributes: { to: int(10) } },
  { op: 'MatMul', inputs: [x('b', 1, 's', 7), x(3, 7, 'p+s')] },
  { op: 'MatMul', inputs: [x(7), x('b', 7, 11)] },
  { op: 'MatMul', inputs: [x('s', 7), x(7)] },
  { op: 'Gemm', inputs: [x(7, 's'), x(11, 7), x(11)], attributes: { transA: int(1), transB: int(1) } },
  { op: 'FusedMatMul', domain: ms, inputs: [x('b', 's', 7), x('b', 'p', 7)], attributes: { transB: int(1), alpha: float(0.5) } },
  { op: 'FusedMatMul', domain: ms, inputs: [x('s', 'b', 7), x('b', 7, 11)], attributes: { transBatchA: int(1) } },
  { op: 'MatMulInteger', inputs: [typed('uint8', 's', 7), typed('int8', 7, 11)] },
  { op: 'DynamicQuantizeMatMul', domain: ms, inputs: [x('s', 7), zeros('int8', [7, 11]), ramp([11])] },
  { op: 'MatMulNBits', domain: ms, inputs: [x('b', 's', 32), bytes(11, 1, 16), ramp([11])], attributes: { K: int(32), N: int(11), bits: int(4), block_size: int(32) } },
  { op: 'GatherBlockQuantized', domain: ms, inputs: [bytes(13, 16), typed('int64', 'b', 's'), ramp([13, 1])], attributes: { block_size: int(32), bits: int(4), quantize_axis: int(1) } },
  { op: 'Einsum', inputs: [x('b', 's', 3, 7), x('b', 'p', 3, 7)], attributes: { equation: string('bshd,bthd->bhst') } },
  { op: 'Einsum', inputs: [x('b', 's', 7), x(7, 11)], attributes: { equation: string('...d,de->...e') } },
  ...['ReduceSum', 'ReduceMean', 'ReduceMax', 'ReduceLogSumExp', 'ReduceL2'].map((op) => ({ op, inputs: [x('b', 's', 7), i64(-1)] })),
  { op: 'ReduceSum', inputs: [x('b', 's', 7), i64(0, 2)], attributes: { keepdims: int(0) } },
  { op: 'ReduceSum', inputs: [x('b', 's', 7)], attributes: { keepdims: int(0) } },
  { op: 'ArgMax', inputs: [x('b', 's', 7)], attributes: { axis: int(-1), keepdims: int(0) } },
  { op: 'TopK', inputs: [x('s', 7), i64(3)], outputs: 2 },
  { op: 'Reshape', inputs: [x('b', 's', 21), i64(0, 0, 3, -1)] },
  { op: 'Reshape', inputs: [x('b', 's', 3, 7), i64(-1, 21)] },
  { op: 'Flatten', inputs: [x('b', 's', 7)], attributes: { axis: int(2) } },
  { op: 'Transpose', inputs: [x('b', 's', 3, 7)], attributes: { perm: ints(0, 2, 1, 3) } },
  { op: 'Transpose', inputs: [x('b', 's', 7)] },
  { op: 'Slice', inputs: [x('b', 's', 11), i64(2), i64(-3), i64(-1)] },
  { op: 'Slice', inputs: [x('b', 's', 11), i64(1, 1), i64(2 ** 40, 10), i64(1, 2), i64(1, 2)] },
  { op: 'Slice', inputs: [x('b', 's', 11), i64(-1), i64(-(2 ** 40)), i64(1), i64(-1)] },
  { op: 'Split', inputs: [x('s', 11), i64(2, 9)], attributes: { axis: int(-1) }, outputs: 2 },
  { op: 'Split', inputs: [x('s', 11)], attributes: { axis: int(1), num_outputs: int(3) }, outputs: 3 },
  { op: 'Concat', inputs: [x('b', 'p', 7), x('b', 's', 7)], attributes: { axis: int(1) } },
  { op: 'Gather', inputs: [x(13, 7), typed('int64', 'b', 's')] },
  { op: 'Gather', inputs: [x('b', 's', 7), typed('int64')], attributes: { axis: int(1) } },
  { op: 'GatherElements', inputs: [x('s', 7), typed('int64', 's', 1)], attributes: { axis: int(-1) } },
  { op: 'GatherND', inputs: [x('b', 's', 7), typed('int64', 11, 2)] },
  { op: 'ScatterElements', inputs: [x('s', 7), typed('int64', 's', 1), x('s', 1)], attributes: { axis: int(1) } },
  { op: 'ScatterND', inputs: [x('s', 7), typed('int64', 1, 1), x(1, 7)] },
  { op: 'Squeeze', inputs: [x('b', 1, 's', 1), i64(1, -1)] },
  { op: 'Unsqueeze', inputs: [x('b', 's'), i64(1, -1)] },
  { op: 'Expand', inputs: [x('s', 1), i64(2, 1, 7)] },
  { op: 'Tile', inputs: [x('s', 7), i64(3, 2)] },
  { op: 'Pad', inputs: [x('s', 7), i64(1, 0, 2, 3)] },
  { op: 'Shape', inputs: [x('b', 's', 7)], attributes: { start: int(1) } },
  { op: 'Size', inputs: [x('b', 's', 7)] },
  { op: 'Range', inputs: [tensor('int64', [], BigInt64Array.of(1n)), tensor('int64', [], BigInt64Array.of(12n)), tensor('int64', [], BigInt64Array.of(2n))] },
  { op: 'Constant', inputs: [], attributes: { value: { kind: 'tensor', value: ramp([3, 5]) } } },
  { op: 'Constant', inputs: [], attributes: { value_ints: ints(3, 5) } },
  { op: 'ConstantOfShape', inputs: [i64(3, 7)], attributes: { value: { kind: 'tensor', value: i64(4) } } },
  { op: 'OneHot', inputs: [typed('int64', 's'), i64(7), tensor('float32', [2], Float32Array.of(0, 1))] },
  { op: 'RMSNormalization', inputs: [x('b', 's', 7), ramp([7])] },
  { op: 'SimplifiedLayerNormalization', inputs: [x('b', 's', 7), ramp([7])], outputs: 2 },
  { op: 'LayerNormalization', inputs: [x('b', 's', 7), ramp([7])], outputs: 3 },
  { op: 'SkipSimplifiedLayerNormalization', domain: ms, inputs: [x('b', 's', 8), x('b', 's', 8), ramp([8])], outputs: 4, absent: [1, 2] }, // onnxruntime crashes when asked for 1 or 2
  { op: 'RotaryEmbedding', inputs: [x('b', 's', 3 * 14), x('b', 's', 7), x('b', 's', 7)], attributes: { num_heads: int(3) } },
  { op: 'RotaryEmbedding', domain: ms, inputs: [x('b', 's', 3 * 14), typed('int64', 1), ramp([17, 7]), ramp([17, 7])], attributes: { num_heads: int(3) } },
  { op: 'Attention', inputs: [x('b', 6, 's', 7), x('b', 3, 's', 7), x('b', 3, 's', 11), x('s', 'p+s'), x('b', 3, 'p', 7), x('b', 3, 'p', 11)], outputs: 4 },
  { op: 'Attention', inputs: [x('b', 's', 6 * 7), x('b', 'p', 3 * 7), x('b', 'p', 3 * 11)], attributes: { q_num_heads: int(6), kv_num_heads: int(3) } },
  { op: 'MultiHeadAttention', domain: ms, inputs: [x('b', 's', 3 * 8), x('b', 'p', 3 * 8), x('b', 'p', 3 * 16)], attributes: { num_heads: int(3) } },
  { op: 'DequantizeLinear', inputs: [typed('int8', 's', 7), tensor('float32', [], Float32Array.of(0.1))] },
  { op: 'QuantizeLinear', inputs: [x('s', 7), tensor('float32', [], Float32Array.of(0.1)), tensor('int8', [], Int8Array.of(0))] },
  { op: 'DynamicQuantizeLinear', inputs: [x('s', 7)], outputs: 3 },
  { op: 'SoftmaxCrossEntropyLoss', inputs: [x('s', 7), typed('int64', 's')], outputs: 2 },
];

const isPort = (input: Port | Constant): input is Port => 'name' in input;

/** The row as a subgraph whose outputs are declared as inferred, and feeds for it. */
function trial({ op, inputs, attributes = {}, domain = '', outputs = 1, absent = [] }: Row): { subgraph: Subgraph; feeds: Record<string, HostTensor> } {
  const names = inputs.map((_, i) => `in${i}`), results = Array.from({ length: outputs }, (_, i) => (absent.includes(i) ? '' : `out${i}`));
  const ports = inputs.flatMap((input, i) => (isPort(input) ? [{ ...input, name: names[i]! }] : []));
  const constants = new Map(inputs.flatMap((input, i) => (isPort(input) ? [] : [[names[i]!, input] as const])));
  const bare: Subgraph = { name: op, inputs: ports, outputs: [], nodes: [node(op, names, results, attributes, domain)], constants };
  const facts = inferShapes(bare);
  const subgraph = { ...bare, outputs: results.filter((name) => name !== '').map((name) => ({ name, dtype: facts.get(name)!.dtype, shape: facts.get(name)!.shape })) };
  const feeds = Object.fromEntries(ports.map((port): [string, HostTensor] => {
    const shape = port.shape.map((dim) => evaluateDim(dim, SYMBOLS));
    return [port.name, port.dtype === 'float32' ? ramp(shape) : zeros(port.dtype, shape)];
  }));
  return { subgraph, feeds };
}

t.test('inference agrees with what onnxruntime returns', async (t) => {
  for (const row of ROWS) {
    const { subgraph, feeds } = trial(row);
    const results = await runSubgraph(subgraph, feeds, { threads: 1 });
    for (const port of subgraph.outputs) {
      const got = results[port.name]!;
      t.same([got.dtype, ...got.shape], [port.dtype, ...port.shape.map((dim) => evaluateDim(dim, SYMBOLS))], `${row.op} ${port.name} [${port.shape}]`);
    }
  }
});

t.test('inference: computed shapes, refusals', async (t) => {
  // reshape [b,s,3,7] to [b, s, 21] through Shape -> Gather, Slice, Mul, Unsqueeze, Concat
  const computed: Subgraph = {
    name: 'computed', inputs: [f32('x', 'b', 's', 3, 7), f32('past', 'b', 'p', 2)], outputs: [f32('y', 'b', 's', 21), f32('z', 'p+s', 'b')],
    nodes: [
      node('Shape', ['x'], ['shape']),
      node('Gather', ['shape', 'zero'], ['b']), node('Unsqueeze', ['b', 'first'], ['b1']),
      node('Slice', ['shape', 'one', 'two'], ['s1']),
      node('Mul', ['three', 'seven'], ['width']),
      node('Concat', ['b1', 's1', 'width'], ['target'], { axis: int(0) }),
      node('Reshape', ['x', 'target'], ['y']),
      node('Shape', ['past'], ['p1'], { start: int(1), end: int(2) }),
      node('Add', ['p1', 's1'], ['t1']), node('Concat', ['t1', 'b1'], ['tb'], { axis: int(0) }),
      node('ConstantOfShape', ['tb'], ['z']),
    ],
    constants: new Map<string, Constant>([['zero', tensor('int64', [], BigInt64Array.of(0n))], ['first', i64(0)], ['one', i64(1)], ['two', i64(2)], ['three', i64(3)], ['seven', i64(7)]]),
  };
  const facts = inferShapes(computed);
  t.same(facts.get('y')?.shape, ['b', 's', 21]);
  t.same(facts.get('z')?.shape, ['p+s', 'b']);
  const results = await runSubgraph(computed, { x: ramp([2, 5, 3, 7]), past: ramp([2, 3, 2]) });
  t.same([results.y?.shape, results.z?.shape], [[2, 5, 21], [8, 2]]);

  const product = (inputs: Port[], output: Port, more: Partial<Subgraph> = {}): Subgraph =>
    ({ name: 'g', inputs, outputs: [output], nodes: [node('MatMul', ['x', 'w'], ['y'])], constants: new Map(), ...more });
  const [x7, w7] = [f32('x', 'p+s', 7), f32('w', 7, 13)];
  t.doesNotThrow(() => inferShapes(product([x7, w7], f32('y', 't', 13))), 'a symbol of the outputs alone is free');
  t.doesNotThrow(() => inferShapes(product([x7, w7], f32('y', 's+p', 13))));
  t.throws(() => inferShapes(product([x7, f32('w', 11, 13)], f32('y', 't', 13))), /MatMul -> y of g: the contracted lengths must be equal, got 7 and 11/);
  t.throws(() => inferShapes(product([x7, w7], f32('y', 't', 17))), /output y of g must be float32 \[p\+s,13\], got float32 \[t,17\]/);
  t.throws(() => inferShapes(product([x7, { ...w7, dtype: 'float64' }], f32('y', 't', 13))), /inputs must share a dtype, got float32 and float64/);
  t.throws(() => inferShapes(product([x7], f32('y', 't', 13))), /inputs must be produced before they are read, got w/);
  t.throws(() => inferShapes(product([x7, w7], f32('y', 't', 13), { constants: new Map([['w', ramp([7, 13])]]) })), /produced once, got w twice/);
  t.throws(() => inferShapes(product([x7, w7], f32('y', 't', 13), { nodes: [node('Sorcery', ['x'], ['y'], {}, 'my.domain')] })), /must have a shape rule, got my\.domain:Sorcery/);
});

// ---------------------------------------------------------------------------------------------------- composition

const shared = ramp([7, 7], 3);
/** y = x w + bias over [b,s,7]; `more` of the shape's symbols may be renamed. */
const linear = (name: string, phase: number, rows: Dim = 's'): Subgraph => ({
  name, inputs: [f32('x', 'b', rows, 7)], outputs: [f32('y', 'b', rows, 7)],
  nodes: [node('MatMul', ['x', 'w'], ['h']), node('Add', ['h', 'bias'], ['y'])],
  constants: new Map([['w', shared], ['bias', ramp([7], phase)]]),
});
/** Joins past rows and new ones; passes the new ones on untouched. */
const append: Subgraph = {
  name: 'append', inputs: [f32('past', 'b', 'p', 7), f32('new', 'b', 's', 7)], outputs: [f32('all', 'b', 'p+s', 7), f32('new', 'b', 's', 7)],
  nodes: [node('Concat', ['past', 'new'], ['all'], { axis: int(1) })], constants: new Map(),
};

t.test('composition: composing then running is running one after the other', async (t) => {
  const x0 = ramp([2, 5, 7]), past = ramp([2, 3, 7], 9);
  const y = await runSubgraph(linear('one', 1), { x: x0 });
  const joined = await runSubgraph(append, { past, new: y.y! });
  const z = await runSubgraph(linear('two', 2, 't'), { x: joined.all! });

  // The parts come in an order in which they cannot run.
  const whole = compose('whole', { last: linear('two', 2, 't'), join: append, first: linear('one', 1) }, {
    hidden: 'first.x', 'first.y': 'join.new', 'join.all': 'last.x', 'last.y': 'out', 'join.new': 'row',
  });
  t.same(whole.inputs, [f32('hidden', 'b', 's', 7), f32('join.past', 'b', 'p', 7)]);
  t.same(whole.outputs, [f32('out', 'b', 'p+s', 7), f32('row', 'b', 's', 7)], 't took the meaning of what it met');
  t.equal(whole.constants.size, 3, 'the shared weight is kept once');
  inferShapes(whole);
  const got = await runSubgraph(whole, { hidden: x0, 'join.past': past });
  t.same(values(got.out), values(z.y));
  t.same(values(got.row), values(y.y));

  const part = prune(whole, ['row'], { keepInputs: false });
  t.same([part.inputs.map((p) => p.name), part.nodes.length, part.constants.size], [['hidden'], 2, 2]);
  t.same(values((await runSubgraph(part, { hidden: x0 })).row), values(y.y));
  t.strictSame(prune(prune(whole, ['row']), ['row']), prune(whole, ['row']));
  t.throws(() => prune(whole, ['nothing']), { message: 'prune: an output of whole must be one of out, row, got nothing' });

  const renamed = renamePorts(part, { hidden: 'x', row: 'y' });
  t.same(values((await runSubgraph(renamed, { x: x0 })).y), values(y.y));
  t.throws(() => renamePorts(part, { hidden: 'row' }), /names of whole must be unique, got row for hidden/);
  t.throws(() => renamePorts(part, { nothing: 'z' }), /a port of whole must be one of hidden, row, got nothing/);
  t.match(printSubgraph(renamed, inferShapes(renamed)), /^whole\n {2}input x {2}float32 \[b,s,7\]\n(.*\n)* {2}first\.h = MatMul\(x, last\.w\) {2}float32 \[b,s,7\]\n/);
});

t.test('composition: random chains of linear maps', async () => {
  await fc.assert(fc.asyncProperty(fc.array(fc.integer({ min: 0, max: 99 }), { minLength: 1, maxLength: 5 }), async (phases) => {
    let x: HostTensor = ramp([2, 3, 7], 4);
    for (const phase of phases) x = (await runSubgraph(linear('l', phase), { x }, { threads: 1 })).y!;
    const names = phases.map((_, i) => `l${i}`);
    const chain = compose('chain', Object.fromEntries(names.map((name, i) => [name, linear(name, phases[i]!, i === 0 ? 's' : 't')])), {
      x: 'l0.x', ...Object.fromEntries(names.map((name, i) => [`${name}.y`, i + 1 < names.length ? `l${i + 1}.x` : 'y'])),
    });
    const y = (await runSubgraph(chain, { x: ramp([2, 3, 7], 4) }, { threads: 1 })).y;
    return JSON.stringify(values(y)) === JSON.stringify(values(x));
  }), { numRuns: 10 });
});

t.test('composition: refusals name both sides', async (t) => {
  const parts = { a: linear('a', 1), b: { ...linear('b', 2), inputs: [f32('x', 'b', 's', 11)] } };
  t.throws(() => compose('g', parts, { 'a.y': 'b.x' }), /both ends of a wire must agree, got a\.y float32 \[b,s,7\] and b\.x float32 \[b,s,11\], where 7 meets 11/);
  t.throws(() => compose('g', parts, { 'a.z': 'b.x' }), /a source must be an output of a part \(a\.y, b\.y\), got a\.z/);
  t.throws(() => compose('g', parts, { 'a.y': 'b.z' }), /a target must be an input of a part \(a\.x, b\.x\), got b\.z/);
  t.throws(() => compose('g', { a: parts.a, c: linear('c', 1) }, { x: ['a.x', 'c.x'], 'a.y': 'c.x' }), /an input must have one source, got x and a\.y for c\.x/);
  t.throws(() => compose('g', { a: parts.a, c: linear('c', 1) }, { 'a.y': 'c.x', 'c.y': 'a.x' }), /wires must not run in a circle/);
  const even = { ...linear('q', 1), inputs: [f32('x', 'b', '2*t', 7)] };
  t.throws(() => compose('g', { a: append, q: even }, { 'a.all': 'q.x' }), /both ends of a wire must agree, got a\.all float32 \[b,p\+s,7\] and q\.x float32 \[b,2\*t,7\], where p\+s meets 2\*t/);
  const fixed = compose('g', { a: linear('a', 1), b: linear('b', 1, 3) }, { 'a.y': 'b.x' });
  t.same(fixed.inputs, [f32('a.x', 'b', 3, 7)], 'a number gives a symbol its value');
  t.same(replaceSymbols(append, { p: 't-s' }).outputs[0], f32('all', 'b', 't', 7));
});

// -------------------------------------------------------------------------------------------------------- runtime

const port = (name: string, dtype: DType, ...shape: Port['shape']): Port => ({ name, dtype, shape });

/** Whether two lists are equal element by element; tap's own comparison takes seconds on long ones. */
const equal = (a: readonly number[], b: readonly number[]): boolean => a.length === b.length && a.every((v, i) => v === b[i]);

/** y = x · w0 · w1 · ..., element by element. */
const productOf = (constants: Record<string, Constant>, n: number): Subgraph => {
  const names = Object.keys(constants);
  return {
    name: 'product', inputs: [port('x', 'float32', 's', n)], outputs: [port('y', 'float32', 's', n)],
    nodes: names.map((name, i) => node('Mul', [i === 0 ? 'x' : `y${i - 1}`, name], [i === names.length - 1 ? 'y' : `y${i}`])),
    constants: new Map(Object.entries(constants)),
  };
};

t.test('ports are checked before the engine is called', async (t) => {
  const g: Subgraph = {
    name: 'scores', inputs: [port('q', 'float32', 'b', 's', 7), port('k', 'float32', 'b', 'p+s', 7), port('mask', 'float32', 's', 'p+s')],
    outputs: [port('out', 'float32', 'b', 's', 'p+s')],
    nodes: [node('Transpose', ['k'], ['kT'], { perm: { kind: 'ints', value: [0, 2, 1] } }), node('MatMul', ['q', 'kT'], ['raw']), node('Add', ['raw', 'mask'], ['out'])],
    constants: new Map(),
  };
  const runtime = await openRuntime(g, { threads: 1 });
  t.teardown(() => runtime.release());
  const good = { q: ramp([2, 5, 7]), k: ramp([2, 8, 7]), mask: ramp([5, 8]) };
  t.same((await runtime.run(good)).out?.shape, [2, 5, 8]);
  t.same([runtime.inputs, runtime.outputs], [['q', 'k', 'mask'], ['out']]);

  const refusals: [Record<string, HostTensor>, string][] = [
    [{ k: good.k, mask: good.mask }, 'runSubgraph: input q must be float32 [b,s,7], got none'],
    [{ ...good, r: good.q }, 'runSubgraph: input must be one of q, k, mask, got r'],
    [{ ...good, q: ramp([2, 5, 11]) }, 'runSubgraph: input q must be float32 [b,s,7], got [2,5,11]'],
    [{ ...good, q: ramp([5, 7]) }, 'runSubgraph: input q must be float32 [b,s,7], got float32 [5,7]'],
    [{ ...good, q: zeros('float64', [2, 5, 7]) }, 'runSubgraph: input q must be float32 [b,s,7], got float64 [2,5,7]'],
    [{ ...good, q: { ...good.q, shape: [2, 3, 7] } }, 'runSubgraph: input q must be float32 [b,s,7], got 70 elements for [2,3,7]'],
    [{ ...good, k: ramp([3, 8, 7]) }, 'runSubgraph: input k must be float32 [b,p+s,7], got [3,8,7] where b is 2 in input q'],
    [{ ...good, k: ramp([2, 3, 7]) }, 'runSubgraph: input k must be float32 [b,p+s,7], got [2,3,7] where p+s = 3, s = 5'],
    [{ ...good, mask: ramp([5, 9]) }, 'runSubgraph: input mask must be float32 [s,p+s], got [5,9] where p+s = 9, p = 3, s = 5'],
  ];
  for (const [feeds, message] of refusals) await t.rejects(runtime.run(feeds), { message });
  await t.rejects(runtime.run(good, ['raw']), { message: 'runSubgraph: output of scores must be one of out, got raw' });
  await t.rejects(runtime.run(good, []), /at least one output of scores must be fetched/);
  await t.rejects(runtime.run(good, { out: zeros('float64', [2, 5, 8]) }), /output out must be float32 \[b,s,p\+s\], got float64 \[2,5,8\]/);
  await t.rejects(runtime.run(good, { out: zeros('float32', [2, 5, 9]) }), { message: 'runSubgraph: output out must be float32 [b,s,p+s], got [2,5,9] where p+s = 9, p = 3, s = 5' });
  await t.rejects(openRuntime({ ...g, nodes: g.nodes.slice(1) }), /openRuntime: scores: .*kT/s);
  await t.rejects(openRuntime(g, { threads: 0 }), { message: 'openRuntime: threads must be 1 or more, got 0' });
  await t.rejects(openRuntime({ ...g, inputs: [port('q', 'bfloat16', 7)] }), /ports of scores cannot be bfloat16, got q/);
});

t.test('uncopied: outputs with memory of their own stay there, all else is as ever', async (t) => {
  const g: Subgraph = {
    name: 'rows', inputs: [f32('x', 5, 3), port('ids', 'int64', 'n')], outputs: [f32('picked', 'n', 3), f32('doubled', 5, 3)],
    nodes: [node('Gather', ['x', 'ids'], ['picked']), node('Add', ['x', 'x'], ['doubled'])], constants: new Map(),
  };
  const x = ramp([5, 3]), ids = i64(4, 1);
  const runtime = await openRuntime(g, { threads: 1, uncopied: true });
  t.teardown(() => runtime.release());
  t.same(runtime.outputs, ['picked', 'doubled']);
  const memory = new Float32Array(8), picked = tensor('float32', [2, 3], memory.subarray(1, 7)), doubled = zeros('float32', [5, 3]);
  for (const more of [0, 1]) { // a run that was cut short leaves nothing behind that the next would trip over
    memory.fill(9);
    const result = await runtime.run({ x, ids }, { doubled, picked });
    t.equal(result.picked, picked);
    t.equal(result.doubled, doubled);
    t.same([...memory], [9, ...x.data.subarray(12, 15), ...x.data.subarray(3, 6), 9], `written in place, nothing beside it (${more})`);
    t.same([...doubled.data], [...x.data].map((value) => 2 * value));
  }
  await t.rejects(runtime.run({ x, ids: i64(4, 7) }, { picked, doubled }), /runSubgraph: rows: .*idx=7/s, 'an error of the run is one');
  const half = await runtime.run({ x, ids }, { picked, doubled: null });
  t.equal(half.picked, picked);
  t.same(values(half.doubled), values(doubled));
  t.same(values((await runtime.run({ x, ids }, ['picked'])).picked), values(picked));

  const saysNothing = { run: async () => undefined, release: async () => {} };
  t.equal(await outputsStay(async () => saysNothing), false, 'an engine that does not write is seen');
  t.equal(await outputsStay(async () => ({ ...saysNothing, run: async () => { throw new Error('Non tensor type is temporarily not supported.'); } })), false);
});

t.test('memory: views are honoured, outputs can be given, types come back as declared', async (t) => {
  const g = productOf({ two: tensor('float32', [3], Float32Array.of(2, 2, 2)) }, 3);
  const runtime = await openRuntime(g, { threads: 1, spinning: false, optimisation: 'disabled' });
  const x = tensor('float32', [1, 3], Float32Array.of(9, 9, 1, 2, 3, 9).subarray(2, 5));
  const memory = new Float32Array(5);
  const y = tensor('float32', [1, 3], memory.subarray(1, 4));
  const result = await runtime.run({ x }, { y });
  t.same([...memory], [0, 2, 4, 6, 0], 'written in place, nothing beside it');
  t.equal(result.y, y);
  await runtime.release();
  await runtime.release();
  await t.rejects(runtime.run({ x }), { message: 'runSubgraph: product must be open, got a released one' });

  for (const dtype of ['float32', 'float64', 'float16', 'int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32', 'int64', 'bool'] as const) {
    const back: Subgraph = { name: dtype, inputs: [port('x', dtype, 's')], outputs: [port('y', dtype, 's')], nodes: [node('Identity', ['x'], ['y'])], constants: new Map() };
    const data = toDType(tensor('float64', [3], Float64Array.of(0, 1, 1)), dtype);
    t.strictSame(await runSubgraph(back, { x: data }), { y: data }, dtype);
  }
});

t.test('constants: small, large, stored in several files, and mixed', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'runtime-test-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const n = 20_011;
  const store = (name: string, offset: number, of: HostTensor): Constant => {
    mkdirSync(join(directory, name));
    const path = join(directory, name, 'weights');
    writeFileSync(path, Buffer.concat([Buffer.alloc(offset, 7), tensorBytes(of)]));
    return { dtype: of.dtype, shape: of.shape, file: { path, offset, bytes: of.data.byteLength } };
  };
  const [a, b, c] = [ramp([n]), ramp([n + 1]), ramp([n + 2])].map((w, i) => tensor('float32', [n], w.data.slice(i)));
  if (a === undefined || b === undefined || c === undefined) throw new Error('three weights');
  const x = ramp([2, n]);
  const want = values(x).map((v, i) => Math.fround(Math.fround(Math.fround(v * a.data[i % n]!) * b.data[i % n]!) * c.data[i % n]!));
  const kinds: Record<string, Record<string, Constant>> = {
    memory: { a, b, c },
    stored: { a: store('a', 0, a), b: store('b', 123, b), c: store('c', 5, c) },
    mixed: { a, b: store('b2', 1, b), c },
  };
  for (const [kind, constants] of Object.entries(kinds)) {
    for (const prepack of [true, false]) t.ok(equal(values((await runSubgraph(productOf(constants, n), { x }, { prepack })).y), want), kind);
  }

  // 68 MB beside a stored constant passes through a temporary file, which is gone when the session is open.
  const rows = 850;
  const scratch = join(directory, 'scratch');
  mkdirSync(scratch);
  const table = zeros('float32', [rows, n]);
  tensorBytes(table).set(tensorBytes(b), 4 * (rows - 1) * n);
  const large: Subgraph = {
    name: 'large', inputs: [port('i', 'int64', 's')], outputs: [port('y', 'float32', 's', n)],
    nodes: [node('Gather', ['table', 'i'], ['row']), node('Mul', ['row', 'a'], ['y'])],
    constants: new Map<string, Constant>([['table', table], ['a', store('a2', 3, a)]]),
  };
  const runtime = await openRuntime(large, { temporaryDirectory: scratch });
  t.same(readdirSync(scratch), []);
  const last = await runtime.run({ i: tensor('int64', [1], BigInt64Array.of(BigInt(rows - 1))) });
  await runtime.release();
  t.ok(equal(values(last.y), values(b).map((v, i) => Math.fround(v * a.data[i]!))));
  // Whoever wants to forget them first puts them there itself.
  const { subgraph: spilled, done } = spillConstants(large, scratch);
  t.ok([...spilled.constants.values()].every(isStored) && large.constants.get('table') === table, 'all constants lie in files, those given stay as they are');
  const mapped = await openRuntime(spilled, { temporaryDirectory: join(directory, 'absent') });
  done();
  t.same(readdirSync(scratch), []);
  t.ok(equal(values((await mapped.run({ i: tensor('int64', [1], BigInt64Array.of(BigInt(rows - 1))) })).y), values(last.y)), 'the same result');
  await mapped.release();
  t.throws(() => spillConstants(large, join(directory, 'absent')), { message: /^spillConstants: constants of large must fit into .*absent, got ENOENT/ });
  const small = productOf({ a, b: store('b3', 4, b) }, n);
  t.equal(spillConstants(small, join(directory, 'absent')).subgraph, small, 'small ones stay where they are');

  for (const dtype of ['float16', 'bfloat16'] as const) {
    const half = toDType(c, dtype);
    const cast: Subgraph = { ...productOf({ w: a }, n), nodes: [node('Cast', ['half'], ['w'], { to: { kind: 'int', value: 1 } }), node('Mul', ['x', 'w'], ['y'])], constants: new Map([['half', store(dtype, 7, half)]]) };
    const wide = toDType(half, 'float32').data;
    t.ok(equal(values((await runSubgraph(cast, { x })).y), values(x).map((v, i) => Math.fround(v * wide[i % n]!))), dtype);
  }
  await t.rejects(openRuntime(productOf({ w: { dtype: 'float32', shape: [n], file: { path: join(directory, 'absent'), offset: 0, bytes: 4 * n } } }, n)), /openRuntime: product: .*absent/s);
});

t.test('stored weights stay mapped without prepacking', { skip: process.platform === 'linux' ? false : 'reads /proc' }, async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'runtime-test-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const path = join(directory, 'w');
  const width = 4096;
  writeFileSync(path, new Uint8Array(4 * width * width + 3));
  const g: Subgraph = {
    name: 'matrix', inputs: [port('x', 'float32', 's', width)], outputs: [port('y', 'float32', 's', width)], nodes: [node('MatMul', ['x', 'w'], ['y'])],
    constants: new Map([['w', { dtype: 'float32', shape: [width, width], file: { path, offset: 3, bytes: 4 * width * width } }]]),
  };
  const anonymousMb = (): number => Number(/RssAnon:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]) / 1024;
  await runSubgraph(g, { x: ramp([1, width]) }, { prepack: false }); // the engine's own memory
  const before = anonymousMb();
  const runtime = await openRuntime(g, { prepack: false });
  await runtime.run({ x: ramp([1, width]) });
  const grown = anonymousMb() - before;
  await runtime.release();
  t.ok(grown < 32, `64 MB of weights took ${grown.toFixed(1)} MB of the process's own memory`);
});

t.test('benchmark', async (t) => {
  const g: Subgraph = {
    name: 'lookup', inputs: [port('x', 'float16', 's', 7), port('i', 'int64', 's')], outputs: [port('y', 'float32', 's', 7)],
    nodes: [node('Cast', ['x'], ['xf'], { to: { kind: 'int', value: 1 } }), node('Gather', ['table', 'i'], ['row']), node('Add', ['row', 'xf'], ['y'])],
    constants: new Map([['table', ramp([11, 7])]]),
  };
  const steps = [0, 5, 10, 11, 20, 22, 30, 34, 40, 43];
  const result = await benchmarkSubgraph(g, { symbols: { s: 5 }, ranges: { i: [0, 11] }, runs: 5, warmUp: 1, threads: 1, now: () => steps.shift() ?? NaN });
  t.strictSame(result, { medianMs: 3, minMs: 1, p90Ms: 4.6, runs: 5, nodes: 3, constantBytes: 4 * 77, inputBytes: 2 * 35 + 8 * 5, outputBytes: 4 * 35, threads: 1 });
  await t.rejects(benchmarkSubgraph(g, { symbols: { s: 5 } }), { message: 'benchmarkSubgraph: input i int64 needs feeds or a range, got none' });
  await t.rejects(benchmarkSubgraph(g, { ranges: { i: [0, 11] } }), /every symbol of s needs a value/);
  t.ok((await benchmarkSubgraph(g, { symbols: { s: 5 }, feeds: { i: zeros('int64', [5]) }, runs: 2 })).medianMs > 0);
});
