import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { benchmarkSubgraph, runSubgraph } from '../lib/graph/run.ts';
import { openRuntime } from '../lib/graph/runtime.ts';
import type { Attribute, Constant, DType, HostTensor, Node, Port, Subgraph } from '../lib/graph/subgraph.ts';
import { tensor, tensorBytes, toDType, zeros } from '../lib/tensor.ts';

const node = (op: string, inputs: string[], outputs: string[], attributes: Record<string, Attribute> = {}): Node => ({ op, domain: '', inputs, outputs, attributes });
const port = (name: string, dtype: DType, ...shape: Port['shape']): Port => ({ name, dtype, shape });
const ramp = (...shape: number[]): HostTensor<'float32'> =>
  tensor('float32', shape, Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => Math.sin(i + 1)));
const values = (x: HostTensor | undefined): number[] => Array.from<number | bigint, number>(x?.data ?? [], Number);

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
  const good = { q: ramp(2, 5, 7), k: ramp(2, 8, 7), mask: ramp(5, 8) };
  t.same((await runtime.run(good)).out?.shape, [2, 5, 8]);
  t.same([runtime.inputs, runtime.outputs], [['q', 'k', 'mask'], ['out']]);

  const refusals: [Record<string, HostTensor>, string][] = [
    [{ k: good.k, mask: good.mask }, 'runSubgraph: input q must be float32 [b,s,7], got none'],
    [{ ...good, r: good.q }, 'runSubgraph: input must be one of q, k, mask, got r'],
    [{ ...good, q: ramp(2, 5, 11) }, 'runSubgraph: input q must be float32 [b,s,7], got [2,5,11]'],
    [{ ...good, q: ramp(5, 7) }, 'runSubgraph: input q must be float32 [b,s,7], got float32 [5,7]'],
    [{ ...good, q: zeros('float64', [2, 5, 7]) }, 'runSubgraph: input q must be float32 [b,s,7], got float64 [2,5,7]'],
    [{ ...good, q: { ...good.q, shape: [2, 3, 7] } }, 'runSubgraph: input q must be float32 [b,s,7], got 70 elements for [2,3,7]'],
    [{ ...good, k: ramp(3, 8, 7) }, 'runSubgraph: input k must be float32 [b,p+s,7], got [3,8,7] where b is 2 in input q'],
    [{ ...good, k: ramp(2, 3, 7) }, 'runSubgraph: input k must be float32 [b,p+s,7], got [2,3,7] where p+s = 3, s = 5'],
    [{ ...good, mask: ramp(5, 9) }, 'runSubgraph: input mask must be float32 [s,p+s], got [5,9] where p+s = 9, p = 3, s = 5'],
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
  const [a, b, c] = [ramp(n), ramp(n + 1), ramp(n + 2)].map((w, i) => tensor('float32', [n], w.data.slice(i)));
  if (a === undefined || b === undefined || c === undefined) throw new Error('three weights');
  const x = ramp(2, n);
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
  await runSubgraph(g, { x: ramp(1, width) }, { prepack: false }); // the engine's own memory
  const before = anonymousMb();
  const runtime = await openRuntime(g, { prepack: false });
  await runtime.run({ x: ramp(1, width) });
  const grown = anonymousMb() - before;
  await runtime.release();
  t.ok(grown < 32, `64 MB of weights took ${grown.toFixed(1)} MB of the process's own memory`);
});

t.test('benchmark', async (t) => {
  const g: Subgraph = {
    name: 'lookup', inputs: [port('x', 'float16', 's', 7), port('i', 'int64', 's')], outputs: [port('y', 'float32', 's', 7)],
    nodes: [node('Cast', ['x'], ['xf'], { to: { kind: 'int', value: 1 } }), node('Gather', ['table', 'i'], ['row']), node('Add', ['row', 'xf'], ['y'])],
    constants: new Map([['table', ramp(11, 7)]]),
  };
  const steps = [0, 5, 10, 11, 20, 22, 30, 34, 40, 43];
  const result = await benchmarkSubgraph(g, { symbols: { s: 5 }, ranges: { i: [0, 11] }, runs: 5, warmUp: 1, threads: 1, now: () => steps.shift() ?? NaN });
  t.strictSame(result, { medianMs: 3, minMs: 1, p90Ms: 4.6, runs: 5, nodes: 3, constantBytes: 4 * 77, inputBytes: 2 * 35 + 8 * 5, outputBytes: 4 * 35, threads: 1 });
  await t.rejects(benchmarkSubgraph(g, { symbols: { s: 5 } }), { message: 'benchmarkSubgraph: input i int64 needs feeds or a range, got none' });
  await t.rejects(benchmarkSubgraph(g, { ranges: { i: [0, 11] } }), /every symbol of s needs a value/);
  t.ok((await benchmarkSubgraph(g, { symbols: { s: 5 }, feeds: { i: zeros('int64', [5]) }, runs: 2 })).medianMs > 0);
});
