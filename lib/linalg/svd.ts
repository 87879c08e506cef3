/** Exact thin singular value decomposition in float64 through the Gram matrix of the smaller side. */
import { freeMemory } from '../free-memory.ts';
import { seededRandom } from '../random.ts';
import { powerOfTwoScale, solveSymmetric } from './eigh.ts';
import type { Gemm } from './gemm.ts';
import {
  checkFinite, scaleColumns, sliceColumns, subtract, takeColumns, toFloat64, transpose, type FloatArray, type Matrix,
} from './matrix.ts';
import { orthonormalise } from './orthonormalise.ts';

/** A = U diag(s) V^T with orthonormal columns. */
export interface Svd {
  /** [rows, rank] */
  readonly u: Matrix;
  /** Singular values, descending, `rank` numbers. */
  readonly s: Float64Array;
  /** [cols, rank] */
  readonly v: Matrix;
}

export interface SvdOptions {
  readonly gemm: Gemm;
  /** How many leading triples to return, 1..min(rows, cols); default all of them. */
  readonly rank?: number;
}

/**
 * The leading `rank` singular triples of A [rows, cols], float32 or float64; computed and returned in float64.
 *
 * eigh(A^T A) gives V, then U diag(s) = A V. A Gram matrix only resolves singular values above about 1e-8 of the largest,
 * so V is believed down to 1e-2 of it; what is smaller is projected off and decomposed again as a matrix of its
 * own, and so on. Therefore small singular values are as good as large ones, U and V are orthonormal to about 1e-13
 * for any input, and full rank rebuilds A to about 1e-13 |A|. Values below max(rows, cols) * 2.2e-16 of the largest are
 * returned as 0, their U completed by arbitrary (but always the same) orthonormal directions.
 * Throws when A is empty or not finite, or the rank is out of range.
 */
export async function svd(a: Matrix<FloatArray>, { gemm, rank = Math.min(a.rows, a.cols) }: SvdOptions): Promise<Svd> {
  checkRank('svd', a, rank);
  checkFinite('svd', a);
  const wide = a.rows < a.cols;
  const doubles = toFloat64(a), tall = wide ? transpose(doubles) : doubles;
  const largest = tall.data.reduce((max, x) => Math.max(max, Math.abs(x)), 0);
  const scale = powerOfTwoScale(largest);
  const scaled = { ...tall, data: tall.data.map((x) => x / scale) };
  freeMemory([doubles, tall].filter(({ data }) => data !== a.data).map(({ data }) => data));
  const found = await decompose(scaled, rank, 0, gemm);
  freeMemory([scaled.data]);
  // Column order in orthonormalise goes from large to small, so that noise of small ones never enters large ones.
  const sorted = descending(found);
  const u = await orthonormalise(sorted.u, { gemm, random: seededRandom(tall.cols) });
  if (u.data !== sorted.u.data) freeMemory([sorted.u.data]);
  const s = sorted.s.map((x) => x * scale);
  return wide ? { u: sorted.v, s, v: u } : { u, s, v: sorted.v };
}

/** U diag(s) V^T, [rows, cols]. */
export async function rebuild({ u, s, v }: Svd, { gemm }: { readonly gemm: Gemm }): Promise<Matrix> {
  return gemm.multiply(scaleColumns(u, s), v, { transposeB: true });
}

/** Throws `caller: ...` when A is empty or `rank` is not in 1..min(rows, cols). */
export function checkRank(caller: string, a: Matrix<FloatArray>, rank: number): void {
  const full = Math.min(a.rows, a.cols);
  if (full === 0) throw new RangeError(`${caller}: matrix must not be empty, got ${a.rows} x ${a.cols}`);
  if (!Number.isInteger(rank) || rank < 1 || rank > full) {
    throw new RangeError(`${caller}: rank must be an integer in 1..${full} for a ${a.rows} x ${a.cols} matrix, got ${rank}`);
  }
}

const believed = 1e-2; // relative to the largest singular value, whose Gram matrix then errs by 1e4 * 2.2e-16

/** Triples of a tall matrix; `floor` is the length that counts as zero (0: derive it here). U orthonormal to about 1e-11. */
async function decompose(a: Matrix, rank: number, floor: number, gemm: Gemm): Promise<Svd> {
  const n = a.cols;
  const gram = await gemm.multiply(a, a, { transposeA: true });
  const { values, vectorsOfLargest } = await solveSymmetric('svd', gram, gemm);
  const largest = Math.sqrt(Math.max(0, values[n - 1]!));
  const zero = floor > 0 ? floor : a.rows * Number.EPSILON * largest;
  if (largest <= zero) return nullTriples(a.rows, n, rank);
  let head = 0;
  while (head < rank && Math.sqrt(Math.max(0, values[n - 1 - head]!)) > believed * largest) head++;

  const v = reverseColumns(await vectorsOfLargest(head === rank ? rank : n));
  const av = await gemm.multiply(a, v);
  const { u, s } = normalise(sliceColumns(av, 0, head));
  if (head === rank) {
    freeMemory([gram.data, av.data]);
    return { u, s, v };
  }

  const basis = await orthonormalise(u, { gemm, random: seededRandom(n) });
  const rest = sliceColumns(av, head, n);
  const shadow = await gemm.multiply(basis, await gemm.multiply(basis, rest, { transposeA: true }));
  const tail = await decompose(subtract(rest, shadow), rank - head, zero, gemm);
  const tailV = await gemm.multiply(sliceColumns(v, head, n), tail.v);
  return {
    u: besides(basis, tail.u),
    s: Float64Array.of(...s, ...tail.s),
    v: besides(sliceColumns(v, 0, head), tailV),
  };
}

/** Zero vectors on the left, which orthonormalise replaces; unit vectors on the right. */
function nullTriples(rows: number, cols: number, rank: number): Svd {
  const v = new Float64Array(cols * rank);
  for (let i = 0; i < rank; i++) v[i * rank + i] = 1;
  return {
    u: { rows, cols: rank, data: new Float64Array(rows * rank) },
    s: new Float64Array(rank),
    v: { rows: cols, cols: rank, data: v },
  };
}

/** The columns, last first. */
const reverseColumns = (a: Matrix): Matrix => takeColumns(a, Array.from({ length: a.cols }, (_, c) => a.cols - 1 - c));

/** Columns scaled to length 1, and their lengths. */
function normalise(a: Matrix): { u: Matrix; s: Float64Array } {
  const s = new Float64Array(a.cols);
  for (let r = 0; r < a.rows; r++) for (let c = 0; c < a.cols; c++) s[c]! += a.data[r * a.cols + c]! ** 2;
  for (let c = 0; c < a.cols; c++) s[c] = Math.sqrt(s[c]!);
  return { u: scaleColumns(a, s.map((x) => 1 / x)), s };
}

/** [a | b] */
function besides(a: Matrix, b: Matrix): Matrix {
  const cols = a.cols + b.cols;
  const data = new Float64Array(a.rows * cols);
  for (let r = 0; r < a.rows; r++) {
    data.set(a.data.subarray(r * a.cols, r * a.cols + a.cols), r * cols);
    data.set(b.data.subarray(r * b.cols, r * b.cols + b.cols), r * cols + a.cols);
  }
  return { rows: a.rows, cols, data };
}

/** Lengths of A V can leave the eigenvalues' order by rounding, and those around a split by 1e-14: order them again. */
function descending({ u, s, v }: Svd): Svd {
  if (s.every((x, i) => i === 0 || x <= s[i - 1]!)) return { u, s, v };
  const order = Array.from(s.keys()).sort((a, b) => s[b]! - s[a]!);
  return { u: takeColumns(u, order), s: Float64Array.from(order, (i) => s[i]!), v: takeColumns(v, order) };
}
