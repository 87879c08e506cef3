/** Symmetric eigendecomposition in float64: Householder tridiagonalisation, divide and conquer, back-transform. */
import { freeMemory } from '../free-memory.ts';
import { tridiagonalEigh } from './divide-and-conquer.ts';
import type { Gemm } from './gemm.ts';
import { at, checkSquare, transpose, type Matrix } from './matrix.ts';
import { tridiagonalise, type Reflectors } from './tridiagonalise.ts';

export interface Eigen {
  /** Ascending. */
  readonly values: Float64Array;
  /** Column k is the unit eigenvector of value k, n x n. */
  readonly vectors: Matrix;
}

/**
 * A = V diag(values) V^T for a real symmetric matrix; all eigenvalues, ascending, and their orthonormal vectors.
 *
 * Only the lower triangle of `a` [n, n] is read. Residual |A V - V diag| and |V^T V - I| are of order n * 2.2e-16 times
 * |A| and 1. Throws when `a` is not square or its lower triangle holds NaN or infinity.
 * LAPACK dsyevd's method; Golub and Van Loan, Matrix Computations, 4th edition, 8.3 and 8.4.
 */
export async function eigh(a: Matrix, { gemm }: { readonly gemm: Gemm }): Promise<Eigen> {
  const { values, vectorsOfLargest } = await solveSymmetric('eigh', a, gemm);
  return { values, vectors: await vectorsOfLargest(a.rows) };
}

/**
 * `eigh` in two steps, for callers that choose by the values how many vectors they want: `vectorsOfLargest(count)` gives
 * those of the last `count` values, n x count.
 */
export async function solveSymmetric(
  caller: string, a: Matrix, gemm: Gemm,
): Promise<{ readonly values: Float64Array; readonly vectorsOfLargest: (count: number) => Promise<Matrix> }> {
  const scale = powerOfTwoScale(largestOfLower(caller, a));
  const n = a.rows;
  const { reflectors, ...tridiagonal } = tridiagonalise(a, scale);
  const { values, rows } = await tridiagonalEigh(tridiagonal, gemm);
  return {
    values: values.map((x) => x * scale),
    async vectorsOfLargest(count) {
      const vectors = transpose({ rows: count, cols: n, data: rows.subarray((n - count) * n) });
      await applyReflectors(reflectors, vectors, gemm);
      return vectors;
    },
  };
}

/** The largest magnitude in the lower triangle. Throws `caller: ...` when `a` is not square or the triangle not finite. */
export function largestOfLower(caller: string, a: Matrix): number {
  checkSquare(caller, a);
  let largest = 0;
  for (let r = 0; r < a.rows; r++) {
    for (let c = 0; c <= r; c++) {
      const size = Math.abs(a.data[r * a.cols + c]!);
      if (!(size < Infinity)) throw new RangeError(`${caller}: matrix must be finite, got ${at(a, r, c)} at row ${r}, column ${c}`);
      if (size > largest) largest = size;
    }
  }
  return largest;
}

/** A power of two near `size` (1 for 0): dividing by it is exact and keeps squares from overflowing or vanishing. */
export const powerOfTwoScale = (size: number): number => (size > 0 ? 2 ** Math.floor(Math.log2(size)) : 1);

const blockRows = 64; // reflectors joined into one product

/**
 * X = H_(n-1) ... H_1 X in place, in blocks H_(i+k-1) ... H_i = I - B^T S B (Schreiber and Van Loan 1989): the rows of B
 * are the reflectors' vectors, S is lower triangular.
 */
async function applyReflectors({ vectors, tau }: Reflectors, x: Matrix, gemm: Gemm): Promise<void> {
  const { rows: n, cols } = x;
  for (let first = 1; first < n; first += blockRows) {
    const last = Math.min(n, first + blockRows);
    const k = last - first;
    const reach = last - 1; // the vectors are zero from this row on
    const b: Matrix = { rows: k, cols: reach, data: new Float64Array(k * reach) };
    for (let q = 0; q < k; q++) b.data.set(vectors.data.subarray((first + q) * n, (first + q) * n + reach), q * reach);
    const dots = (await gemm.multiply(b, b, { transposeB: true })).data;
    const s: Matrix = { rows: k, cols: k, data: joinReflectors(dots, tau.subarray(first, last)) };
    const rows: Matrix = { rows: reach, cols, data: x.data.subarray(0, reach * cols) };
    const projected = await gemm.multiply(b, rows), inner = await gemm.multiply(s, projected);
    const change = (await gemm.multiply(b, inner, { transposeA: true })).data;
    for (let i = 0; i < change.length; i++) rows.data[i]! -= change[i]!;
    freeMemory([projected.data, inner.data, change]); // a gigabyte over all blocks of some thousand rows
  }
}

/** S of a block from the inner products of its vectors: row q is tau_q (unit_q - dots_q S), rows before q done. */
function joinReflectors(dots: Float64Array, tau: Float64Array): Float64Array {
  const k = tau.length;
  const s = new Float64Array(k * k);
  for (let q = 0; q < k; q++) {
    s[q * k + q] = tau[q]!;
    for (let c = 0; c < q; c++) {
      let sum = 0;
      for (let r = c; r < q; r++) sum += dots[q * k + r]! * s[r * k + c]!;
      s[q * k + c] = -tau[q]! * sum;
    }
  }
  return s;
}
