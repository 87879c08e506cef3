/** Cholesky factorisation and symmetric positive definite systems, recursive so that nearly all work is in Gemm. */
import type { Gemm } from './gemm.ts';
import { checkFinite, checkSquare, sliceColumns, sliceRows, subtract, zeros, type Matrix } from './matrix.ts';

/** A = L L^T with L's inverse beside it, or the first pivot that is not positive. */
export type Factored =
  | { readonly definite: true; readonly lower: Matrix; readonly inverse: Matrix }
  | { readonly definite: false; readonly pivot: number; readonly value: number };

/**
 * The lower triangular L with A = L L^T, n x n. Only the lower triangle of `a` is read.
 * Throws when `a` is not square, not finite or not positive definite.
 */
export async function cholesky(a: Matrix, { gemm }: { readonly gemm: Gemm }): Promise<Matrix> {
  checkSquare('cholesky', a);
  checkFinite('cholesky', a);
  const factored = await factorSpd(a, gemm);
  if (!factored.definite) {
    throw new RangeError(`cholesky: matrix must be positive definite, got pivot ${factored.value} in row ${factored.pivot}`);
  }
  return factored.lower;
}

export interface SolveSpdOptions {
  readonly gemm: Gemm;
  /** Added to the diagonal; default 0. In the units of `a`. */
  readonly ridge?: number;
}

/**
 * X with (A + ridge I) X = B: A [n, n] symmetric, B and X [n, m]. By Cholesky with the inverse of the factor, then one
 * step of iterative refinement, which makes up for using an inverse (Higham, Accuracy and Stability, chapter 12).
 * Throws when sizes differ, a number is not finite, or A + ridge I is not positive definite.
 */
export async function solveSpd(a: Matrix, b: Matrix, { gemm, ridge = 0 }: SolveSpdOptions): Promise<Matrix> {
  checkSquare('solveSpd', a);
  if (b.rows !== a.rows) {
    throw new RangeError(`solveSpd: right-hand side must have ${a.rows} rows like the matrix, got ${b.rows}`);
  }
  if (!(ridge >= 0 && Number.isFinite(ridge))) {
    throw new RangeError(`solveSpd: ridge must be a finite number >= 0, got ${ridge}`);
  }
  checkFinite('solveSpd', a);
  checkFinite('solveSpd', b);
  const n = a.rows;
  const damped: Matrix = { ...a, data: a.data.slice() };
  for (let i = 0; i < n; i++) damped.data[i * n + i]! += ridge;
  const factored = await factorSpd(damped, gemm);
  if (!factored.definite) {
    const { pivot, value } = factored;
    throw new RangeError(`solveSpd: matrix + ridge I must be positive definite, got pivot ${value} in row ${pivot} with ridge ${ridge}`);
  }
  const { inverse } = factored;
  const apply = async (rhs: Matrix): Promise<Matrix> =>
    gemm.multiply(inverse, await gemm.multiply(inverse, rhs), { transposeA: true });
  const first = await apply(b);
  const correction = await apply(subtract(b, await gemm.multiply(damped, first)));
  return { ...first, data: first.data.map((x, i) => x + correction.data[i]!) };
}

const smallestSplit = 64; // below, plain loops are faster

/** L and L^-1 by halves: A = [A11 .; A21 A22], L21 = A21 L11^-T, L22 from A22 - L21 L21^T. Reads the lower triangle. */
export async function factorSpd(a: Matrix, gemm: Gemm): Promise<Factored> {
  const n = a.rows;
  if (n <= smallestSplit) return factorPlain(a);
  const half = n >> 1;
  const top = sliceRows(a, 0, half);
  const bottom = sliceRows(a, half, n);
  const first = await factorSpd(sliceColumns(top, 0, half), gemm);
  if (!first.definite) return first;
  const lower21 = await gemm.multiply(sliceColumns(bottom, 0, half), first.inverse, { transposeB: true });
  const square = await gemm.multiply(lower21, lower21, { transposeB: true });
  const second = await factorSpd(subtract(sliceColumns(bottom, half, n), square), gemm);
  if (!second.definite) return { ...second, pivot: second.pivot + half };
  const inverse21 = await gemm.multiply(await gemm.multiply(second.inverse, lower21), first.inverse);
  return {
    definite: true,
    lower: joinLower(first.lower, lower21, second.lower, 1),
    inverse: joinLower(first.inverse, inverse21, second.inverse, -1),
  };
}

/** [top 0; sign * corner bottom] */
function joinLower(top: Matrix, corner: Matrix, bottom: Matrix, sign: 1 | -1): Matrix {
  const half = top.rows;
  const n = half + bottom.rows;
  const out = zeros(n, n);
  for (let r = 0; r < half; r++) out.data.set(sliceRows(top, r, r + 1).data, r * n);
  for (let r = 0; r < bottom.rows; r++) {
    const start = (half + r) * n;
    for (let c = 0; c < half; c++) out.data[start + c] = sign * corner.data[r * half + c]!;
    out.data.set(sliceRows(bottom, r, r + 1).data, start + half);
  }
  return out;
}

function factorPlain(a: Matrix): Factored {
  const n = a.rows;
  const lower = zeros(n, n);
  const l = lower.data;
  for (let r = 0; r < n; r++) {
    for (let c = 0; c <= r; c++) {
      let sum = a.data[r * n + c]!;
      for (let k = 0; k < c; k++) sum -= l[r * n + k]! * l[c * n + k]!;
      if (c < r) l[r * n + c] = sum / l[c * n + c]!;
      else if (sum > 0) l[r * n + r] = Math.sqrt(sum);
      else return { definite: false, pivot: r, value: sum };
    }
  }
  return { definite: true, lower, inverse: invertLower(lower) };
}

function invertLower(lower: Matrix): Matrix {
  const n = lower.rows;
  const inverse = zeros(n, n);
  const x = inverse.data;
  for (let r = 0; r < n; r++) {
    const reciprocal = 1 / lower.data[r * n + r]!;
    for (let k = 0; k < r; k++) {
      const factor = lower.data[r * n + k]! * reciprocal;
      for (let c = 0; c <= k; c++) x[r * n + c]! -= factor * x[k * n + c]!;
    }
    x[r * n + r] = reciprocal;
  }
  return inverse;
}
