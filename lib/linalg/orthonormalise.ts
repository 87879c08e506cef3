/**
 * Orthonormal columns by CholeskyQR: Y^T Y = R^T R, Q = Y R^-1. All work is in Gemm. Columns are scaled to length 1 first;
 * where Cholesky fails the diagonal is shifted up (Fukaya et al., "Shifted Cholesky QR", SIAM J. Sci. Comput. 42, 2020)
 * and a further pass repairs what the shift left. R is upper triangular: column j only changes by earlier ones.
 */
import { freeMemory } from '../free-memory.ts';
import type { Random } from '../random.ts';
import { factorSpd } from './cholesky.ts';
import type { Gemm } from './gemm.ts';
import { allocateLike, epsilonOf, toFloat64, transpose, type FloatArray, type Matrix } from './matrix.ts';

/**
 * One pass over Y [m, n], m >= n, in Y's number type: the same column space with a far better condition.
 * Enough between power iterations; columns come out orthonormal only when Y was well conditioned. Zero columns stay zero.
 */
export async function choleskyQr<A extends FloatArray>(y: Matrix<A>, gemm: Gemm): Promise<Matrix<A>> {
  const products = await gemm.multiply(y, y, { transposeA: true }), gram = toFloat64(products);
  const factor = await inverseFactor(gram, epsilonOf(y.data), gemm);
  const typed = allocateLike(y.data, factor.data.length);
  typed.set(factor.data);
  freeMemory([products.data, gram.data, factor.data]);
  const q = await gemm.multiply(y, { ...factor, data: typed });
  freeMemory([typed]);
  return q;
}

const accepted = 1e-13; // |Q^T Q - I| per element that further passes would hardly lower
const nearlyIdentity = 1e-7; // first-order correction leaves the square of this
const maxPasses = 12;

/**
 * Q [m, n] with Q^T Q = I to 1e-13 and the span of Y [m, n], m >= n, the first j columns spanning the first j of Y.
 * Columns that depend on earlier ones are replaced by random directions orthogonal to the rest.
 */
export async function orthonormalise(y: Matrix, { gemm, random }: { readonly gemm: Gemm; readonly random: Random }): Promise<Matrix> {
  if (y.rows < y.cols) throw new RangeError(`orthonormalise: needs at least as many rows as columns, got ${y.rows} x ${y.cols}`);
  let q = y;
  const replace = (next: Matrix): void => {
    if (q.data !== y.data && q.data !== next.data) freeMemory([q.data]);
    q = next;
  };
  for (let pass = 0; pass < maxPasses; pass++) {
    let gram = await gemm.multiply(q, q, { transposeA: true });
    // Two passes give weak but real directions the chance to grow before a short column counts as dependent.
    const redrawn = redrawShort(q, gram, pass < 2 ? 0 : 0.5, random);
    if (redrawn !== q) {
      replace(redrawn);
      freeMemory([gram.data]);
      gram = await gemm.multiply(q, q, { transposeA: true });
    }
    const error = distanceFromIdentity(gram);
    if (error <= accepted) return q;
    const isLast = error <= nearlyIdentity, factor = isLast ? firstOrderFactor(gram) : await inverseFactor(gram, Number.EPSILON, gemm);
    freeMemory([gram.data]);
    replace(await gemm.multiply(q, factor));
    freeMemory([factor.data]);
    if (isLast) return q;
  }
  throw new Error(`orthonormalise: ${y.rows} x ${y.cols} columns did not become orthonormal in ${maxPasses} passes`);
}

/** R^-1 (upper triangular) with R^T R = Gram matrix, shifted where needed; `epsilon` is the noise of the Gram's products. */
async function inverseFactor(gram: Matrix, epsilon: number, gemm: Gemm): Promise<Matrix> {
  const n = gram.rows;
  const scale = new Float64Array(n);
  for (let i = 0; i < n; i++) scale[i] = gram.data[i * n + i]! > 0 ? 1 / Math.sqrt(gram.data[i * n + i]!) : 0;
  const scaled: Matrix = { ...gram, data: new Float64Array(n * n) };
  for (let r = 0; r < n; r++) {
    for (let c = 0; c < n; c++) scaled.data[r * n + c] = gram.data[r * n + c]! * scale[r]! * scale[c]!;
  }
  let factored = await factorSpd(scaled, gemm);
  for (let shift = n * epsilon; !factored.definite; shift *= 10) {
    if (!(shift < 1e3)) {
      throw new RangeError(`choleskyQr: Gram matrix must be finite, got pivot ${factored.value} in row ${factored.pivot}`);
    }
    for (let i = 0; i < n; i++) scaled.data[i * n + i]! += shift;
    factored = await factorSpd(scaled, gemm);
  }
  const inverse = transpose(factored.inverse);
  freeMemory([scaled.data, factored.lower.data, factored.inverse.data]);
  for (let r = 0; r < n; r++) for (let c = r; c < n; c++) inverse.data[r * n + c]! *= scale[r]!;
  return inverse;
}

/** R^-1 to first order for a Gram matrix I + E: I - strict upper part of E - diagonal of E / 2. */
function firstOrderFactor(gram: Matrix): Matrix {
  const n = gram.rows;
  const data = new Float64Array(n * n);
  for (let r = 0; r < n; r++) {
    data[r * n + r] = 1.5 - gram.data[r * n + r]! / 2;
    for (let c = r + 1; c < n; c++) data[r * n + c] = -gram.data[r * n + c]!;
  }
  return { rows: n, cols: n, data };
}

/** Columns of Q no longer than `shortest` replaced by random ones of length about 1; Q itself when there are none. */
function redrawShort(q: Matrix, gram: Matrix, shortest: number, random: Random): Matrix {
  const n = q.cols;
  const short: number[] = [];
  for (let c = 0; c < n; c++) if (Math.sqrt(gram.data[c * n + c]!) <= shortest) short.push(c);
  if (short.length === 0) return q;
  const data = q.data.slice();
  const scale = 1 / Math.sqrt(q.rows);
  for (let r = 0; r < q.rows; r++) for (const c of short) data[r * n + c] = random.normal() * scale;
  return { ...q, data };
}

function distanceFromIdentity(gram: Matrix): number {
  const n = gram.rows;
  let largest = 0;
  for (let r = 0; r < n; r++) {
    for (let c = 0; c < n; c++) largest = Math.max(largest, Math.abs(gram.data[r * n + c]! - (r === c ? 1 : 0)));
  }
  return largest;
}
