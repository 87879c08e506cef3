import fc from 'fast-check';
import { EigenvalueDecomposition, Matrix as Oracle, SingularValueDecomposition } from 'ml-matrix';
import t, { type Test } from 'tap';
import { freeMemory } from '../lib/free-memory.ts';
import { cholesky, factorSpd, solveSpd } from '../lib/linalg/cholesky.ts';
import { tridiagonalEigh } from '../lib/linalg/divide-and-conquer.ts';
import { eigh } from '../lib/linalg/eigh.ts';
import { multiplyPlain, plainGemm, type Gemm } from '../lib/linalg/gemm.ts';
import { hermitianEigh } from '../lib/linalg/hermitian-eigh.ts';
import { fastWorkspace, plainWorkspace } from '../lib/linalg/householder-step.ts';
import {
  at, frobeniusNorm, fromRows, identity, matrix, scaleColumns, sliceColumns, sliceRows, subtract, takeColumns, toFloat32, toFloat64, transpose,
  zeros, type FloatArray, type Matrix,
} from '../lib/linalg/matrix.ts';
import { openGemm } from '../lib/linalg/onnx-gemm.ts';
import { orthonormalise } from '../lib/linalg/orthonormalise.ts';
import { randomisedSvd, truncatedSvd } from '../lib/linalg/randomised-svd.ts';
import { rebuild, svd, type Svd } from '../lib/linalg/svd.ts';
import { symmetricSqrt } from '../lib/linalg/symmetric-sqrt.ts';
import { normals, resumeRandom, seededRandom, type Random } from '../lib/random.ts';

const gemm = plainGemm;
const random = seededRandom(20240229);
const gaussian = (rows: number, cols: number, source: Random = random): Matrix => matrix(rows, cols, normals(source, rows * cols));
const build = (rows: number, cols: number, f: (r: number, c: number) => number): Matrix =>
  matrix(rows, cols, Float64Array.from({ length: rows * cols }, (_, i) => f(Math.floor(i / cols), i % cols)));
const symmetric = (n: number, f: (r: number, c: number) => number): Matrix => {
  const lower = build(n, n, (r, c) => (c <= r ? f(r, c) : 0));
  return build(n, n, (r, c) => at(lower, Math.max(r, c), Math.min(r, c)));
};
const largest = (values: Iterable<number>): number => {
  let max = 0;
  for (const x of values) max = Number.isNaN(x) ? Infinity : Math.max(max, Math.abs(x));
  return max;
};
const distance = (a: Matrix<FloatArray>, b: Matrix<FloatArray>): number => largest(subtract(toFloat64(a), toFloat64(b)).data);
const notOrthonormal = (q: Matrix): number => distance(multiplyPlain(q, q, { transposeA: true }), identity(q.cols));
const oracle = (a: Matrix): Oracle => Oracle.from1DArray(a.rows, a.cols, a.data);
const isDescending = (s: Float64Array): boolean => s.every((x, i) => x >= 0 && (i === 0 || x <= s[i - 1]!));
/** Rounding of a few operations per element on n-term sums. */
const rounding = (n: number): number => 8 * Math.max(n, 8) * Number.EPSILON;

t.test('random: the reference words, the same from the same state', async (t) => {
  // written by the C reference xoshiro128starstar.c
  const words = (state: [number, number, number, number]) => resumeRandom({ algorithm: 'xoshiro128**', words: state, spareNormal: null });
  const reference = words([0x964d4a0c, 0xd40ab895, 0xad7fdecb, 0x3006f0f0]);
  t.same(Array.from({ length: 4 }, () => reference.integer(2 ** 32)), [0xf1391922, 0x6fe53806, 0xa5be2840, 0xf510ee70]);
  const counting = words([1, 2, 3, 4]);
  t.same(Array.from({ length: 4 }, () => counting.integer(2 ** 32)), [11520, 0, 5927040, 70819200]);

  const a = seededRandom(7);
  a.normal();
  const b = resumeRandom(JSON.parse(JSON.stringify(a.state())));
  const draw = (r: Random) => [r.normal(), r.uniform(), r.integer(10), r.normal()];
  t.same(draw(a), draw(b), 'resumed in the middle of a pair of normals');
  t.notSame(draw(seededRandom(7)), draw(seededRandom(8)));
  t.throws(() => seededRandom(-1), { message: 'seededRandom: seed must be an integer in 0..4294967295, got -1' });
  t.throws(() => words([0, 0, 0, 0]), { message: /not all zero, got \[0, 0, 0, 0\]/ });
  t.throws(() => a.integer(0), { message: /below must be an integer in 1..4294967296, got 0/ });
});

t.test('random: moments within five standard errors', async (t) => {
  const r = seededRandom(3);
  const n = 100_003;
  const mean = (f: () => number) => Array.from({ length: n }, f).reduce((sum, x) => sum + x, 0) / n;
  const within = (value: number, expected: number, deviation: number, name: string) =>
    t.ok(Math.abs(value - expected) < (5 * deviation) / Math.sqrt(n), `${name} ${value}`);
  within(mean(() => r.uniform()), 0.5, Math.sqrt(1 / 12), 'uniform');
  within(mean(() => r.normal()), 0, 1, 'normal');
  within(mean(() => r.normal() ** 2), 1, Math.sqrt(2), 'variance');
  within(mean(() => r.normal() ** 4), 3, Math.sqrt(96), 'fourth moment');
  // 3/4 of the words fall short of a whole number of blocks here: bias would move the mean by a sixth of the range
  const below = 3 * 2 ** 30;
  within(mean(() => r.integer(below) / below), 0.5, Math.sqrt(1 / 12), 'integer');
});

t.test('matrix: slices, scaling and transposition', async (t) => {
  const a = fromRows([[1, 2, 3], [4, 5, 6]]);
  t.same(transpose(a), fromRows([[1, 4], [2, 5], [3, 6]]));
  t.same(sliceRows(a, 1, 2), fromRows([[4, 5, 6]]));
  t.same(sliceColumns(a, 1, 3), fromRows([[2, 3], [5, 6]]));
  t.same(takeColumns(a, [2, 0]), fromRows([[3, 1], [6, 4]]));
  t.same(scaleColumns(a, [1, 0, -1]), fromRows([[1, 0, -3], [4, 0, -6]]));
  t.equal(frobeniusNorm(a), Math.sqrt(91));
  t.ok(transpose(toFloat32(a)).data instanceof Float32Array);
  const big = gaussian(67, 101);
  t.same(transpose(transpose(big)), big);
  t.throws(() => matrix(2, 3, new Float64Array(5)), { message: 'matrix: data must hold 2 x 3 = 6 numbers, got 5' });
  t.throws(() => fromRows([[1, 2], [3]]), { message: /row 1 must have 2 numbers like row 0, got 1/ });
  t.throws(() => sliceColumns(a, 2, 4), { message: 'sliceColumns: range must satisfy 0 <= start <= end <= 3, got 2..4' });
  t.throws(() => takeColumns(a, [3]), { message: /column must be in 0..2, got 3/ });
  t.throws(() => at(a, 2, 0), { message: /inside 2 x 3, got \(2, 0\)/ });
});

t.test('gemm: loops and onnxruntime agree with ml-matrix, transposed or not, in both types', async (t) => {
  const engine = openGemm({ threads: 1 });
  for (const [m, k, n] of [[3, 5, 7], [61, 67, 71]] as const) {
    for (const transposeA of [false, true]) {
      for (const transposeB of [false, true]) {
        const a = transposeA ? gaussian(k, m) : gaussian(m, k);
        const b = transposeB ? gaussian(n, k) : gaussian(k, n);
        const [oa, ob] = [oracle(transposeA ? transpose(a) : a), oracle(transposeB ? transpose(b) : b)];
        const expected = matrix(m, n, Float64Array.from(oa.mmul(ob).to1DArray()));
        const name = `${m} x ${k} x ${n} ${transposeA} ${transposeB}`;
        for (const g of [plainGemm, engine]) {
          t.ok(distance(await g.multiply(a, b, { transposeA, transposeB }), expected) < k * rounding(k), name);
          const single = await g.multiply(toFloat32(a), toFloat32(b), { transposeA, transposeB });
          t.ok(single.data instanceof Float32Array);
          t.ok(distance(single, expected) < k * 2 ** -20, `${name} float32`);
        }
      }
    }
  }
  await engine.release();
  t.throws(() => multiplyPlain(gaussian(3, 5), gaussian(7, 2)), { message: 'multiply: inner sizes must agree, got 3 x 5 times 7 x 2' });
  const [double, single]: Matrix<FloatArray>[] = [gaussian(3, 5), toFloat32(gaussian(5, 2))];
  await t.rejects(engine.multiply(double!, single!), { message: /must be float32 or both float64, got one of each/ });
});

const checkEigh = async (t: Test, name: string, a: Matrix) => {
  const { values, vectors } = await eigh(a, { gemm });
  const n = a.rows;
  const norm = largest(values) || 1;
  const residual = subtract(multiplyPlain(a, vectors), scaleColumns(vectors, values));
  t.ok(largest(residual.data) / norm <= 1e-13, `${name}: residual ${largest(residual.data) / norm}`);
  t.ok(notOrthonormal(vectors) <= 1e-13, `${name}: orthogonality ${notOrthonormal(vectors)}`);
  t.ok(values.every((x, i) => i === 0 || x >= values[i - 1]!), `${name}: ascending`);
  const trace = Array.from({ length: n }, (_, i) => at(a, i, i)).reduce((sum, x) => sum + x / norm, 0);
  t.ok(Math.abs(values.reduce((sum, x) => sum + x / norm, 0) - trace) < n * rounding(n), `${name}: trace`);
  return values;
};

t.test('eigh: residual, orthogonality and order, on easy and hard matrices', async (t) => {
  const n = 131; // three levels of divide and conquer
  const q = (await eigh(symmetric(n, () => random.normal()), { gemm })).vectors;
  const withSpectrum = (f: (i: number) => number) => {
    const product = multiplyPlain(scaleColumns(q, Float64Array.from({ length: n }, (_, i) => f(i))), q, { transposeB: true });
    return symmetric(n, (r, c) => at(product, r, c));
  };
  const low = gaussian(n, 5);
  const cases: [string, Matrix][] = [
    ...[1, 2, 3, 47, 49, 97].map((size): [string, Matrix] => [`random ${size}`, symmetric(size, () => random.normal())]),
    ['zero', zeros(n, n)],
    ['identity', identity(n)],
    ['all ones', symmetric(n, () => 1)],
    ['rank 5', multiplyPlain(low, low, { transposeB: true })],
    ['Wilkinson', symmetric(n, (r, c) => (r === c ? Math.abs(r - (n - 1) / 2) : Number(r - c === 1)))],
    ['glued Wilkinson', symmetric(n, (r, c) => (r === c ? Math.abs((r % 21) - 10) : r - c === 1 ? (r % 21 === 0 ? 1e-10 : 1) : 0))],
    ['Laplace', symmetric(n, (r, c) => (r === c ? 2 : r - c === 1 ? -1 : 0))],
    ['Hilbert', symmetric(n, (r, c) => 1 / (r + c + 1))],
    ['tight clusters', withSpectrum((i) => (i % 5) + 1e-13 * i)],
    ['loose clusters', withSpectrum((i) => (i % 5) + 1e-8 * i)],
    ['plus or minus one', withSpectrum((i) => (i % 2) * 2 - 1)],
    ['fifteen decades', withSpectrum((i) => 10 ** ((-15 * i) / n))],
    ['graded', symmetric(n, (r, c) => 10 ** (-(r + c) / 10) * random.normal())],
    ['graded up', symmetric(n, (r, c) => 10 ** ((r + c) / 10) * random.normal())],
    ['diagonal', symmetric(n, (r, c) => (r === c ? random.normal() : 0))],
    ['nearly overflowing', symmetric(n, () => 1e300 * random.uniform())],
    ['nearly vanishing', symmetric(n, () => 1e-300 * random.normal())],
  ];
  for (const [name, a] of cases) await checkEigh(t, name, a);
  t.same((await eigh(fromRows([[2, 1], [1, 2]]), { gemm })).values.map((x) => Math.round(x * 1e14) / 1e14), Float64Array.of(1, 3));
});

t.test('eigh: values agree with ml-matrix and with the formula of a tridiagonal Toeplitz matrix', async (t) => {
  const a = symmetric(89, () => random.normal());
  const expected = Float64Array.from(new EigenvalueDecomposition(oracle(a), { assumeSymmetric: true }).realEigenvalues).sort();
  const { values } = await eigh(a, { gemm });
  t.ok(largest(values.map((x, i) => x - expected[i]!)) < largest(expected) * rounding(89));
  const n = 211;
  const toeplitz = await tridiagonalEigh({ diagonal: new Float64Array(n).fill(2), offDiagonal: new Float64Array(n).fill(-1) }, gemm);
  t.ok(largest(toeplitz.values.map((x, i) => x - 2 + 2 * Math.cos((Math.PI * (i + 1)) / (n + 1)))) < rounding(n));
});

t.test('eigh: only the lower triangle counts; bad input is refused', async (t) => {
  const a = symmetric(53, () => random.normal());
  const junk = build(53, 53, (r, c) => (c <= r ? at(a, r, c) : NaN));
  t.same(await eigh(junk, { gemm }), await eigh(a, { gemm }));
  await t.rejects(eigh(gaussian(3, 2), { gemm }), { message: 'eigh: matrix must be square, got 3 x 2' });
  await t.rejects(eigh(fromRows([[1, 0], [NaN, 1]]), { gemm }), { message: 'eigh: matrix must be finite, got NaN at row 1, column 0' });
});

t.test('householder step: vectors in WebAssembly agree with plain loops, even and odd', async (t) => {
  for (const n of [2, 3, 61, 62]) {
    for (const rows of [0, 1, n - 1]) {
      const plain = plainWorkspace(n);
      const fast = fastWorkspace(n);
      if (fast === null) {
        t.comment('skipped: this host has no WebAssembly vectors');
        return;
      }
      for (const name of ['block', 'v', 'w', 'x'] as const) {
        plain[name].set(normals(random, plain[name].length));
        if (name === 'x') plain.x[rows] = 0;
        fast[name].set(plain[name]);
      }
      plain.step(rows);
      fast.step(rows);
      const lower = (block: Float64Array) => build(rows, rows, (r, c) => (c <= r ? block[r * n + c]! : 0));
      t.ok(distance(lower(fast.block), lower(plain.block)) < rounding(1), `block, ${rows} of ${n}`);
      t.ok(largest(fast.y.subarray(0, rows).map((x, i) => x - plain.y[i]!)) < 4 * rounding(n), `product, ${rows} of ${n}`);
    }
  }
  t.equal(fastWorkspace(40_000), null, 'beyond 4 GiB');
});

t.test('hermitianEigh: A V = V diag(values), V unitary', async (t) => {
  for (const [n, k] of [[1, 1], [2, 2], [3, 1], [47, 47], [61, 61], [61, 2], [61, 0]] as const) {
    const [x, y] = [gaussian(n, k), gaussian(n, k)]; // A = (x + i y) (x + i y)^*
    const times = (p: Matrix, q: Matrix) => multiplyPlain(p, q, { transposeB: true });
    const plus = (p: Matrix, q: Matrix): Matrix => matrix(p.rows, p.cols, p.data.map((v, i) => v + q.data[i]!));
    const a = { real: plus(times(x, x), times(y, y)), imaginary: subtract(times(y, x), times(x, y)) };
    const { values, vectors: { real: u, imaginary: v } } = await hermitianEigh(a, { gemm });
    const norm = largest(values) || 1;
    const real = subtract(subtract(multiplyPlain(a.real, u), multiplyPlain(a.imaginary, v)), scaleColumns(u, values));
    const imaginary = subtract(plus(multiplyPlain(a.real, v), multiplyPlain(a.imaginary, u)), scaleColumns(v, values));
    t.ok(largest([...real.data, ...imaginary.data]) / norm < rounding(n), `residual, n ${n} rank ${k}`);
    const inner = (p: Matrix, q: Matrix) => multiplyPlain(p, q, { transposeA: true });
    t.ok(distance(plus(inner(u, u), inner(v, v)), identity(n)) < rounding(n), `unitary, real part, n ${n} rank ${k}`);
    t.ok(distance(inner(u, v), inner(v, u)) < rounding(n), `unitary, imaginary part, n ${n} rank ${k}`);
    t.ok(values.every((value, i) => i === 0 || value >= values[i - 1]!));
    t.equal(values.filter((value) => Math.abs(value) > norm * rounding(n)).length, Math.min(n, k), 'rank');
  }
  const pauli = await hermitianEigh({ real: zeros(2, 2), imaginary: fromRows([[0, -1], [1, 0]]) }, { gemm });
  t.ok(largest(pauli.values.map((x, i) => x - [-1, 1][i]!)) < rounding(2));
  await t.rejects(hermitianEigh({ real: zeros(2, 2), imaginary: zeros(3, 3) }, { gemm }), { message: /must have one size, got 2 and 3/ });
});

t.test('cholesky, solveSpd, symmetricSqrt', async (t) => {
  for (const n of [1, 2, 61, 151]) {
    const x = gaussian(n, n + 3);
    const a = multiplyPlain(x, x, { transposeB: true });
    const lower = await cholesky(a, { gemm });
    t.ok(lower.data.every((value, i) => i % n <= Math.floor(i / n) || value === 0), 'lower');
    t.ok(distance(multiplyPlain(lower, lower, { transposeB: true }), a) < largest(a.data) * rounding(n));
    const b = gaussian(n, 3);
    const solution = await solveSpd(a, b, { gemm, ridge: 0.25 });
    const damped = matrix(n, n, a.data.map((value, i) => value + (i % (n + 1) === 0 ? 0.25 : 0)));
    const residual = distance(multiplyPlain(damped, solution), b) / (largest(a.data) * n * largest(solution.data));
    t.ok(residual < rounding(n), `backward error ${residual}`);
    const { root, inverseRoot, rank } = await symmetricSqrt(a, { gemm });
    t.equal(rank, n);
    t.ok(distance(multiplyPlain(root, root), a) < largest(a.data) * n * rounding(n));
    t.ok(distance(transpose(root), root) < largest(root.data) * rounding(n));
    t.ok(distance(multiplyPlain(root, inverseRoot), identity(n)) < 1e-9);
  }
  const x = gaussian(41, 17);
  const singular = multiplyPlain(x, x, { transposeB: true });
  const { root, inverseRoot, rank } = await symmetricSqrt(singular, { gemm });
  t.equal(rank, 17);
  t.ok(distance(multiplyPlain(multiplyPlain(root, inverseRoot), root), root) < 1e-12, 'pseudo-inverse');
  // an ill-conditioned system: the refined solution is backward stable, whatever the condition
  const hilbert = symmetric(11, (r, c) => 1 / (r + c + 1));
  const right = gaussian(11, 2);
  const solution = await solveSpd(hilbert, right, { gemm });
  t.ok(distance(multiplyPlain(hilbert, solution), right) < 11 * largest(solution.data) * rounding(11), 'Hilbert matrix');

  const indefinite = symmetric(97, (r, c) => (r === c ? (r === 83 ? -1 : 1) : 0));
  await t.rejects(cholesky(indefinite, { gemm }), { message: 'cholesky: matrix must be positive definite, got pivot -1 in row 83' });
  await t.rejects(solveSpd(indefinite, zeros(97, 1), { gemm, ridge: 0.5 }), { message: /got pivot -0.5 in row 83 with ridge 0.5/ });
  await t.rejects(solveSpd(identity(3), zeros(2, 1), { gemm }), { message: /must have 3 rows like the matrix, got 2/ });
  await t.rejects(symmetricSqrt(indefinite, { gemm }), { message: /must be positive semi-definite, got eigenvalue -/ });
  t.equal((await symmetricSqrt(indefinite, { gemm, noise: 1 })).rank, 96, 'a negative eigenvalue within the noise counts as zero');
});

t.test('cholesky and solveSpd of matrices whose intermediate results are given back', async (t) => {
  const n = 760, fast = openGemm({ threads: 1 }); // 4.6 MB
  const x = gaussian(n, n + 3), b = gaussian(n, 761);
  const a = await fast.multiply(x, x, { transposeB: true });
  const before = a.data.slice();
  const solution = await solveSpd(a, b, { gemm: fast, ridge: 0.25 });
  t.ok(Buffer.from(before.buffer).equals(Buffer.from(a.data.buffer)), 'the matrix is as it was');
  t.equal(b.data.length, n * 761, 'the right-hand side is there');
  for (let i = 0; i < n; i++) before[i * (n + 1)]! += 0.25;
  t.ok(distance(await fast.multiply(matrix(n, n, before), solution), b) < largest(before) * n * largest(solution.data) * rounding(n));
  const factored = await factorSpd(a, fast);
  t.ok(factored.definite && Buffer.from((await cholesky(a, { gemm: fast })).data.buffer).equals(Buffer.from(factored.lower.data.buffer)), 'one factor, with its inverse or without');
  await fast.release();
});

t.test('memory that is given back is gone, little stays', (t) => {
  const [large, small, own] = [new Float64Array(1e6), new Float32Array(10), new Float64Array(1e6)];
  freeMemory([large, large.subarray(5)]);
  freeMemory([small]);
  t.same([large.length, small.length, own.length], [0, 10, 1e6]);
  t.end();
});

t.test('orthonormalise: dependent columns are replaced, leading columns keep their span', async (t) => {
  const x = gaussian(67, 5);
  const repeated = takeColumns(x, [0, 1, 1, 2, 0, 3, 4]);
  const blank = matrix(67, 7, repeated.data.map((value, i) => (i % 7 === 3 ? 0 : value)));
  for (const y of [repeated, blank, scaleColumns(gaussian(67, 7), [1, 1e-5, 1e-10, 1e-14, 1, 1e5, 1e10])]) {
    const q = await orthonormalise(y, { gemm, random: seededRandom(5) });
    t.ok(notOrthonormal(q) < 2e-13);
    const first = sliceColumns(q, 0, 2);
    const target = sliceColumns(y, 0, 2);
    const projected = multiplyPlain(first, multiplyPlain(first, target, { transposeA: true }));
    t.ok(distance(projected, target) < 1e-12);
  }
  await t.rejects(orthonormalise(gaussian(3, 5), { gemm, random }), { message: /at least as many rows as columns, got 3 x 5/ });
});

const checkFactors = async (t: Test, name: string, { u, s, v }: Svd) => {
  t.ok(notOrthonormal(u) < 2e-13, `${name}: U ${notOrthonormal(u)}`);
  t.ok(notOrthonormal(v) < 2e-13, `${name}: V ${notOrthonormal(v)}`);
  t.ok(isDescending(s), `${name}: descending`);
};
const misfit = async (a: Matrix<FloatArray>, found: Svd): Promise<number> => frobeniusNorm(subtract(toFloat64(a), await rebuild(found, { gemm })));
/** A matrix with the given singular values and random factors. */
const withSingularValues = async (rows: number, cols: number, f: (i: number) => number): Promise<Matrix> => {
  const k = Math.min(rows, cols);
  const s = Float64Array.from({ length: k }, (_, i) => f(i));
  const u = await orthonormalise(gaussian(rows, k), { gemm, random });
  const v = await orthonormalise(gaussian(cols, k), { gemm, random });
  return rebuild({ u, s, v }, { gemm });
};

t.test('svd: full rank rebuilds, whatever the spectrum', async (t) => {
  const cases: [string, Matrix<FloatArray>][] = [
    ['1 x 1', gaussian(1, 1)],
    ['row', gaussian(1, 7)],
    ['column', gaussian(7, 1)],
    ['tall', gaussian(71, 29)],
    ['wide', gaussian(29, 71)],
    ['square', gaussian(61, 61)],
    ['float32', toFloat32(gaussian(37, 53))],
    ['zero', zeros(11, 7)],
    ['all ones', build(31, 17, () => 1)],
    ['rank 5', multiplyPlain(gaussian(61, 5), gaussian(5, 43))],
    ['orthogonal', await orthonormalise(gaussian(53, 53), { gemm, random })],
    ['nearly vanishing', matrix(19, 13, normals(random, 247).map((x) => x * 1e-300))],
    ['sixteen decades', await withSingularValues(67, 59, (i) => 10 ** ((-16 * i) / 59))],
    ['thirty decades', await withSingularValues(59, 67, (i) => 10 ** ((-30 * i) / 59))],
    ['stairs', await withSingularValues(67, 59, (i) => 10 ** (-3 * Math.floor(i / 11)))],
    ['cliff', await withSingularValues(67, 59, (i) => (i < 10 ? 1 : 1e-9))],
  ];
  for (const [name, a] of cases) {
    const found = await svd(a, { gemm });
    await checkFactors(t, name, found);
    const error = (await misfit(a, found)) / (frobeniusNorm(a) || 1);
    t.ok(error < 1e-12, `${name}: rebuilt to ${error}`);
    t.equal(found.s.length, Math.min(a.rows, a.cols));
  }
});

t.test('svd: small singular values are as good as large ones', async (t) => {
  const decades = (i: number) => 10 ** (-i / 6);
  const { s } = await svd(await withSingularValues(67, 61, decades), { gemm });
  // the input itself carries rounding of 2.2e-16 of the largest value
  t.ok(s.every((x, i) => Math.abs(x - decades(i)) < 5e-14), `absolute ${largest(s.map((x, i) => x - decades(i)))}`);
  const a = gaussian(73, 47);
  const expected = new SingularValueDecomposition(oracle(a)).diagonal;
  t.ok(largest((await svd(a, { gemm })).s.map((x, i) => x - expected[i]!)) < expected[0]! * rounding(73));
});

t.test('svd: a truncated result is optimal: its error is the root of the tail', async (t) => {
  const a = gaussian(47, 73);
  const { s } = await svd(a, { gemm });
  for (const rank of [1, 13, 46, 47]) {
    const found = await svd(a, { gemm, rank });
    await checkFactors(t, `rank ${rank}`, found);
    const tail = Math.hypot(...s.subarray(rank));
    t.ok(Math.abs((await misfit(a, found)) - tail) < frobeniusNorm(a) * rounding(73), `rank ${rank}`);
  }
  const graded = await withSingularValues(61, 67, (i) => 10 ** (-i / 5));
  const found = await svd(graded, { gemm, rank: 41 }); // beyond what one Gram matrix resolves
  await checkFactors(t, 'graded', found);
  t.ok((await misfit(graded, found)) < 2 * 10 ** (-41 / 5));
  await t.rejects(svd(a, { gemm, rank: 48 }), { message: 'svd: rank must be an integer in 1..47 for a 47 x 73 matrix, got 48' });
  await t.rejects(svd(zeros(0, 3), { gemm }), { message: 'svd: matrix must not be empty, got 0 x 3' });
  await t.rejects(svd(build(2, 3, (r, c) => (r + c === 3 ? Infinity : 1)), { gemm }), { message: /got Infinity at row 1, column 2/ });
});

t.test('svd and eigh: small random integer matrices, many of them singular', async (t) => {
  const integers = fc.integer({ min: 1, max: 7 }).chain((rows) => fc.integer({ min: 1, max: 5 }).chain((cols) =>
    fc.array(fc.integer({ min: -2, max: 2 }), { minLength: rows * cols, maxLength: rows * cols }).map((data) => matrix(rows, cols, Float64Array.from(data)))));
  await t.resolves(fc.assert(fc.asyncProperty(integers, async (a) => {
    const found = await svd(a, { gemm });
    const gram = await eigh(multiplyPlain(a, a, { transposeA: true }), { gemm });
    const squares = Float64Array.from(found.s, (x) => x * x).reverse();
    const offset = a.cols - squares.length;
    return notOrthonormal(found.u) < 1e-13 && notOrthonormal(found.v) < 1e-13 && isDescending(found.s)
      && (await misfit(a, found)) < 1e-13 * 20
      && gram.values.every((x, i) => Math.abs(x - (i < offset ? 0 : squares[i - offset]!)) < 1e-12);
  }), { numRuns: 300, seed: 1 }));
});

t.test('randomisedSvd: near the optimum, orthonormal, the same from the same seed', async (t) => {
  const value = (i: number) => 1 / (i + 3);
  const a = await withSingularValues(151, 211, value);
  for (const [name, input] of [['wide', a], ['tall', transpose(a)], ['float32', toFloat32(a)]] as const) {
    const rank = 23;
    const found = await randomisedSvd(input, rank, { gemm, random: seededRandom(11) });
    await checkFactors(t, name, found);
    t.same([found.u.rows, found.s.length, found.v.rows], [input.rows, rank, input.cols]);
    const best = Math.hypot(...Array.from({ length: 151 - rank }, (_, i) => value(rank + i)));
    const excess = (await misfit(input, found)) / best - 1;
    t.ok(excess > -1e-6 && excess < 1e-3, `${name}: excess ${excess}`);
    t.same(await randomisedSvd(input, rank, { gemm, random: seededRandom(11) }), found);
    t.not(distance((await randomisedSvd(input, rank, { gemm, random: seededRandom(12) })).u, found.u), 0, 'another seed');
  }
  const few = multiplyPlain(gaussian(61, 5), gaussian(5, 83));
  const found = await randomisedSvd(few, 17, { gemm, random });
  await checkFactors(t, 'rank 5 asked for 17', found);
  t.ok((await misfit(few, found)) < 1e-13 * frobeniusNorm(few));
  await checkFactors(t, 'zero', await randomisedSvd(zeros(17, 31), 3, { gemm, random }));
  // twelve decades in float32: the square of the spectrum would be lost, the spectrum is not
  const steep = toFloat32(await withSingularValues(101, 127, (i) => 10 ** (-i / 8)));
  const error = await misfit(steep, await randomisedSvd(steep, 53, { gemm, random, iterations: 3 }));
  t.ok(error < 1e-5, `steep spectrum in float32: ${error}`);
  await t.rejects(randomisedSvd(a, 0, { gemm, random }), { message: /randomisedSvd: rank must be an integer in 1..151/ });
  await t.rejects(randomisedSvd(a, 3, { gemm, random, iterations: 1.5 }), { message: /iterations must be an integer >= 0, got 1.5/ });
});

t.test('randomisedSvd: products with the Gram matrix follow each other where the spectrum lets them', async (t) => {
  const rank = 61, counts: number[] = [];
  for (const [name, value] of [['slow', (i: number) => (i + 1) ** -0.5], ['fast', (i: number) => (i + 1) ** -1], ['steep', (i: number) => 0.93 ** i]] as const) {
    const a = await withSingularValues(151, 211, value), best = Math.hypot(...Array.from({ length: 151 - rank }, (_, i) => value(rank + i)));
    for (const input of [a, toFloat32(a)]) {
      let products = 0;
      const counted: Gemm = { multiply(left, right, transposes) { products++; return gemm.multiply(left, right, transposes); } };
      const found = await randomisedSvd(input, rank, { gemm: counted, random: seededRandom(13) });
      await checkFactors(t, name, found);
      const excess = (await misfit(a, found)) / best - 1;
      t.ok(excess > -1e-6 && excess < 5e-3, `${name}: excess ${excess}`);
      counts.push(products);
    }
  }
  const [slow = 0, slow32 = 0, fast = 0, fast32 = 0, steep = 0, steep32 = 0] = counts;
  t.ok(slow <= slow32 && slow <= fast && fast < steep && slow32 < fast32 && fast32 <= steep32, `fewer where it falls slowly: ${counts}`);
});

t.test('truncatedSvd: exact up to a size, randomised beyond', async (t) => {
  const a = gaussian(53, 59);
  const exact = await svd(a, { gemm, rank: 7 });
  t.same(await truncatedSvd(a, 7, { gemm, random, exactUpTo: 53 }), exact);
  const options = { gemm, iterations: 1, oversampling: 3 };
  const randomised = await truncatedSvd(a, 7, { ...options, random: seededRandom(2), exactUpTo: 52 });
  t.same(randomised, await randomisedSvd(toFloat32(a), 7, { ...options, random: seededRandom(2) }), 'in float32');
  t.ok((await misfit(a, randomised)) > (await misfit(a, exact)) * (1 + 1e-6), 'which is not the optimum');
});
