/**
 * A = Q T Q^T with T tridiagonal: the first half of a symmetric eigendecomposition.
 *
 * Householder reflectors H_i = I - tau_i v_i v_i^T clear the rows of the lower triangle from the last one up, so that the
 * part still to be reduced is always the leading block and its rows stay contiguous. The update of the block by one
 * reflector, A -= v w^T + w v^T, waits for the next one: a single pass then also gives the product that one needs
 * (householder-step.ts). Golub and Van Loan, Matrix Computations, 4th edition, algorithm 8.3.1.
 */
import { stepWorkspace } from './householder-step.ts';
import type { Matrix } from './matrix.ts';

export interface Tridiagonal {
  /** Diagonal of T, n numbers. */
  readonly diagonal: Float64Array;
  /** offDiagonal[i] couples i-1 and i; offDiagonal[0] is 0 and unused. */
  readonly offDiagonal: Float64Array;
}

/** Q = H_(n-1) ... H_1. Row i holds v_i in columns 0..i-1, with v_i[i-1] = 1; tau[i] = 0 means H_i = I. */
export interface Reflectors {
  readonly vectors: Matrix;
  readonly tau: Float64Array;
}

/** Reduces A / scale for a symmetric A, of which only the lower triangle is read; A / scale has elements of order 1. */
export function tridiagonalise(a: Matrix, scale: number): Tridiagonal & { readonly reflectors: Reflectors } {
  const n = a.rows;
  const diagonal = new Float64Array(n);
  const offDiagonal = new Float64Array(n);
  const tau = new Float64Array(n);
  const vectors = new Float64Array(n * n);
  const { block, v, w, x, y, step } = stepWorkspace(n);
  for (let r = 0; r < n; r++) for (let c = 0; c <= r; c++) block[r * n + c] = a.data[r * n + c]! / scale;

  for (let i = n - 1; i > 0; i--) {
    const row = block.subarray(i * n, i * n + i + 1);
    const [vi, wi] = [v[i]!, w[i]!];
    for (let j = 0; j <= i; j++) row[j]! -= vi * w[j]! + wi * v[j]!;
    diagonal[i] = row[i]!;
    x.fill(0, i);
    const reflector = householder(row, x.subarray(0, i));
    offDiagonal[i] = reflector.length;
    tau[i] = reflector.tau;
    vectors.set(x.subarray(0, i), i * n);
    step(i);
    v.set(x);
    // H A H = A - v w^T - w v^T for w = tau A v - (tau^2 / 2) (v^T A v) v
    const half = 0.5 * reflector.tau * reflector.tau * dot(x, y, i);
    w.fill(0, i);
    for (let j = 0; j < i; j++) w[j] = reflector.tau * y[j]! - half * x[j]!;
  }
  if (n > 0) diagonal[0] = block[0]! - 2 * v[0]! * w[0]!;
  return { diagonal, offDiagonal, reflectors: { vectors: { rows: n, cols: n, data: vectors }, tau } };
}

/** Sums of squares below this are residue of an underflow beside elements of order 1. */
const negligible = 1e-290;

/** The reflector that maps row[0..i-1] to (0, ..., 0, length); writes v [i], scaled so that its last element is 1. */
function householder(row: Float64Array, v: Float64Array): { length: number; tau: number } {
  const i = v.length;
  const pivot = row[i - 1]!;
  const squares = dot(row, row, i - 1);
  if (squares <= negligible) {
    v.fill(0); // H = I: nothing to subtract
    return { length: pivot, tau: 0 };
  }
  const norm = Math.sqrt(squares + pivot * pivot);
  const length = pivot > 0 ? -norm : norm; // the sign that avoids cancellation in pivot - length
  const scale = 1 / (pivot - length);
  for (let j = 0; j < i - 1; j++) v[j] = row[j]! * scale;
  v[i - 1] = 1;
  return { length, tau: (length - pivot) / length };
}

function dot(x: Float64Array, y: Float64Array, length: number): number {
  let sum = 0;
  for (let j = 0; j < length; j++) sum += x[j]! * y[j]!;
  return sum;
}
