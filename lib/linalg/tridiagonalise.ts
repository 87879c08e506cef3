/**
 * A = Q T Q^T with T tridiagonal: the first half of a symmetric eigendecomposition.
 *
 * Householder reflectors H_i = I - tau_i v_i v_i^T clear the rows of the lower triangle from the last one up, so the
 * part still to be reduced is always the leading block and its rows stay contiguous. As in LAPACK's dsytrd/dlatrd,
 * a panel of reflectors is gathered before the block is updated (A -= V^T W + W^T V, one Gemm); until then each
 * product with the current block is the product with the old block plus corrections from the panel.
 */
import type { Gemm } from './gemm.ts';
import { sliceRows, type Matrix } from './matrix.ts';

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

/** Reflectors gathered before the block is updated: enough for Gemm to pay, few enough that corrections stay cheap. */
const panelRows = 32;

/** Sums of squares below this are rounding residue of an underflow, for matrices whose largest element is about 1. */
const negligible = 1e-290;

/** Reduces a symmetric matrix, of which only the lower triangle is read and whose elements are of order 1. */
export async function tridiagonalise(a: Matrix, gemm: Gemm): Promise<Tridiagonal & { reflectors: Reflectors }> {
  const n = a.rows;
  const diagonal = new Float64Array(n);
  const offDiagonal = new Float64Array(n);
  const tau = new Float64Array(n);
  const vectors = new Float64Array(n * n);
  const block = a.data.slice();
  for (let size = n; size > 1; ) {
    const steps = Math.min(panelRows, size - 1);
    // rows 0..steps-1 hold the v, rows steps..2 steps-1 the w, in the order of the reductions
    const panel = new Float64Array(2 * steps * size);
    for (let step = 0; step < steps; step++) {
      const i = size - 1 - step;
      const row = block.subarray(i * n, i * n + i + 1);
      updateRow(row, panel, steps, step, size, i);
      diagonal[i] = row[i]!;
      const v = panel.subarray(step * size, step * size + i);
      const w = panel.subarray((steps + step) * size, (steps + step) * size + i);
      const reflector = householder(row, v);
      offDiagonal[i] = reflector.length;
      tau[i] = reflector.tau;
      vectors.set(v, i * n);
      if (reflector.tau === 0) {
        v.fill(0); // H_i = I adds nothing to the update
        continue;
      }
      symmetricTimesVector(block, n, i, v, w);
      correctProduct(w, v, panel, steps, step, size);
      const half = 0.5 * reflector.tau * reflector.tau * dot(w, v, i);
      for (let j = 0; j < i; j++) w[j] = reflector.tau * w[j]! - half * v[j]!;
    }
    const rest = size - steps;
    await updateBlock(block, n, rest, panel, steps, size, gemm);
    size = rest;
  }
  if (n > 0) diagonal[0] = block[0]!;
  return { diagonal, offDiagonal, reflectors: { vectors: { rows: n, cols: n, data: vectors }, tau } };
}

/** Brings row i of the block up to date: row -= v_q[i] w_q + w_q[i] v_q for the panel's reflectors so far. */
function updateRow(row: Float64Array, panel: Float64Array, steps: number, step: number, size: number, i: number): void {
  for (let q = 0; q < step; q++) {
    const v = q * size;
    const w = (steps + q) * size;
    const vi = panel[v + i]!;
    const wi = panel[w + i]!;
    for (let j = 0; j <= i; j++) row[j]! -= vi * panel[w + j]! + wi * panel[v + j]!;
  }
}

/** The reflector that maps row[0..i-1] to (0, ..., 0, length); writes v, scaled so that its last element is 1. */
function householder(row: Float64Array, v: Float64Array): { length: number; tau: number } {
  const i = v.length;
  const pivot = row[i - 1]!;
  const squares = dot(row, row, i - 1);
  v[i - 1] = 1;
  if (squares <= negligible) return { length: pivot, tau: 0 };
  const norm = Math.sqrt(squares + pivot * pivot);
  const length = pivot > 0 ? -norm : norm; // the sign that avoids cancellation in pivot - length
  const scale = 1 / (pivot - length);
  for (let j = 0; j < i - 1; j++) v[j] = row[j]! * scale;
  return { length, tau: (length - pivot) / length };
}

/** w = A v for the leading m x m block of a symmetric matrix given by its lower triangle. Four rows a time. */
function symmetricTimesVector(block: Float64Array, stride: number, m: number, v: Float64Array, w: Float64Array): void {
  w.fill(0);
  let r = 0;
  for (; r + 3 < m; r += 4) {
    const r0 = r * stride;
    const r1 = r0 + stride;
    const r2 = r1 + stride;
    const r3 = r2 + stride;
    const v0 = v[r]!;
    const v1 = v[r + 1]!;
    const v2 = v[r + 2]!;
    const v3 = v[r + 3]!;
    let s0 = 0;
    let s1 = 0;
    let s2 = 0;
    let s3 = 0;
    for (let j = 0; j < r; j++) {
      const vj = v[j]!;
      const a0 = block[r0 + j]!;
      const a1 = block[r1 + j]!;
      const a2 = block[r2 + j]!;
      const a3 = block[r3 + j]!;
      s0 += a0 * vj;
      s1 += a1 * vj;
      s2 += a2 * vj;
      s3 += a3 * vj;
      w[j]! += a0 * v0 + a1 * v1 + (a2 * v2 + a3 * v3);
    }
    w[r]! += s0;
    w[r + 1]! += s1;
    w[r + 2]! += s2;
    w[r + 3]! += s3;
    triangleTimesVector(block, stride, r, r + 4, v, w);
  }
  for (let left = r; r < m; r++) {
    let sum = 0;
    for (let j = 0; j < left; j++) {
      sum += block[r * stride + j]! * v[j]!;
      w[j]! += block[r * stride + j]! * v[r]!;
    }
    w[r]! += sum;
  }
  triangleTimesVector(block, stride, m - (m % 4), m, v, w);
}

/** The part of w += A v inside the diagonal square from..to-1. */
function triangleTimesVector(block: Float64Array, stride: number, from: number, to: number, v: Float64Array, w: Float64Array): void {
  for (let r = from; r < to; r++) {
    for (let j = from; j < r; j++) {
      const element = block[r * stride + j]!;
      w[r]! += element * v[j]!;
      w[j]! += element * v[r]!;
    }
    w[r]! += block[r * stride + r]! * v[r]!;
  }
}

/** w -= sum over the panel of v_q (w_q . v) + w_q (v_q . v): the product with the up-to-date block. */
function correctProduct(w: Float64Array, v: Float64Array, panel: Float64Array, steps: number, step: number, size: number): void {
  const i = v.length;
  for (let q = 0; q < step; q++) {
    const vq = q * size;
    const wq = (steps + q) * size;
    let vv = 0;
    let wv = 0;
    for (let j = 0; j < i; j++) {
      vv += panel[vq + j]! * v[j]!;
      wv += panel[wq + j]! * v[j]!;
    }
    for (let j = 0; j < i; j++) w[j]! -= panel[vq + j]! * wv + panel[wq + j]! * vv;
  }
}

/** Lower triangle of the leading rest x rest block -= V^T W + W^T V, one Gemm of the stacked panel with itself. */
async function updateBlock(
  block: Float64Array, stride: number, rest: number, panel: Float64Array, steps: number, size: number, gemm: Gemm,
): Promise<void> {
  const vw: Matrix = { rows: 2 * steps, cols: rest, data: new Float64Array(2 * steps * rest) };
  for (let q = 0; q < 2 * steps; q++) vw.data.set(panel.subarray(q * size, q * size + rest), q * rest);
  const wv: Matrix = { ...vw, data: new Float64Array(vw.data.length) };
  wv.data.set(sliceRows(vw, steps, 2 * steps).data);
  wv.data.set(sliceRows(vw, 0, steps).data, steps * rest);
  const update = (await gemm.multiply(vw, wv, { transposeA: true })).data;
  for (let r = 0; r < rest; r++) {
    for (let j = 0; j <= r; j++) block[r * stride + j]! -= update[r * rest + j]!;
  }
}

function dot(x: Float64Array, y: Float64Array, length: number): number {
  let sum = 0;
  for (let j = 0; j < length; j++) sum += x[j]! * y[j]!;
  return sum;
}
