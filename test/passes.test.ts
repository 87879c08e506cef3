/** Passes against float64 references of what their operators compute, and against the graphs they rewrite. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { linearHeads, plainRows, rmsNorm, rope, ropeAngles, ropeTables, storedRows, storeRows, swiglu, type RowReader } from '../kernels/index.ts';
import { openSafetensors, readSafetensors } from '../lib/checkpoint/safetensors.ts';
import { tensorSources, writeSafetensors } from '../lib/checkpoint/write-safetensors.ts';
import { allConstants } from '../lib/graph/constants.ts';
import { inferShapes } from '../lib/graph/infer.ts';
import { record, type Recorder, type Value } from '../lib/graph/record.ts';
import { runSubgraph } from '../lib/graph/run.ts';
import type { Fetches, Runtime } from '../lib/graph/runtime.ts';
import type { Constant, Dim, HostTensor, Subgraph } from '../lib/graph/subgraph.ts';
import { convert } from '../lib/convert.ts';
import { openModel } from '../lib/models/model.ts';
import { appendsAreOrdered } from '../lib/passes/appends-are-ordered.ts';
import { dequantiseBlocks, quantiseBlocks, type Bits } from '../lib/passes/block-codes.ts';
import { blockRoundings, type BlockRoundingName } from '../lib/passes/block-rounding.ts';
import { calibratedCodes } from '../lib/passes/calibrated-codes.ts';
import { dequantiseColumns, quantiseColumns } from '../lib/passes/column-codes.ts';
import { compensatedCodes } from '../lib/passes/compensated-codes.ts';
import { fuseIntegerProducts } from '../lib/passes/fuse-integer-products.ts';
import { fuseTransposedWeights } from '../lib/passes/fuse-transposed-weights.ts';
import { gatherApart } from '../lib/passes/gather-apart.ts';
import { inputMoments } from '../lib/passes/input-moments.ts';
import { mergeProjections } from '../lib/passes/merge-projections.ts';
import { blockSingleRows } from '../lib/passes/block-single-rows.ts';
import { mergeReshapes } from '../lib/passes/merge-reshapes.ts';
import { mergeRotations } from '../lib/passes/merge-rotations.ts';
import { mergeSplits } from '../lib/passes/merge-splits.ts';
import { mergeRoundings } from '../lib/passes/merge-roundings.ts';
import { edgesOf, replaceNodes, runPasses, type Pass } from '../lib/passes/pass.ts';
import { quantiseDynamic } from '../lib/passes/quantise-dynamic.ts';
import { signCodes } from '../lib/passes/sign-codes.ts';
import { signedProductsAreExact } from '../lib/session/signed-products.ts';
import { fittingBlockSize, quantiseWeights } from '../lib/passes/quantise-weights.ts';
import { rotateResidual } from '../lib/passes/rotate-residual.ts';
import { mixingRotation, rotateColumns, rotateRows } from '../lib/passes/rotation.ts';
import { scoreByRows } from '../lib/passes/score-by-rows.ts';
import { fuseSkipNorms } from '../lib/passes/skip-norm.ts';
import { sumBlocksOnce } from '../lib/passes/sum-blocks-once.ts';
import { viewBeforeSplit } from '../lib/passes/view-before-split.ts';
import { weightFormats, weightPasses } from '../lib/passes/weight-formats.ts';
import { multiplyPlain, type GemmOptions } from '../lib/linalg/gemm.ts';
import { identity, matrix, type Matrix } from '../lib/linalg/matrix.ts';
import { normals, seededRandom } from '../lib/random.ts';
import { appendsInPlace } from '../lib/session/append-in-place.ts';
import { calibrateWeights, weightCodesPass } from '../lib/session/calibrate-weights.ts';
import { loadWeightCodes, saveWeightCodes } from '../lib/session/weight-codes-file.ts';
import { openSession } from '../lib/session/session.ts';
import { tensor, tensorBytes, toDType } from '../lib/tensor.ts';
import { withDirectory, zooPath } from './support/tiny.ts';

const roundingNames = Object.keys(blockRoundings) as BlockRoundingName[];
const draw = (seed: number, shape: readonly number[], scale = 1): HostTensor<'float32'> =>
  tensor('float32', shape, Float32Array.from(normals(seededRandom(seed), shape.reduce((a, b) => a * b, 1)), (v) => v * scale));
const floats = (x: HostTensor | undefined): Float32Array => {
  if (x?.dtype !== 'float32') throw new TypeError(`expected float32, got ${x?.dtype}`);
  return x.data;
};
const ops = (g: Subgraph): string[] => g.nodes.map((node) => node.op);
const count = (g: Subgraph, op: string): number => ops(g).filter((name) => name === op).length;

/** ||a - b|| / ||b||. */
function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let gap = 0, whole = 0;
  for (let i = 0; i < b.length; i++) {
    gap += (a[i]! - b[i]!) ** 2;
    whole += b[i]! ** 2;
  }
  return a.length === b.length ? Math.sqrt(gap / (whole || 1)) : Infinity;
}

/** x [rows, K] times W^T, W [N, K], in float64. */
function times(x: ArrayLike<number>, w: ArrayLike<number>, inputs: number, outputs: number): Float64Array {
  const rows = x.length / inputs;
  return Float64Array.from({ length: rows * outputs }, (_, at) => {
    const row = Math.floor(at / outputs), output = at % outputs;
    let sum = 0;
    for (let k = 0; k < inputs; k++) sum += x[row * inputs + k]! * w[output * inputs + k]!;
    return sum;
  });
}

/** What accuracy_level 4 does to inputs: 8 bits around 0 per block of K. */
function roundedInputs(x: ArrayLike<number>, inputs: number, blockSize: number): Float64Array {
  const out = new Float64Array(x.length);
  for (let row = 0; row < x.length; row += inputs) {
    for (let from = 0; from < inputs; from += blockSize) {
      const to = Math.min(from + blockSize, inputs);
      let extreme = 0;
      for (let k = from; k < to; k++) extreme = Math.max(extreme, Math.abs(x[row + k]!));
      const step = extreme / 127;
      for (let k = from; k < to; k++) out[row + k] = step === 0 ? 0 : Math.round(x[row + k]! / step) * step;
    }
  }
  return out;
}

const linear = (g: Recorder, x: Value, weight: Value): Value => g.einsum('bsi,oi->bso', x, weight);

/** y = x W^T (+ bias): the weight as it is in checkpoints. */
const layer = (weight: Constant, bias: Constant | null = null, tokens: Dim = 's'): Subgraph =>
  record('layer', { x: { dtype: 'float32', shape: [1, tokens, weight.shape[1]!] } }, (g, { x }) => {
    const y = linear(g, x, g.parameter('weight', weight));
    return { y: bias === null ? y : g.add(y, g.parameter('bias', bias)) };
  });

const run = async (g: Subgraph, x: HostTensor): Promise<Float32Array> => floats((await runSubgraph(g, { x }, { threads: 1 })).y);

t.test('block codes: what they stand for', (t) => {
  for (const rounding of roundingNames) {
    for (const bits of [4, 8] as const) {
      const w = draw(3, [29, 61]), codes = quantiseBlocks(w.data, 29, 61, false, { bits, blockSize: 16, rounding });
      const back = dequantiseBlocks(codes);
      t.equal(codes.codes.length, (29 * 64 * bits) / 8);
      t.equal(codes.zeros === null, rounding.endsWith('-symmetric'));
      t.ok(Math.abs(distance(back, w.data) - codes.relativeError) < 1e-9, 'the error is that of the codes');
      // Steps of a block are at most its range over the codes; clipping by the search costs a little more at the ends.
      const worst = Math.max(...back.map((v, i) => Math.abs(v - w.data[i]!)));
      t.ok(worst < 3.5 * 2 ** -bits * 4, `${rounding} ${bits}: ${worst}`);
      const turned = Float32Array.from({ length: 61 * 29 }, (_, i) => w.data[(i % 29) * 61 + Math.floor(i / 29)]!);
      const other = quantiseBlocks(turned, 29, 61, true, { bits, blockSize: 16, rounding });
      t.ok(Buffer.compare(other.codes, codes.codes) === 0 && distance(other.scales, codes.scales) === 0, 'a transposed matrix gives the same codes');
    }
  }
  const error = (rounding: BlockRoundingName, importance?: ArrayLike<number>) => {
    const w = draw(7, [31, 128]), codes = quantiseBlocks(w.data, 31, 128, false, { bits: 4, blockSize: 64, rounding, ...(importance === undefined ? {} : { importance }) });
    return dequantiseBlocks(codes).reduce((sum, v, i) => sum + (importance?.[i % 128] ?? 1) * (v - w.data[i]!) ** 2, 0);
  };
  t.ok(error('search-symmetric') < 0.98 * error('nearest-symmetric'), 'search finds a smaller error');
  t.ok(error('search-asymmetric') < 0.98 * error('nearest-asymmetric'));
  const importance = Float64Array.from({ length: 128 }, (_, i) => (i % 11 === 0 ? 50 : 1));
  const w = draw(7, [31, 128]);
  const weighed = quantiseBlocks(w.data, 31, 128, false, { bits: 4, blockSize: 64, rounding: 'search-asymmetric' });
  const unweighed = dequantiseBlocks(weighed).reduce((sum, v, i) => sum + importance[i % 128]! * (v - w.data[i]!) ** 2, 0);
  t.ok(error('search-asymmetric', importance) < unweighed, 'importance steers the search');
  t.throws(() => quantiseBlocks(Float32Array.of(1, NaN, 3), 1, 3, false, { bits: 4, blockSize: 16, rounding: 'nearest-symmetric' }), /must be finite/);
  t.throws(() => quantiseBlocks(Float32Array.of(1, Infinity), 1, 2, false, { bits: 8, blockSize: 16, rounding: 'search-asymmetric' }), /must be finite/);
  t.throws(() => quantiseBlocks(Float32Array.of(1), 1, 2, false, { bits: 8, blockSize: 16, rounding: 'search-asymmetric' }), /must be \[1, 2\], got 1 numbers/);
  t.throws(() => quantiseBlocks(Float32Array.of(1, 2), 1, 2, false, { bits: 8, blockSize: 16, rounding: 'nearest-symmetric', importance: [1, -1] }), /importance must be finite and not negative, got -1 for input 1/);
  t.throws(() => quantiseBlocks(Float32Array.of(1, 2), 1, 2, false, { bits: 8, blockSize: 16, rounding: 'nearest-symmetric', importance: [1] }), /importance must have 2 numbers, got 1/);
  t.same(dequantiseBlocks(quantiseBlocks(new Float32Array(34), 2, 17, false, { bits: 4, blockSize: 16, rounding: 'nearest-asymmetric' })), new Float64Array(34), 'zeros stay zeros');
  t.end();
});

t.test('block codes: a matrix that lies on the grid comes back', (t) => {
  fc.assert(fc.property(fc.constantFrom<Bits>(4, 8), fc.constantFrom(...roundingNames), fc.integer({ min: -9, max: 9 }), fc.integer(), (bits, rounding, exponent, seed) => {
    const top = 2 ** bits - 1, random = seededRandom(seed >>> 0), zero = rounding.endsWith('-symmetric') ? (top + 1) / 2 : random.integer(top + 1);
    // Code 0 in every block pins a symmetric scale; both ends pin an asymmetric one.
    const w = Float32Array.from({ length: 3 * 32 }, (_, i) => ((i % 16 === 0 ? 0 : i % 16 === 1 ? top : random.integer(top + 1)) - zero) * 2 ** exponent);
    const codes = quantiseBlocks(w, 3, 32, false, { bits, blockSize: 16, rounding });
    return distance(dequantiseBlocks(codes), w) < 1e-6 && codes.relativeError < 1e-6;
  }), { numRuns: 200 });
  t.end();
});

t.test('MatMulNBits computes what the reference says', async (t) => {
  const inputs = 131, outputs = 37, x = draw(5, [1, 7, inputs]), weight = draw(6, [outputs, inputs], 0.3), bias = draw(8, [outputs]);
  t.equal(fittingBlockSize(inputs, 64), 16, '64 and 32 would pad 131 by more than an eighth');
  for (const bits of [4, 8] as const) {
    for (const rounding of roundingNames) {
      const g = quantiseWeights(layer(weight, bias), { bits, rounding });
      t.same(ops(g), ['MatMulNBits'], 'the bias is inside');
      inferShapes(g);
      const w = dequantiseBlocks(quantiseBlocks(weight.data, outputs, inputs, false, { bits, blockSize: 16, rounding }));
      const want = times(roundedInputs(x.data, inputs, 16), w, inputs, outputs).map((v, i) => v + bias.data[i % outputs]!);
      const got = distance(await run(g, x), want);
      t.ok(got < 1e-5, `${rounding} ${bits}: ${got}`);
      t.match(g.quantised, [{ name: 'weight', shape: [37, 131], inputs, outputs, bits, blockSize: 16, bytesBefore: 4 * 37 * 131 }]);
      t.equal(g.quantised[0]?.bytesAfter, allConstants(g).reduce((sum, c) => sum + (c.shape.length > 1 ? tensorBytesOf(c) : 0), 0));
    }
  }
});

const tensorBytesOf = (c: Constant): number => ('data' in c ? c.data.byteLength : c.file.bytes);

t.test('products in every spelling, and what is left alone', async (t) => {
  const weight = draw(11, [41, 128]), x = draw(12, [1, 5, 128]);
  const reference = await run(quantiseWeights(layer(weight), { bits: 8 }), x);
  const port = { x: { dtype: 'float32', shape: [1, 's', 128] } } as const;
  const turned = tensor('float32', [128, 41], Float32Array.from({ length: 128 * 41 }, (_, i) => weight.data[(i % 41) * 128 + Math.floor(i / 41)]!));
  const out = [{ dtype: 'float32', shape: [1, 's', 41] }] as const;
  const spellings: Record<string, Subgraph> = {
    straight: record('straight', port, (g, { x }) => ({ y: g.append('MatMul', [x, g.parameter('w', turned)], out)[0]! })),
    fused: fuseTransposedWeights(layer(weight)),
    gemm: record('gemm', port, (g, { x }) => {
      const flat = g.reshape(x, ['s', 128]);
      const y = g.append('Gemm', [flat, g.parameter('w', weight)], [{ dtype: 'float32', shape: ['s', 41] }], { transB: { kind: 'int', value: 1 } })[0]!;
      return { y: g.reshape(y, [1, 's', 41]) };
    }),
  };
  for (const [name, g] of Object.entries(spellings)) {
    const q = quantiseWeights(g, { bits: 8 });
    t.equal(count(q, 'MatMulNBits'), 1, name);
    t.same(await run(q, x), reference, name);
  }
  const narrow = toDType(weight, 'bfloat16');
  t.equal(quantiseWeights(layer(narrow), { bits: 8 }).quantised[0]?.bytesBefore, 2 * 41 * 128, 'half-width weights are read through their Cast');
  const directory = mkdtempSync(join(tmpdir(), 'passes-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  const path = join(directory, 'weights');
  writeFileSync(path, Buffer.concat([Buffer.alloc(3), tensorBytes(weight)]));
  const stored: Constant = { dtype: 'float32', shape: [41, 128], file: { path, offset: 3, bytes: 4 * 41 * 128 } };
  t.same(await run(quantiseWeights(layer(stored), { bits: 8 }), x), reference, 'stored constants are read');
  t.throws(() => quantiseWeights(layer({ ...stored, file: { ...stored.file, offset: 7 } }), { bits: 8 }), /quantiseWeights: weight: readConstant: .* ends at byte/);

  const same = (g: Subgraph, options: Parameters<typeof quantiseWeights>[1]): void => {
    const q = quantiseWeights(g, options);
    t.same([q.nodes, q.quantised], [g.nodes, []]);
  };
  same(layer(weight), { bits: 4, minWeights: 41 * 128 + 1 });
  same(layer(weight), { bits: 4, bitsOf: () => null });
  same(layer(draw(1, [2053, 3])), { bits: 4 });
  const batch = draw(2, [3, 64, 29]);
  same(record('batch', { x: { dtype: 'float32', shape: [3, 's', 64] } }, (g, { x }) => ({ y: g.append('MatMul', [x, g.parameter('w', batch)], [{ dtype: 'float32', shape: [3, 's', 29] }])[0]! })), { bits: 4 });
  same(record('scaled', port, (g, { x }) => ({ y: g.append('FusedMatMul', [x, g.parameter('w', turned)], out, { alpha: { kind: 'float', value: 2 } }, 'com.microsoft')[0]! })), { bits: 4 });
  t.equal(quantiseWeights(layer(weight), { bits: 4, bitsOf: ({ inputs, outputs }) => (inputs === 128 && outputs === 41 ? 8 : 4) }).quantised[0]?.bits, 8);
  for (const blockSize of [8, 48, 1.5]) t.throws(() => quantiseWeights(layer(weight), { bits: 4, blockSize }), { message: `quantiseWeights: blockSize must be a power of two from 16 on, got ${blockSize}` });
  t.throws(() => quantiseWeights(layer(weight), { bits: 3 as Bits }), { message: 'quantiseWeights: bits must be 4 or 8, got 3' });
  t.throws(() => quantiseWeights(layer(draw(1, [61, 128], NaN)), { bits: 4 }), /quantiseWeights: weight: quantiseBlocks: weights must be finite/);
});

t.test('tied embedding and head share the bytes', async (t) => {
  const vocab = 83, ids: HostTensor = { dtype: 'int64', shape: [1, 5], data: BigInt64Array.of(0n, 82n, 7n, 41n, 7n) };
  for (const hidden of [64, 61]) {
    const table = draw(17, [vocab, hidden]);
    for (const computed of [false, true]) {
      const tied = record('tied', { ids: { dtype: 'int64', shape: [1, 's'] } }, (g, { ids }) => {
        const weight = g.parameter('table', table), own = computed ? g.append('Identity', [ids], [{ dtype: 'int64', shape: [1, 's'] }])[0]! : ids;
        const hidden = g.gather(weight, own);
        return { hidden, y: linear(g, hidden, weight) };
      });
      for (const [bits, rounding] of [[8, 'nearest-symmetric'], [4, 'nearest-asymmetric'], [4, 'search-symmetric']] as const) {
        const q = quantiseWeights(tied, { bits, rounding });
        t.equal(q.constants.has('table'), false);
        const codes = [...q.constants].filter(([, c]) => c.dtype === 'uint8' && c.shape.length === 3 && c.shape[2] !== 1);
        t.equal(codes.length, 1, 'codes are there once');
        t.equal(edgesOf(q).readers(codes[0]![0]).length, 2);
        const w = dequantiseBlocks(quantiseBlocks(table.data, vocab, hidden, false, { bits, blockSize: 64, rounding }));
        const result = await runSubgraph(q, { ids }, { threads: 1 });
        const rows = [0, 82, 7, 41, 7].flatMap((id) => [...w.subarray(id * hidden, (id + 1) * hidden)]);
        t.same(result.hidden?.shape, [1, 5, hidden]);
        t.ok(distance(floats(result.hidden), rows) < 1e-7);
        // Rows are multiples of a scale, so many inputs lie halfway between two codes, where float32 goes either way.
        t.ok(distance(floats(result.y), times(rows, w, hidden, vocab)) < 0.01);
        if (!computed) inferShapes(q);
      }
    }
  }
  const table = draw(19, [vocab, 64]);
  const untied = record('untied', { ids: { dtype: 'int64', shape: [1, 's'] } }, (g, { ids }) => ({ y: linear(g, g.gather(g.parameter('table', table), ids), g.parameter('head', draw(23, [97, 64]))) }));
  const q = quantiseWeights(untied, { bits: 4 });
  t.equal(q.constants.get('table'), table, 'a table that only Gather reads stays the same record');
  t.same(q.quantised.map(({ name }) => name), ['head']);
});

t.test('dynamic int8 computes what the reference says', async (t) => {
  const inputs = 67, outputs = 71, weight = draw(31, [outputs, inputs]), bias = draw(37, [outputs]);
  const w = dequantiseColumns(quantiseColumns(weight.data, outputs, inputs, false));
  const turned = Float64Array.from({ length: outputs * inputs }, (_, i) => w[(i % inputs) * outputs + Math.floor(i / inputs)]!);
  t.ok(distance(turned, weight.data) < 3.5 / 127 / Math.sqrt(12) * 1.5);
  // Large codes on both sides, all of one sign: saturating arithmetic would be far off.
  const loud = draw(32, [outputs, inputs], 0.01), saturating = tensor('float32', [outputs, inputs], loud.data.map((v) => 1 + v));
  for (const [name, matrix] of [['normal', weight], ['loud', saturating]] as const) {
    const codes = dequantiseColumns(quantiseColumns(matrix.data, outputs, inputs, false));
    const back = Float64Array.from({ length: outputs * inputs }, (_, i) => codes[(i % inputs) * outputs + Math.floor(i / inputs)]!);
    const x = draw(41, [1, 3, inputs]);
    x.data[2] = 40; // an outlier in the first token
    x.data.fill(0, inputs, 2 * inputs); // a token of zeros
    for (let k = 2 * inputs; k < 3 * inputs; k++) x.data[k] = 1 + 0.1 * x.data[k]!;
    const g = quantiseDynamic(layer(matrix, bias));
    t.equal(count(g, 'MatMulIntegerToFloat'), 1);
    inferShapes(g);
    const want = times(roundedInputs(x.data, inputs, inputs), back, inputs, outputs).map((v, i) => v + bias.data[i % outputs]!);
    const y = await run(g, x);
    t.ok(distance(y, want) < 1e-5, `${name}: ${distance(y, want)}`);
    t.same(y.subarray(outputs, 2 * outputs), bias.data, 'zeros give the bias');
    const alone = await run(g, tensor('float32', [1, 1, inputs], x.data.slice(2 * inputs)));
    t.ok(distance(alone, y.subarray(2 * outputs)) < 1e-6, 'a token does not depend on its neighbours');

    const one = quantiseDynamic(layer(matrix, bias, 1));
    t.same(ops(one), ['DynamicQuantizeMatMul'], 'one token, one node');
    const token = x.data.subarray(2 * inputs), low = Math.min(0, ...token), high = Math.max(0, ...token), step = (high - low) / 255;
    const zero = Math.round(-low / step), rounded = Float64Array.from(token, (v) => (Math.min(255, Math.max(0, Math.round(v / step) + zero)) - zero) * step);
    const wanted = times(rounded, back, inputs, outputs).map((v, i) => v + bias.data[i]!);
    t.ok(distance(await run(one, tensor('float32', [1, 1, inputs], token)), wanted) < 1e-3, 'within a step of one input: rounding of ties is the engine\'s');
  }
  t.same(ops(quantiseDynamic(layer(weight), { inputScale: 'tensor' })), ['DynamicQuantizeMatMul']);
  t.equal(quantiseDynamic(layer(weight), { select: () => false }).quantised.length, 0);
  t.equal(quantiseDynamic(layer(weight), { minWeights: 71 * 67 + 1 }).quantised.length, 0);
  const shared = record('shared', { x: { dtype: 'float32', shape: [1, 's', inputs] } }, (g, { x }) => ({ y: linear(g, x, g.parameter('a', weight)), z: linear(g, x, g.parameter('b', saturating)) }));
  t.equal(count(quantiseDynamic(shared), 'QuantizeLinear'), 1, 'one rounding per input');
  t.throws(() => quantiseDynamic(layer(draw(1, [71, 67], NaN))), /quantiseDynamic: weight: quantiseColumns: weights must be finite, got NaN for output 0/);
});

t.test('signed codes: the same whole sums, for weights and for what the graph rounds, not for its inputs', async (t) => {
  const outputs = 71, inputs = 131, weight = tensor('float32', [outputs, inputs], draw(61, [outputs, inputs], 0.01).data.map((v) => 1 + v)), x = draw(62, [1, 5, inputs]);
  const unsigned = quantiseDynamic(layer(weight, draw(63, [outputs]))), signed = signCodes(unsigned);
  t.equal([...signed.constants.values()].filter(({ dtype }) => dtype === 'int8').length, 1);
  t.same([...unsigned.constants.values()].filter(({ dtype }) => dtype === 'int8').length, 0, 'the subgraph it was given stays');
  const one = quantiseDynamic(layer(weight, null, 1));
  t.ok(signCodes(one).nodes.every(({ inputs: [, , , zero = ''] }) => zero === ''), 'one token');
  const middle = tensor('uint8', [], Uint8Array.of(128));
  const dtypes = { a: { dtype: 'uint8', shape: [7, 11] }, b: { dtype: 'uint8', shape: [11, 3] } } as const;
  const products = record('products', dtypes, (g, { a, b }) => {
    const zero = g.constant(middle), made = g.append('Identity', [b], [{ dtype: 'uint8', shape: [11, 3] }])[0]!;
    const product = (right: typeof b): typeof b => g.append('MatMulInteger', [a, right, zero, zero], [{ dtype: 'int32', shape: [7, 3] }])[0]!;
    return { given: product(b), made: product(made) };
  });
  const changed = signCodes(products);
  t.equal(count(changed, 'BitwiseXor'), 1, 'an input, as long as a cache, is not rewritten');
  if (!(await signedProductsAreExact())) {
    t.comment('this processor saturates signed products: sums are not compared');
    return;
  }
  t.same(await run(signed, x), await run(unsigned, x));
  const extremes = (length: number, step: number): Uint8Array => Uint8Array.from({ length }, (_, i) => [0, 255, 128, 1, 254, (i * 37) % 256][(i * step) % 6]!);
  const feeds = { a: tensor('uint8', [7, 11], extremes(77, 1)), b: tensor('uint8', [11, 3], extremes(33, 5)) };
  const [before, after] = [await runSubgraph(products, feeds), await runSubgraph(changed, feeds)];
  t.same(after.made?.data, before.made?.data);
  t.same(after.made?.data, after.given?.data);
});

/** A block with what the fusions look for: norm, three projections, residual sum, norm, SwiGLU, residual sum. */
const block = (tokens: Dim): Subgraph => record('block', { x: { dtype: 'float32', shape: [1, tokens, 64] } }, (g, { x }) => {
  const normed = rmsNorm(g, x, g.parameter('gain1', draw(51, [64])), 1e-5);
  const [q, k, v] = [67, 71, 64].map((n, i) => linear(g, normed, g.parameter(`w${i}`, draw(52 + i, [n, 64], 0.1))));
  const h = g.add(x, g.mul(v!, g.sigmoid(v!)));
  const inner = rmsNorm(g, h, g.parameter('gain2', toDType(draw(61, [64]), 'bfloat16')), 1e-6);
  const mlp = (name: string, out: number, from: number) => ({ weight: g.parameter(name, draw(out, [out, from], 0.1)), bias: null });
  return { q: q!, k: k!, h, y: g.add(h, swiglu(g, inner, { gate: mlp('gate', 97, 64), up: { ...mlp('up', 97, 64) }, down: mlp('down', 64, 97) })) };
});

t.test('fusions keep the numbers', async (t) => {
  const g = block('s'), x = draw(71, [1, 7, 64]);
  const want = await runSubgraph(g, { x }, { threads: 1, optimisation: 'disabled' });
  const passes: Record<string, readonly Pass[]> = {
    transposed: [fuseTransposedWeights], skip: [fuseSkipNorms], merged: [fuseTransposedWeights, mergeProjections],
    all: [fuseTransposedWeights, fuseSkipNorms, mergeProjections], backwards: [fuseSkipNorms, fuseTransposedWeights, mergeProjections],
  };
  const nodes: Record<string, number> = {};
  for (const [name, list] of Object.entries(passes)) {
    const fused = runPasses(g, list);
    inferShapes(fused);
    nodes[name] = fused.nodes.length;
    const got = await runSubgraph(fused, { x }, { threads: 1, optimisation: 'disabled' });
    for (const port of ['q', 'k', 'h', 'y']) t.ok(distance(floats(got[port]), floats(want[port])) < 1e-6, `${name} ${port}`);
  }
  t.ok(nodes.all! < nodes.skip! && nodes.all! < nodes.merged! && nodes.merged! < nodes.transposed! && nodes.transposed! < g.nodes.length);
  const fused = runPasses(g, passes.all!);
  t.same([count(fused, 'SkipSimplifiedLayerNormalization'), count(fused, 'SimplifiedLayerNormalization'), count(fused, 'Transpose'), count(fused, 'FusedMatMul'), count(fused, 'Split')], [1, 1, 0, 3, 2]);
  t.same(fused.inputs, g.inputs);
  t.same(fused.outputs, g.outputs);
  const widths = [...fused.constants.values()].filter((c) => c.shape.length === 2).map((c) => c.shape);
  t.same(widths.map(String).sort(), ['194,64', '202,64', '64,97']);
});

t.test('norms that are none of these stay', (t) => {
  const port = { x: { dtype: 'float32', shape: [1, 's', 64] } } as const, gain = draw(1, [64]);
  const axis = record('axis', port, (g, { x }) => {
    const squares = g.append('ReduceMean', [g.square(x), g.constant({ dtype: 'int64', shape: [1], data: BigInt64Array.of(1n) })], [{ dtype: 'float32', shape: [1, 1, 64] }], { keepdims: { kind: 'int', value: 1 } })[0]!;
    return { y: g.mul(g.div(x, g.sqrt(g.shift(squares, 1e-5))), g.parameter('gain', gain)) };
  });
  const other = record('other', { ...port, z: { dtype: 'float32', shape: [1, 's', 64] } }, (g, { x, z }) => ({ y: g.mul(g.div(z, g.sqrt(g.shift(g.mean(g.square(x)), 1e-5))), g.parameter('gain', gain)) }));
  const computed = record('computed', port, (g, { x }) => ({ y: rmsNorm(g, x, g.add(x, x), 1e-5) }));
  for (const g of [axis, other, computed]) t.equal(fuseSkipNorms(g).nodes.some(({ op }) => op.endsWith('LayerNormalization')), false, g.name);
  const broadcast = record('broadcast', { ...port, z: { dtype: 'float32', shape: [1, 1, 64] } }, (g, { x, z }) => ({ y: rmsNorm(g, g.add(x, z), g.parameter('gain', gain), 1e-5) }));
  t.same(ops(fuseSkipNorms(broadcast)), ['Add', 'SimplifiedLayerNormalization'], 'a sum that broadcasts is not the residual one');
  const standard = record('standard', port, (g, { x }) => ({ y: g.append('RMSNormalization', [g.add(x, x), g.parameter('gain', gain)], [{ dtype: 'float32', shape: [1, 's', 64] }], { epsilon: { kind: 'float', value: 1e-5 } })[0]! }));
  t.same(ops(fuseSkipNorms(standard)), ['SkipSimplifiedLayerNormalization']);
  t.end();
});

t.test('merging quantised projections changes no number', async (t) => {
  const x = draw(73, [1, 7, 64]), one = draw(73, [1, 1, 64]);
  for (const format of ['int8', 'int4', 'int8-dynamic'] as const) {
    for (const [tokens, feed] of [['s', x], [1, one]] as const) {
      const g = runPasses(block(tokens), weightPasses(format).map((pass) => (s: Subgraph) => pass(s))), merged = mergeProjections(g);
      inferShapes(merged);
      t.equal(merged.nodes.length, g.nodes.length - 1, `${format}: three and two products become one each, with a Split`);
      const [a, b] = [await runSubgraph(g, { x: feed }, { threads: 1 }), await runSubgraph(merged, { x: feed }, { threads: 1 })];
      for (const port of ['q', 'k', 'h', 'y']) t.ok(distance(floats(b[port]), floats(a[port])) < 1e-6, `${format} ${port}`);
    }
  }
  const table = draw(79, [83, 64]);
  const tied = fuseTransposedWeights(record('tied', { x: { dtype: 'float32', shape: [1, 's', 64] }, ids: { dtype: 'int64', shape: [1, 's'] } }, (g, { x, ids }) =>
    ({ e: g.gather(g.parameter('table', table), ids), y: linear(g, x, g.parameter('table', table)), z: linear(g, x, g.parameter('other', draw(80, [29, 64]))) })));
  t.equal(mergeProjections(tied), tied, 'a shared constant is not copied into a merged one');
});

t.test('a stored table is gathered from apart from the product with it', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'passes-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  const path = join(directory, 'weights'), table = draw(91, [37, 64]);
  writeFileSync(path, tensorBytes(table));
  const stored: Constant = { dtype: 'float32', shape: [37, 64], file: { path, offset: 0, bytes: 4 * 37 * 64 } };
  const tied = (constant: Constant, product: boolean): Subgraph => record('tied', { ids: { dtype: 'int64', shape: [1, 's'] } }, (g, { ids }) => {
    const weight = g.parameter('embedding', constant), x = g.gather(weight, ids);
    return { y: product ? linear(g, x, weight) : x };
  });
  const apart = gatherApart(fuseTransposedWeights(tied(stored, true)));
  t.same([...apart.constants].filter(([name]) => name.startsWith('embedding')), [['embedding', stored], ['embedding.rows', stored]]);
  const ids = tensor('int64', [1, 3], BigInt64Array.of(5n, 36n, 0n));
  t.same((await runSubgraph(apart, { ids })).y, (await runSubgraph(fuseTransposedWeights(tied(stored, true)), { ids })).y);
  for (const alone of [tied(stored, false), tied(table, true)]) t.equal(gatherApart(alone), alone, 'one reader, or a constant in memory, which would be there twice');
});

t.test('passes are pure, and any function of one subgraph is a pass', (t) => {
  const g = block('s'), before = JSON.stringify([g.inputs, g.outputs, g.nodes]), constants = [...g.constants];
  const own: Pass = (subgraph) => ({ ...subgraph, name: `${subgraph.name} by hand` });
  const rewritten = runPasses(g, [fuseSkipNorms, own, ...weightPasses('int4'), mergeProjections]);
  t.equal(rewritten.name, 'block by hand');
  t.equal(JSON.stringify([g.inputs, g.outputs, g.nodes]), before);
  t.ok([...g.constants].every(([name, constant], i) => constants[i]?.[0] === name && constants[i][1] === constant));
  t.equal(replaceNodes(g, new Map()), g, 'nothing to do, nothing new');
  t.equal(rewritten.constants.get('gain1'), g.constants.get('gain1'), 'what is not touched stays the same record');
  t.end();
});

/** Queries of 3 heads and a key, rotated by one table, beside a value: y and the rotated parts. */
const rotations = (other: boolean): Subgraph => record('rotations', { x: { dtype: 'float32', shape: [1, 's', 64] }, positions: { dtype: 'int64', shape: ['s'] } }, (g, { x, positions }) => {
  const tables = [0, 1].map((i) => ropeTables([1 + i, 0.1, 0.01], 11)).map(({ cos, sin }, i) => ropeAngles(g, { cos: g.parameter(`cos${i}`, cos), sin: g.parameter(`sin${i}`, sin) }, positions));
  const heads = (name: string, seed: number, n: number): Value => linearHeads(g, x, { weight: g.parameter(name, draw(seed, [n * 6, 64], 0.1)), bias: null }, [n], 6);
  const value = linear(g, x, g.parameter('v', draw(83, [67, 64], 0.1)));
  return { value, query: rope(g, heads('q', 81, 3), tables[0]!), key: rope(g, heads('k', 82, 1), tables[other ? 1 : 0]!) };
});

t.test('rotations of neighbouring pieces become one', async (t) => {
  const feeds = { x: draw(85, [1, 5, 64]), positions: tensor('int64', [5], BigInt64Array.of(2n, 3n, 5n, 7n, 10n)) };
  const g = rotations(false), merged = runPasses(g, [fuseTransposedWeights, mergeProjections, mergeRotations]);
  inferShapes(merged);
  t.equal(count(merged, 'RotaryEmbedding'), 1);
  const [want, got] = [await runSubgraph(g, feeds, { threads: 1 }), await runSubgraph(merged, feeds, { threads: 1 })];
  for (const port of ['value', 'query', 'key']) t.ok(distance(floats(got[port]), floats(want[port])) < 1e-6, port);
  t.equal(count(runPasses(rotations(true), [fuseTransposedWeights, mergeProjections, mergeRotations]), 'RotaryEmbedding'), 2, 'other angles stay apart');
  t.end();
});

/**
 * Queries of three heads against cached rows of 8 bits, and the new row; `other`: queries that something else happens to first;
 * `together`: both out of one product, cut along the last of three axes.
 */
const roundings = (other: boolean, together = false): Subgraph => record('roundings', {
  x: { dtype: 'float32', shape: [1, 1, 64] }, past: { dtype: 'uint8', shape: ['p', 8] }, past_step: { dtype: 'float32', shape: ['p', 1] },
}, (g, { x, past, past_step }) => {
  const cut = (): [Value, Value] => {
    const [query, own] = g.split(linear(g, x, g.parameter('qk', draw(102, [32, 64]))), 2, [24, 8]);
    return [query!, own!];
  };
  const [query, own] = together ? cut() : [linear(g, x, g.parameter('q', draw(101, [3 * (other ? 16 : 8), 64]))), linear(g, x, g.parameter('k', draw(103, [8, 64])))];
  const row = storeRows(g, own, 'int8');
  const old = storedRows(g, { format: 'int8', bytes: g.reshape(past, [1, 'p', 8]), step: g.reshape(past_step, [1, 'p', 1]) });
  const heads = other ? g.scale(g.reshape(query, [1, 1, 1, 6, 8]), 2) : g.reshape(query, [1, 1, 1, 3, 8]);
  if (!('bytes' in row)) throw new TypeError(`8-bit rows have a step, got ${row.format}`);
  return { scores: old.score(heads), bytes: row.bytes, step: row.step };
});

t.test('roundings of neighbouring pieces become one, and whole-number products scale their sums', async (t) => {
  const passes: readonly Pass[] = [fuseTransposedWeights, mergeProjections, mergeRoundings, fuseIntegerProducts];
  for (const g of [roundings(false), roundings(false, true)]) {
    const merged = runPasses(g, passes);
    inferShapes(merged);
    t.same([count(g, 'QuantizeLinear'), count(merged, 'QuantizeLinear'), count(merged, 'Cast'), count(merged, 'MatMulIntegerToFloat')], [2, 1, 0, 1]);
    const feeds = { x: draw(105, [1, 1, 64]), past: tensor('uint8', [5, 8], Uint8Array.from({ length: 40 }, (_, i) => (i * 37) % 256)), past_step: draw(107, [5, 1]) };
    const [want, got] = [await runSubgraph(g, feeds, { threads: 1 }), await runSubgraph(merged, feeds, { threads: 1 })];
    t.ok(distance(floats(got.scores), floats(want.scores)) < 1e-6, 'scores');
    t.same([got.bytes?.data, got.step?.data, got.bytes?.shape, got.step?.shape], [want.bytes?.data, want.step?.data, want.bytes?.shape, want.step?.shape], 'the row');
    const appends = [{ input: 'past', output: 'bytes' }, { input: 'past_step', output: 'step' }];
    t.equal(appendsAreOrdered(runPasses(g, [fuseTransposedWeights, mergeProjections]), appends), false);
    t.equal(appendsAreOrdered(merged, appends), true, 'queries and row are rounded by one node');
  }
  t.equal(count(runPasses(roundings(true), passes), 'QuantizeLinear'), 2, 'rows that were changed first stay apart');
});

/** Scores of three heads against cached rows in one array or two, half-width or not, and against rows that the graph makes. */
const scored = (dtype: 'float32' | 'float16'): Subgraph => record('scored', {
  query: { dtype: 'float32', shape: [1, 1, 1, 3, 8] }, other: { dtype: 'float32', shape: [1, 1, 1, 3, 5] }, past: { dtype, shape: [1, 'p', 8] }, more: { dtype: 'float32', shape: ['p', 5] },
}, (g, { query, other, past, more }) => {
  const rows = storedRows(g, { format: dtype, values: past }), score = (reader: RowReader<Value>, own: Value): Value => reader.score(own);
  const one = score(rows, g.scale(query, 0.5)), made = score(plainRows(g, g.scale(rows.widen(), 3)), query);
  return { one, made, both: g.add(score(rows, query), score(plainRows(g, g.reshape(more, [1, 'p', 5])), other)), weighed: rows.weigh(g.softmax(one)) };
});

t.test('pieces of a piece are cut by one node', async (t) => {
  const ports = { x: { dtype: 'float32', shape: [1, 1, 64] }, past: { dtype: 'float32', shape: ['p', 5] } } as const;
  const cut = (axis: 0 | 2, isRead: boolean): Subgraph => record('cut', ports, (g, { x, past }) => {
    const weight = (seed: number, rows: number): Value => linear(g, x, g.parameter(`w${seed}`, draw(seed, [rows, 64])));
    const [query, latent] = [weight(131, 5), weight(132, 10)];
    const [first, second] = g.split(axis === 2 ? latent : g.reshape(latent, [10, 1, 1]), axis, [5, 5]);
    const scores = g.einsum('bsn,tn->bst', query, past);
    return { first: first!, second: second!, scores: isRead ? g.add(scores, g.sum(latent)) : scores };
  });
  const projections = [fuseTransposedWeights, mergeProjections], g = cut(2, false), merged = runPasses(g, [...projections, mergeSplits]);
  inferShapes(merged);
  t.same([g, runPasses(g, projections), merged].map((graph) => count(graph, 'Split')), [1, 2, 1]);
  const feeds = { x: draw(133, [1, 1, 64]), past: draw(134, [7, 5]) };
  const [want, got] = [await runSubgraph(g, feeds, { threads: 1 }), await runSubgraph(merged, feeds, { threads: 1 })];
  for (const { name } of g.outputs) t.ok(distance(floats(got[name]), floats(want[name])) < 1e-6, name);
  const appends = [{ input: 'past', output: 'second' }];
  t.same([runPasses(g, projections), merged].map((graph) => appendsAreOrdered(graph, appends)), [false, true], 'queries and pieces of the row come out of one node');
  for (const other of [cut(0, false), cut(2, true)]) t.equal(count(runPasses(other, [...projections, mergeSplits]), 'Split'), 2, 'not along another axis, not a piece that is read whole');

  // Heads of [b, s, h, n] are split along axis 2 too, which is not the last there.
  const heads = record('heads', { x: { dtype: 'float32', shape: [1, 1, 5, 3] } }, (h, { x: rows }) => {
    const [first, rest] = h.split(rows, 2, [2, 3]), [second, third] = h.split(rest!, 2, [2, 1]);
    return { first: first!, second: second!, third: third! };
  });
  const x = draw(135, [1, 1, 5, 3]), whole = mergeSplits(heads);
  t.equal(count(whole, 'Split'), 1);
  t.same(await runSubgraph(whole, { x }, { threads: 1 }), await runSubgraph(heads, { x }, { threads: 1 }));
});

t.test('rows of a cache stand on the left of scores', async (t) => {
  for (const dtype of ['float32', 'float16'] as const) {
    const g = scored(dtype), byRows = scoreByRows(g);
    inferShapes(byRows);
    t.equal(count(byRows, 'FusedMatMul'), 3, 'one and both, not what the graph makes');
    t.equal(count(byRows, 'MatMul'), count(g, 'MatMul') - 3, 'sums by weights stay');
    t.equal(count(byRows, 'Transpose'), 3, 'rows that are made, one, and of a sum only the sum');
    const past = draw(111, [1, 11, 8]), feeds = { query: draw(112, [1, 1, 1, 3, 8]), other: draw(113, [1, 1, 1, 3, 5]), past: dtype === 'float32' ? past : toDType(past, dtype), more: draw(114, [11, 5]) };
    const [want, got] = [await runSubgraph(g, feeds, { threads: 1 }), await runSubgraph(byRows, feeds, { threads: 1 })];
    for (const { name } of g.outputs) t.ok(distance(floats(got[name]), floats(want[name])) < 1e-6, `${dtype} ${name}`);
  }
});

/** One head, or three, over cached rows that come in blocks of 16 or as they are. */
const attending = (heads: number, tokens: string, dtype: 'float32' | 'float16'): Subgraph => record('attending', {
  query: { dtype: 'float32', shape: [1, 1, 1, heads, 8] }, past: { dtype, shape: [tokens, 8] },
}, (g, { query, past }) => {
  const rows = storedRows(g, { format: dtype, values: g.reshape(past, [1, tokens, 8]) });
  return { attended: rows.weigh(g.softmax(rows.score(query))) };
});

t.test('a single row goes over a long cache in blocks of it', async (t) => {
  for (const dtype of ['float32', 'float16'] as const) {
    const g = attending(1, '16*p', dtype), blocked = runPasses(g, [blockSingleRows, mergeReshapes]);
    inferShapes(blocked);
    t.same([count(blocked, 'FusedMatMul'), count(blocked, 'MatMul'), count(blocked, 'ReduceSum')], [1, 1, 1], `${dtype}: scores and sums`);
    t.ok(count(blocked, 'Reshape') < count(runPasses(g, [blockSingleRows]), 'Reshape'), 'views of views are one');
    const past = draw(141, [48, 8]), feeds = { query: draw(142, [1, 1, 1, 1, 8]), past: dtype === 'float32' ? past : toDType(past, dtype) };
    const [want, got] = [await runSubgraph(g, feeds, { threads: 1 }), await runSubgraph(blocked, feeds, { threads: 1 })];
    t.same(got.attended?.shape, want.attended?.shape);
    t.ok(distance(floats(got.attended), floats(want.attended)) < 1e-6);
  }
  for (const other of [attending(3, '16*p', 'float32'), attending(1, 'p', 'float32'), attending(1, '8*p', 'float32')]) {
    t.equal(blockSingleRows(other), other, 'not several heads, nor rows that need not come in blocks');
  }
  const odd = record('odd', { x: { dtype: 'float32', shape: ['p', 2, 3] } }, (g, { x }) => ({ y: g.reshape(g.exp(g.reshape(x, ['p', 6])), ['p', 3, 2]) }));
  t.equal(mergeReshapes(odd), odd, 'nothing meets');
});

/** Three heads with a latent [16 p, 7] each, in an array of its own, as a kernel reads them: cut, scored, weighed and joined along `axis`. */
const pieced = (axis: 2 | 4): Subgraph => record('pieced', { query: { dtype: 'float32', shape: [3, 7] } }, (g, { query }) => {
  const pieces = g.split(g.reshape(query, [1, 1, 3, 1, 7]), 2, [1, 1, 1]);
  return { attended: g.concat(axis, pieces.map((own, i) => {
    const rows = plainRows(g, g.reshape(g.input({ name: `past_${i}`, dtype: 'float32', shape: ['16*p', 7] }), [1, '16*p', 7]));
    return rows.weigh(g.softmax(rows.score(own)));
  })) };
});

t.test('views of pieces before the cut, sums of blocks behind the join', async (t) => {
  const blocks = [blockSingleRows, mergeReshapes], every = [blockSingleRows, sumBlocksOnce, mergeReshapes, viewBeforeSplit];
  const feeds = { query: draw(151, [3, 7]), ...Object.fromEntries([0, 1, 2].map((i) => [`past_${i}`, draw(152 + i, [48, 7])])) };
  for (const [axis, sums, views] of [[2, 1, 5], [4, 3, 3]] as const) {
    const g = pieced(axis), before = runPasses(g, blocks), after = runPasses(g, every);
    inferShapes(after);
    t.same([count(before, 'ReduceSum'), count(after, 'ReduceSum')], [3, sums], 'sums of widths beside each other stay');
    t.equal(count(before, 'Reshape') - count(after, 'Reshape'), views);
    const elsewhere = { ...before, constants: new Map([...before.constants].map(([name, one]) => [name, name.endsWith('.axis') ? { dtype: 'int64', shape: [1], data: BigInt64Array.of(1n) } as const : one])) };
    t.equal(sumBlocksOnce(elsewhere), elsewhere, 'sums over another axis stay');
    const [want, got] = [await runSubgraph(g, feeds, { threads: 1 }), await runSubgraph(after, feeds, { threads: 1 })];
    t.same(got.attended?.shape, want.attended?.shape);
    t.ok(distance(floats(got.attended), floats(want.attended)) < 1e-6);
  }

  const cut = (make: (g: Recorder, x: Value) => readonly Value[]): Subgraph =>
    record('cut', { x: { dtype: 'float32', shape: [2, 3, 5] } }, (g, { x }) => Object.fromEntries(make(g, x).map((piece, i) => [`y${i}`, g.softmax(piece)])));
  const viewed = (g: Recorder, pieces: readonly Value[], shape: readonly Dim[]): Value[] => pieces.map((piece) => g.reshape(piece, shape));
  for (const [what, other] of Object.entries({
    'an axis behind a longer one': cut((g, x) => viewed(g, g.split(g.reshape(x, [2, 3, 5]), 1, [1, 1, 1]), [1, 10])),
    'unequal pieces': cut((g, x) => g.split(g.reshape(x, [1, 6, 5]), 1, [2, 4]).map((piece, i) => g.reshape(piece, [1, i === 0 ? 10 : 20]))),
    'a piece that is read as it is': cut((g, x) => g.split(g.reshape(x, [1, 6, 5]), 1, [3, 3]).map((piece, i) => (i === 0 ? piece : g.reshape(piece, [1, 15])))),
    'views that count': cut((g, x) => viewed(g, g.split(g.reshape(x, [1, 6, 5]), 1, [3, 3]), [3, 5])),
    'an input of unknown shape': cut((g, x) => viewed(g, g.split(x, 0, [1, 1]), [1, 15])),
  })) t.equal(viewBeforeSplit(other), other, what);
  const alike = cut((g, x) => viewed(g, g.split(g.reshape(x, [1, 6, 5]), 1, [3, 3]), [1, 5, 3])), once = viewBeforeSplit(alike), x = draw(155, [2, 3, 5]);
  t.equal(count(once, 'Reshape'), 1);
  t.same(await runSubgraph(once, { x }, { threads: 1 }), await runSubgraph(alike, { x }, { threads: 1 }));
});

t.test('rows appended in place: what is read before it is written is found', async (t) => {
  const rows = { input: 'past', output: 'row' }, ports = { x: { dtype: 'float32', shape: [1, 1, 64] }, past: { dtype: 'float32', shape: ['p', 5] } } as const;
  const weight = draw(87, [5, 64]);
  const tied = record('tied', ports, (g, { x, past }) => {
    const [query, row] = g.split(g.concat(2, [linear(g, x, g.parameter('w', weight)), linear(g, x, g.parameter('v', draw(89, [5, 64])))]), 2, [5, 5]);
    return { row: row!, logits: g.einsum('bsn,tn->bst', query!, past) };
  });
  const loose = record('loose', ports, (g, { x, past }) => ({ row: linear(g, x, g.parameter('w', weight)), logits: g.einsum('bsn,tn->bst', linear(g, x, g.parameter('v', weight)), past) }));
  t.equal(appendsAreOrdered(tied, [rows]), true);
  t.equal(appendsAreOrdered(loose, [rows]), false, 'scores do not wait for the row');
  t.equal(appendsAreOrdered(tied, [{ input: 'past', output: 'none' }]), false);

  // A graph is only believed when it has been seen to write before it reads.
  const layout = [{ layer: 0, name: 'latent', dtype: 'float32', row: [1] }] as const;
  const engine = (order: 'write first' | 'read first' | 'no write'): Runtime => ({
    inputs: ['ids', 'positions', 'past.0.latent'], outputs: ['logits', 'present.0.latent'], release: async () => undefined,
    async run(feeds, fetches) {
      const row = Array.isArray(fetches) ? undefined : (fetches as Fetches)['present.0.latent'];
      const write = (): void => { floats(row ?? undefined)[0] = 7; };
      if (order === 'write first') write();
      const sum = floats(feeds['past.0.latent']).reduce((a, b) => a + b, 0);
      if (order === 'read first') write();
      return { logits: tensor('float32', [1], Float32Array.of(sum)) };
    },
  });
  t.equal(await appendsInPlace(engine('write first'), layout), true);
  t.equal(await appendsInPlace(engine('read first'), layout), false);
  t.equal(await appendsInPlace(engine('no write'), layout), false);
});

t.test('sessions run their graphs through passes', async (t) => {
  const model = await openModel(zooPath('llama-gqa-tied'));
  const ids = Array.from({ length: 23 }, (_, i) => 3 + ((i * 31) % 90));
  const plain = openSession(model, { threads: 1 }), seen: string[] = [];
  t.teardown(() => plain.close());
  const want = floats(await plain.logits(plain.createCache(), ids));
  for (const [format, most] of [['f32', 1e-6], ['int8', 0.03], ['int8-dynamic', 0.05], ['int4-mixed', 0.2], ['int4-symmetric', 0.35], ['int4', 0.35]] as const) {
    const own: Pass = (subgraph) => {
      seen.push(subgraph.name);
      return subgraph;
    };
    const session = openSession(model, { threads: 1, passes: [own, ...weightPasses(format), fuseSkipNorms, mergeProjections] });
    const got = floats(await session.logits(session.createCache(), ids)), gap = distance(got, want);
    t.ok(gap < most, `${format}: ${gap}`);
    if (format !== 'f32') t.ok(gap > 1e-5, 'it is not float32 that ran');
    // Decode sees one token at a time through another graph; only int8-dynamic rounds inputs otherwise there.
    const cache = session.createCache(), steps = new Float32Array(got.length);
    for (const [i, id] of ids.entries()) steps.set(await session.step(cache, id), i * model.config.vocab);
    t.ok(distance(steps, want) < most, `${format} steps: ${distance(steps, want)}`);
    await session.close();
  }
  t.ok(seen.length >= 12, 'every graph of every session');
  t.same(Object.keys(weightFormats), ['f32', 'int8', 'int4', 'int4-symmetric', 'int4-mixed', 'int8-dynamic']);
});

t.test('calibrated rounding', async (t) => {
  const inputs = 67, outputs = 71, tokens = 509, weight = draw(91, [outputs, inputs]);
  // Inputs that move together: 11 directions and a little noise.
  const mix = draw(92, [11, inputs]), latent = draw(93, [tokens, 11]), noise = draw(94, [tokens, inputs], 0.1);
  const x = Float32Array.from(noise.data, (v, at) => {
    let sum = v;
    for (let d = 0; d < 11; d++) sum += latent.data[Math.floor(at / inputs) * 11 + d]! * mix.data[d * inputs + (at % inputs)]!;
    return sum;
  });
  const g = layer(weight), moments = inputMoments(g);
  t.same([...moments.outputs], [['weight', moments.subgraph.outputs[0]?.name]]);
  const sums = floats(Object.values(await runSubgraph(moments.subgraph, { x: tensor('float32', [1, tokens, inputs], x) }, { threads: 1 }))[0]);
  const byHand = Float64Array.from({ length: inputs ** 2 }, (_, at) => {
    let sum = 0;
    for (let token = 0; token < tokens; token++) sum += x[token * inputs + Math.floor(at / inputs)]! * x[token * inputs + (at % inputs)]!;
    return sum;
  });
  t.ok(distance(sums, byHand) < 1e-6, 'moments are x x^T summed over tokens');

  const gemm = { multiply: async <A extends Float32Array | Float64Array>(a: Matrix<A>, b: Matrix<A>, options: GemmOptions = {}) => multiplyPlain(a, b, options) };
  const matrices = { identity: identity(inputs), correlated: matrix(inputs, inputs, byHand) };
  const want = times(x, weight.data, inputs, outputs);
  for (const rounding of roundingNames) {
    const options = { bits: 4, blockSize: 16, rounding } as const;
    const plain = quantiseBlocks(weight.data, outputs, inputs, false, options);
    const same = await compensatedCodes(weight.data, outputs, inputs, matrices.identity, { ...options, gemm });
    t.ok(Buffer.compare(same.codes, plain.codes) === 0 && distance(same.scales, plain.scales) === 0, 'independent inputs leave nothing to make up for');
    t.same(same.zeros, plain.zeros);
    const made = await compensatedCodes(weight.data, outputs, inputs, matrices.correlated, { ...options, gemm });
    const [nearest, calibrated] = [plain, made].map((codes) => distance(times(x, dequantiseBlocks(codes), inputs, outputs), want));
    t.ok(calibrated! < 0.6 * nearest!, `${rounding}: ${calibrated} against ${nearest}`);
    t.ok(Math.abs(distance(dequantiseBlocks(made), weight.data) - made.relativeError) < 1e-6);
  }
  const options = { bits: 4, blockSize: 16, rounding: 'search-asymmetric', gemm } as const;
  await t.rejects(compensatedCodes(weight.data, outputs, inputs, identity(3), options), { message: 'compensatedCodes: moments must be [67, 67], got [3, 3]' });
  await t.rejects(compensatedCodes(new Float32Array(5), outputs, inputs, identity(inputs), options), /weights must be \[71, 67\], got 5 numbers/);
  await t.rejects(compensatedCodes(weight.data.map((v, i) => (i === 70 ? NaN : v)), outputs, inputs, identity(inputs), options), /weights must be finite, got NaN at output 1, input 3/);

  const graph = block('s'), feeds = [101, 103].map((seed) => ({ x: draw(seed, [1, 53, 64]) }));
  const progress: number[] = [];
  const codes = await calibratedCodes(graph, feeds, { threads: 1, momentBytes: 1, onProgress: (done, all) => progress.push(done, all) });
  t.same([...codes.keys()], ['w0', 'w1', 'w2', 'gate', 'up'], 'no block size fits the 97 inputs of the last');
  t.same(progress.slice(-2), [5, 5]);
  t.ok([...codes.values()].every(({ zeros }) => zeros === null), 'no zero points are stored');
  const together = await calibratedCodes(graph, feeds, { threads: 1 });
  t.ok([...codes].every(([name, { codes: bytes }]) => Buffer.compare(bytes, together.get(name)!.codes) === 0), 'groups change nothing');
  const quantised = quantiseWeights(graph, { bits: 8, codesOf: ({ name }) => codes.get(name) ?? null });
  t.same(quantised.quantised.map(({ bits }) => bits), [4, 4, 4, 4, 4]);
  inferShapes(quantised);
  t.throws(() => quantiseWeights(layer(draw(1, [73, 64])), { bits: 4, codesOf: () => codes.get('w0') ?? null }), /codes of weight must be \[73, 64\], got \[67, 64\]/);
  await t.rejects(calibratedCodes(graph, []), /at least one window of text, got none/);
});

t.test('a model with calibrated weights', async (t) => {
  const model = await openModel(zooPath('llama-gqa-tied')), { vocab } = model.config;
  const windows = [1, 2, 3].map((seed) => Array.from({ length: 61 }, (_, i) => (i * 31 * seed + seed) % vocab));
  const codes = await calibrateWeights(model, windows, { threads: 1 }), pass = await weightCodesPass(model, codes);
  const ids = Array.from({ length: 59 }, (_, i) => (i * 17 + 5) % vocab);
  const logits = async (passes: readonly Pass[]): Promise<Float32Array> => {
    const session = openSession(model, { threads: 1, passes });
    try {
      return floats(await session.logits(session.createCache(), ids));
    } finally {
      await session.close();
    }
  };
  const want = await logits([]), bits: number[] = [];
  const own: Pass = (graph) => {
    const quantised = quantiseWeights(graph, { bits: 4, blockSize: 32, bitsOf: ({ name }) => (name.includes('embed') ? 8 : 4) });
    bits.push(...quantised.quantised.map((weight) => weight.bits));
    return quantised;
  };
  const [nearest, calibrated] = [distance(await logits([own]), want), distance(await logits([pass]), want)];
  t.ok(calibrated < 0.95 * nearest, `${calibrated} against ${nearest}`);
  t.ok(bits.includes(8) && bits.includes(4));
  const changed: Pass = (graph) => ({ ...graph, constants: new Map([...graph.constants].map(([name, c]) => [name, name.includes('mlp.up') ? draw(7, c.shape.map(Number)) : c])) });
  t.ok(distance(await logits([changed, pass]), await logits([changed])) < 2 * nearest, 'codes are not put in the place of other numbers');
  await withDirectory(async (directory) => {
    const file = join(directory, 'codes.safetensors');
    await saveWeightCodes(file, codes);
    const loaded = await loadWeightCodes(file, model);
    t.same([...loaded.codes], [...codes.codes], 'a file gives back what was saved');
    const other = await openModel(zooPath('llama-bias'));
    await t.rejects(loadWeightCodes(file, other), /model of .* must be [0-9a-f]{64}, got [0-9a-f]{64}/);
    await t.rejects(weightCodesPass(other, loaded), /codes must be those of .*llama-bias, got another model's/);
    const bytes = readFileSync(file);
    writeFileSync(file, bytes.subarray(0, bytes.length - 5));
    await t.rejects(loadWeightCodes(file, model), /codes.safetensors/, 'a truncated file');
    await writeSafetensors(join(directory, 'weights.safetensors'), tensorSources([['a', draw(1, [3])]]));
    await t.rejects(loadWeightCodes(join(directory, 'weights.safetensors'), model), /kind of .* must be attention-surgery weight codes, got none/);
    // A scale short: the metadata say what every tensor must hold.
    writeFileSync(file, bytes);
    const { metadata } = await openSafetensors(file), [first = ''] = codes.codes.keys();
    const tensors = [...await readSafetensors(file)].map(([name, tensor]) => (name === `${first}.scales` ? [name, draw(1, [2, 2])] as const : [name, tensor] as const));
    await writeSafetensors(join(directory, 'short.safetensors'), tensorSources(tensors), { metadata });
    await t.rejects(loadWeightCodes(join(directory, 'short.safetensors'), model), /\.weight\.scales of .* must be float32 with \d+ elements, got float32 \[2,2\]/);
  });
  await t.rejects(calibrateWeights(model, [[1], []]), /windows must have 1\.\.\d+ tokens, got 1, 0/);
  await withDirectory(async (directory) => {
    const out = join(directory, 'converted');
    await convert(model, out, { plan: 'uniform', factor: 'joint', budget: { pairs: 2, rank: 10 } });
    const converted = await openModel(out), made = await calibrateWeights(converted, windows, { threads: 1 }), marked = await weightCodesPass(converted, made);
    t.ok([...made.codes.keys()].some((name) => name.includes('query_and_row_proj')), 'what only steps hold has codes');
    const [exact, close] = await Promise.all([[], [marked]].map(async (passes) => {
      const session = openSession(converted, { threads: 1, passes });
      try {
        return floats(await session.logits(session.createCache(), ids));
      } finally {
        await session.close();
      }
    }));
    t.ok(distance(close!, exact!) < 2 * nearest, 'a converted model too, whose short contexts lie in one array');
    const held: string[] = [], noting: Pass = (graph) => {
      const quantised = marked(graph);
      held.push(...[...quantised.constants.keys()].filter((name) => name.includes('query_and_row_proj')));
      return quantised;
    };
    const session = openSession(converted, { threads: 1, passes: [noting] });
    try {
      const cache = session.createCache(), prompt = ids.slice(0, -1);
      await session.prefill(cache, prompt);
      t.ok(distance(await session.step(cache, ids.at(-1)!), exact!.subarray(-vocab)) < 2 * nearest, 'its steps');
    } finally {
      await session.close();
    }
    t.ok(held.some((name) => name.endsWith('.codes4')) && !held.some((name) => name.endsWith('.codes8')), 'merged weights of a step have 4 bits');
  });
});

t.test('rotation of the residual stream changes no result', async (t) => {
  for (const size of [1, 6, 7, 64, 45, 576]) {
    const rotation = mixingRotation(size, 3), spread = new Float64Array(size);
    spread[size >> 1] = 1;
    rotation.apply(spread);
    t.ok(Math.abs(Math.hypot(...spread) - 1) < 1e-12, `${size}: lengths stay`);
    t.ok(Math.max(...spread.map(Math.abs)) < 1.5 / Math.sqrt(size), 'one element is spread over all');
    const power = size & -size, odd = size / power, n = Math.floor((size >> 1) / power);
    const magnitudes = Array.from({ length: size }, (_, i) => {
      const k = Math.floor(i / power);
      return Math.abs(Math.sqrt((k === 0 ? 1 : 2) / size) * Math.cos((Math.PI * k * (2 * n + 1)) / (2 * odd)));
    });
    t.ok(Math.max(...magnitudes.map((m, i) => Math.abs(m - Math.abs(spread[i]!)))) < 1e-12, `${size}: as spelled out`);
    const a = draw(1, [3, size]), b = draw(2, [3, size]), dots = (x: Float32Array, y: Float32Array) => times(x, y, size, 3);
    t.ok(distance(dots(rotateRows(rotation, a.data, null), rotateRows(rotation, b.data, null)), dots(a.data, b.data)) < 1e-6, 'angles stay');
    const columns = rotateColumns(rotation, Float32Array.from({ length: 3 * size }, (_, i) => a.data[(i % 3) * size + Math.floor(i / 3)]!));
    t.ok(distance(Float32Array.from({ length: 3 * size }, (_, i) => columns[(i % size) * 3 + Math.floor(i / size)]!), rotateRows(rotation, a.data, null)) < 1e-6);
  }
  for (const name of ['llama-gqa-tied', 'llama-bias', 'qwen2', 'qwen3', 'mistral-window']) {
    const model = await openModel(zooPath(name)), ids = Array.from({ length: 23 }, (_, i) => 3 + ((i * 31) % 90));
    let [rotated, graphs] = [0, 0];
    const rotate: Pass = (graph) => {
      const result = rotateResidual(graph);
      rotated += Number(result !== graph);
      graphs++;
      inferShapes(result);
      return result;
    };
    const plain = openSession(model, { threads: 1 }), turned = openSession(model, { threads: 1, passes: [rotate] });
    const want = floats(await plain.logits(plain.createCache(), ids));
    t.ok(distance(floats(await turned.logits(turned.createCache(), ids)), want) < 1e-5, name);
    const cache = turned.createCache();
    const steps = Float32Array.from((await Array.from(ids).reduce<Promise<number[][]>>(async (all, id) => [...await all, [...await turned.step(cache, id)]], Promise.resolve([]))).flat());
    t.ok(distance(steps, want) < 1e-5, `${name} steps`);
    t.ok(rotated === graphs && graphs > 1, 'every graph was understood');
    await plain.close();
    await turned.close();
  }
  const g = block('s');
  t.equal(rotateResidual(g), g, 'a graph without an embedding stays');
});
