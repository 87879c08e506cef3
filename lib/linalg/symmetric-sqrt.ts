/** Square root of a positive semi-definite matrix and its (pseudo-)inverse, for whitening. */
import { eigh } from './eigh.ts';
import type { Gemm } from './gemm.ts';
import { scaleColumns, type Matrix } from './matrix.ts';

export interface SymmetricSqrt {
  /** R symmetric with R R = A, n x n. */
  readonly root: Matrix;
  /** R^-1, or the pseudo-inverse of R when A is singular: eigenvalues counted as zero stay zero. */
  readonly inverseRoot: Matrix;
  /** How many eigenvalues exceed n * 2.2e-16 times the largest. */
  readonly rank: number;
}

export interface SymmetricSqrtOptions {
  readonly gemm: Gemm;
  /** A negative eigenvalue of up to this share of the largest counts as zero. Default 1e-10; sums of float32 products need 1e-6. */
  readonly noise?: number;
}

/**
 * A = V diag(w) V^T -> root V diag(sqrt w) V^T and inverse root V diag(1 / sqrt w) V^T.
 * Only the lower triangle of `a` is read. Eigenvalues up to n * 2.2e-16 of the largest, the noise of the
 * decomposition, count as zero. Throws when an eigenvalue is negative beyond `noise` times the largest magnitude.
 */
export async function symmetricSqrt(a: Matrix, { gemm, noise = 1e-10 }: SymmetricSqrtOptions): Promise<SymmetricSqrt> {
  const { values, vectors } = await eigh(a, { gemm });
  const n = a.rows;
  const lowest = values[0] ?? 0;
  const largest = Math.max(Math.abs(lowest), Math.abs(values[n - 1] ?? 0));
  if (lowest < -noise * largest) {
    throw new RangeError(`symmetricSqrt: matrix must be positive semi-definite, got eigenvalue ${lowest} beside ${largest}`);
  }
  const floor = n * Number.EPSILON * largest;
  const roots = values.map((w) => (w > floor ? Math.sqrt(w) : 0));
  const inverses = roots.map((r) => (r > 0 ? 1 / r : 0));
  return {
    root: await gemm.multiply(scaleColumns(vectors, roots), vectors, { transposeB: true }),
    inverseRoot: await gemm.multiply(scaleColumns(vectors, inverses), vectors, { transposeB: true }),
    rank: roots.filter((r) => r > 0).length,
  };
}
