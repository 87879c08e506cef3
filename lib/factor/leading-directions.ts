/** The directions that carry most of M x for inputs x of a given covariance, for matrices of any size. */
import { freeMemory } from '../free-memory.ts';
import { lowerFactor } from '../linalg/cholesky.ts';
import { eigh } from '../linalg/eigh.ts';
import type { Gemm } from '../linalg/gemm.ts';
import { matrix, takeColumns, toFloat32, transpose, type Matrix } from '../linalg/matrix.ts';
import { truncatedSvd } from '../linalg/randomised-svd.ts';
import { seededRandom } from '../random.ts';

export interface LeadingOptions {
  readonly gemm: Gemm;
  /** Of the randomised SVD. */
  readonly seed: number;
  /** The eigenproblem is solved exactly up to so many rows of M; default 2048, as for SVDs. */
  readonly exactUpTo?: number;
}

/**
 * Added to every variance where the covariance must be positive definite, relative to their mean: above the rounding of float32
 * sums over tokens, far below what counts. Where one direction holds nearly all variance its rounding is larger; then up to MOST.
 */
const VARIANCE_FLOOR = 1e-5;
const MOST_VARIANCE_FLOOR = 0.1;
/** Below this share of the largest variance a direction of the randomised way is noise. */
const EMPTY_VARIANCE = 1e-7;

/**
 * M J M^T = U S^2 U^T for M [n, d] and a covariance J [d, d]: the first `rank` columns of U as rows [rank, n], and the
 * spectrum S, descending (in the randomised way up to what the floor of the variances changes); all of it where the problem is solved exactly, `rank` values where not. Then J = L L^T and U
 * comes from the randomised SVD of M L: the same seed gives the same result.
 */
export async function leadingDirections(m: Matrix, covariance: Matrix, rank: number, { gemm, seed, exactUpTo = 2048 }: LeadingOptions): Promise<{ readonly directions: Matrix; readonly spectrum: Float64Array }> {
  const n = m.rows;
  if (n <= exactUpTo) {
    const { values, vectors } = await eigh(await gemm.multiply(await gemm.multiply(m, covariance), m, { transposeB: true }), { gemm });
    return {
      directions: transpose(takeColumns(vectors, Array.from({ length: rank }, (_, i) => n - 1 - i))),
      spectrum: Float64Array.from({ length: n }, (_, i) => Math.sqrt(Math.max(values[n - 1 - i]!, 0))),
    };
  }
  const root = await rootOf(covariance, gemm);
  const lower = toFloat32(root), narrow = toFloat32(m);
  freeMemory([root.data]);
  // The randomised way rounds this product to float32 in any case, and the covariance is of float32 sums.
  const product = await gemm.multiply(narrow, lower);
  freeMemory([lower.data, narrow.data]);
  const { u, v } = await truncatedSvd(product, rank, { gemm, random: seededRandom(seed), exactUpTo });
  const directions = transpose(u);
  freeMemory([product.data, u.data, v.data]);
  return { directions, spectrum: await deviations(await gemm.multiply(directions, m), covariance, gemm) };
}

/** Roots of the diagonal of A J A^T; 0 where J says nothing beyond its rounding, as with fewer tokens than directions. */
async function deviations(a: Matrix, covariance: Matrix, gemm: Gemm): Promise<Float64Array> {
  const seen = await gemm.multiply(a, covariance);
  const variances = Float64Array.from({ length: a.rows }, (_, row) => {
    let sum = 0;
    for (let i = row * a.cols; i < (row + 1) * a.cols; i++) sum += a.data[i]! * seen.data[i]!;
    return sum;
  });
  const least = EMPTY_VARIANCE * variances.reduce((most, x) => Math.max(most, x), 0);
  return variances.map((x) => (x > least ? Math.sqrt(x) : 0));
}

/** Lower triangular L with L L^T = J, its variances raised by the least floor that makes it positive definite. */
async function rootOf(covariance: Matrix, gemm: Gemm): Promise<Matrix> {
  for (let floor = VARIANCE_FLOOR; ; floor *= 10) {
    const raised = withFloor(covariance, floor);
    const factored = await lowerFactor(raised, gemm);
    freeMemory([raised.data]);
    if (factored.definite) return factored.lower;
    if (floor > MOST_VARIANCE_FLOOR) throw new RangeError(`leadingDirections: the covariance must be that of some inputs, got pivot ${factored.value} in row ${factored.pivot} with a tenth of the mean variance added`);
  }
}

function withFloor({ rows, data }: Matrix, floor: number): Matrix {
  const raised = Float64Array.from(data);
  let trace = 0;
  for (let i = 0; i < rows; i++) trace += data[i * rows + i]!;
  for (let i = 0; i < rows; i++) raised[i * rows + i]! += (floor * trace) / rows;
  return matrix(rows, rows, raised);
}
