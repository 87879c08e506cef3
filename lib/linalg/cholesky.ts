/** Cholesky factorisation and symmetric positive definite systems, recursive so that nearly all work is in Gemm. */
import { freeMemory } from '../free-memory.ts';
import type { Gemm } from './gemm.ts';
import { checkFinite, checkSquare, sliceColumns, sliceRows, subtract, zeros, type Matrix } from './matrix.ts';

/** A = L L^T with L's inverse beside it, or the first pivot that is not positive. */
export type Factored =
  | { readonly definite: true; readonly lower: Matrix; readonly inverse: Matrix }
  | Indefinite;

interface Indefinite {
  readonly definite: false;
  readonly pivot: number;
  readonly value: number;
}

/**
 * The lower triangular L with A = L L^T, n x n. Only the lower triangle of `a` is read.
 * Throws when `a` is not square, not finite or not positive definite.
 */
export async function cholesky(a: Matrix, { gemm }: { readonly gemm: Gemm }): Promise<Matrix> {
  checkSquare('cholesky', a);
  checkFinite('cholesky', a);
  const factored = await lowerFactor(a, gemm);
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
  const { lower, inverse } = factored;
  freeMemory([lower.data]);
  const apply = async (rhs: Matrix): Promise<Matrix> => {
    const half = await gemm.multiply(inverse, rhs);
    const solved = await gemm.multiply(inverse, half, { transposeA: true });
    freeMemory([half.data]);
    return solved;
  };
  const solution = await apply(b);
  const image = await gemm.multiply(damped, solution);
  freeMemory([damped.data]);
  const residual = subtract(b, image);
  freeMemory([image.data]);
  const correction = await apply(residual);
  for (let i = 0; i < solution.data.length; i++) solution.data[i]! += correction.data[i]!;
  freeMemory([inverse.data, residual.data, correction.data]);
  return solution;
}

const smallestSplit = 64; // below, plain loops are faster

/** L and L^-1 by halves: A = [A11 .; A21 A22], L21 = A21 L11^-T, L22 from A22 - L21 L21^T. Reads the lower triangle. */
export async function factorSpd(a: Matrix, gemm: Gemm): Promise<Factored> {
  if (a.rows <= smallestSplit) return factorPlain(a);
  const top = await topHalf(a, gemm);
  if (!top.definite) return top;
  const { first, lower21, left } = top;
  const second = await factorSpd(left, gemm);
  freeMemory([left.data]);
  if (!second.definite) return { ...second, pivot: second.pivot + first.lower.rows };
  const lower = joinLower(first.lower, lower21, second.lower, 1);
  freeMemory([first.lower.data, second.lower.data]);
  const outer = await gemm.multiply(second.inverse, lower21);
  freeMemory([lower21.data]);
  const inverse21 = await gemm.multiply(outer, first.inverse);
  freeMemory([outer.data]);
  const inverse = joinLower(first.inverse, inverse21, second.inverse, -1);
  freeMemory([first.inverse.data, inverse21.data, second.inverse.data]);
  return { definite: true, lower, inverse };
}

/** The L of `factorSpd` alone: half of its memory and fewer products. */
export async function lowerFactor(a: Matrix, gemm: Gemm): Promise<{ readonly definite: true; readonly lower: Matrix } | Indefinite> {
  if (a.rows <= smallestSplit) return factorPlain(a);
  const top = await topHalf(a, gemm);
  if (!top.definite) return top;
  const { first, lower21, left } = top;
  freeMemory([first.inverse.data]);
  const second = await lowerFactor(left, gemm);
  freeMemory([left.data]);
  if (!second.definite) return { ...second, pivot: second.pivot + first.lower.rows };
  const lower = joinLower(first.lower, lower21, second.lower, 1);
  freeMemory([first.lower.data, lower21.data, second.lower.data]);
  return { definite: true, lower };
}

/** The upper half of the factors, the corner L21, and what is left to factor below. */
async function topHalf(a: Matrix, gemm: Gemm): Promise<{ readonly definite: true; readonly first: { readonly lower: Matrix; readonly inverse: Matrix }; readonly lower21: Matrix; readonly left: Matrix } | Indefinite> {
  const n = a.rows, half = n >> 1;
  const corner = sliceColumns(sliceRows(a, 0, half), 0, half);
  const first = await factorSpd(corner, gemm);
  freeMemory([corner.data]);
  if (!first.definite) return first;
  const bottom = sliceRows(a, half, n);
  const side = sliceColumns(bottom, 0, half);
  const lower21 = await gemm.multiply(side, first.inverse, { transposeB: true });
  const square = await gemm.multiply(lower21, lower21, { transposeB: true });
  const below = sliceColumns(bottom, half, n);
  const left = subtract(below, square);
  freeMemory([side.data, square.data, below.data]);
  return { definite: true, first, lower21, left };
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
