/**
 * Truncated SVD of large matrices by randomised subspace iteration (Halko, Martinsson and Tropp, SIAM Review 53, 2011,
 * algorithm 4.4 with CholeskyQR for the QR steps), and the choice between it and the exact one.
 */
import { freeMemory } from '../free-memory.ts';
import { normals, type Random } from '../random.ts';
import type { Gemm } from './gemm.ts';
import { allocateLike, checkFinite, epsilonOf, frobeniusNorm, toFloat32, toFloat64, transpose, type FloatArray, type Matrix } from './matrix.ts';
import { choleskyQr, orthonormalise } from './orthonormalise.ts';
import { checkRank, svd, type Svd } from './svd.ts';

export interface RandomisedSvdOptions {
  readonly gemm: Gemm;
  /** Source of the starting subspace: the same state gives the same result. */
  readonly random: Random;
  /** Products with A A^T; default 6. Each one sharpens the subspace. */
  readonly iterations?: number;
  /** Extra directions beyond the rank; default max(16, rank / 10). */
  readonly oversampling?: number;
}

/**
 * Approximate leading `rank` triples of A [rows, cols]: U and V orthonormal to 1e-13, s descending, in float64.
 *
 * The error |A - U S V^T| exceeds the best possible by a few tenths of a per cent on slowly falling spectra with the
 * defaults; single values near the cut are less exact than the sum. Products with A are made in A's own number type:
 * from float32 input the error does not fall below a few 1e-6 |A|. Throws as `svd` does, and for negative or fractional options.
 */
export async function randomisedSvd(a: Matrix<FloatArray>, rank: number, options: RandomisedSvdOptions): Promise<Svd> {
  const { gemm, random, iterations = 6, oversampling = Math.max(16, Math.round(rank / 10)) } = options;
  checkRank('randomisedSvd', a, rank);
  checkFinite('randomisedSvd', a);
  for (const [name, value] of [['iterations', iterations], ['oversampling', oversampling]] as const) {
    if (!Number.isInteger(value) || value < 0) throw new RangeError(`randomisedSvd: ${name} must be an integer >= 0, got ${value}`);
  }
  if (a.rows > a.cols) {
    const turned = transpose(a);
    const { u, s, v } = await randomisedSvd(turned, rank, options);
    freeMemory([turned.data]);
    return { u: v, s, v: u };
  }
  const width = Math.min(a.rows, rank + oversampling);
  const subspace = await leftSubspace(a, width, iterations, gemm, random);
  const start = toFloat64(subspace);
  if (start.data !== subspace.data) freeMemory([subspace.data]);
  const basis = await orthonormalise(start, { gemm, random });
  if (start.data !== basis.data) freeMemory([start.data]);
  // A is nearly basis basis^T A; the small factor is decomposed exactly
  const typedBasis = allocateLike(a.data, basis.data.length);
  typedBasis.set(basis.data);
  const small = await gemm.multiply({ ...basis, data: typedBasis }, a, { transposeA: true });
  freeMemory([typedBasis]);
  const { u: inner, s, v } = await svd(small, { gemm, rank });
  freeMemory([small.data]);
  const u = await gemm.multiply(basis, inner);
  freeMemory([basis.data, inner.data]);
  return { u, s, v };
}

/** Y with nearly the span of the leading `width` left singular vectors of A, rows <= cols. */
async function leftSubspace<A extends FloatArray>(
  a: Matrix<A>, width: number, iterations: number, gemm: Gemm, random: Random,
): Promise<Matrix<A>> {
  // A^T first, made orthonormal, then A: the square of the spectrum never meets the rounding of A's number type
  const direct = async (q: Matrix<A>): Promise<Matrix<A>> => {
    const turned = await gemm.multiply(a, q, { transposeA: true });
    const right = await choleskyQr(turned, gemm);
    const left = await gemm.multiply(a, right);
    freeMemory([turned.data, right.data, q.data]);
    return left;
  };
  const draw = (rows: number): Matrix<A> => {
    const start = allocateLike(a.data, rows * width);
    start.set(normals(random, rows * width));
    return { rows, cols: width, data: start };
  };
  // A A^T is formed when that is cheaper, but it drowns directions below the root of its rounding: the last product is direct
  if (gramPays(a, width, iterations - 1)) {
    const gram = await gemm.multiply(a, a, { transposeB: true });
    const y = await powers(gram, draw(a.rows), iterations - 1, gemm);
    freeMemory([gram.data]);
    return direct(y);
  }
  let y = await gemm.multiply(a, draw(a.cols));
  for (let done = 0; done < iterations; done++) {
    const q = await choleskyQr(y, gemm);
    freeMemory([y.data]);
    y = await direct(q);
  }
  return y;
}

/**
 * Columns with the span of G^times Y, G [n, n] symmetric and not negative, Y [n, width] random; ready for one more product by a
 * root of G. G is scaled where it lies, the memory of Y given back.
 *
 * Products follow each other without an orthonormalisation between them for as long as the next one, which squares the
 * condition, still finds every column. One orthonormalisation of random columns times G leaves them ordered by what G does to
 * them; s products then make lengths that fall as the s-th powers of G's eigenvalues, and the ratio of the longest to the
 * shortest is about the condition.
 */
async function powers<A extends FloatArray>(g: Matrix<A>, start: Matrix<A>, times: number, gemm: Gemm): Promise<Matrix<A>> {
  // No eigenvalue above 1: lengths shrink, and in no number of products beyond what a float32 holds.
  const norm = frobeniusNorm(g);
  if (norm > 0) for (let i = 0; i < g.data.length; i++) g.data[i]! /= norm;
  const largestCondition = epsilonOf(g.data) ** -0.5;
  let y = start, run = 0, isOrdered = false;
  const replace = (next: Matrix<A>): void => {
    freeMemory([y.data]);
    y = next;
  };
  for (let done = 0; done <= times; done++) {
    // Random columns are even enough for the first product, and say nothing about G behind it.
    if (done > 0 && (!isOrdered || lengthRatio(y) ** (1 + 1 / run) > largestCondition)) {
      replace(await choleskyQr(y, gemm));
      [run, isOrdered] = [0, true];
    }
    if (done < times) {
      replace(await gemm.multiply(g, y));
      run++;
    }
  }
  return y;
}

/** Length of the longest column over that of the shortest; Infinity where one is zero, NaN where all are. */
function lengthRatio({ rows, cols, data }: Matrix<FloatArray>): number {
  const squares = new Float64Array(cols);
  for (let r = 0, i = 0; r < rows; r++) for (let c = 0; c < cols; c++, i++) squares[c]! += data[i]! * data[i]!;
  return Math.sqrt(squares.reduce((a, b) => Math.max(a, b)) / squares.reduce((a, b) => Math.min(a, b)));
}

/** Whether forming A A^T and multiplying by it `times` times takes fewer operations than multiplying by A^T and by A. */
const gramPays = (a: Matrix<FloatArray>, width: number, times: number): boolean =>
  a.rows * (a.cols + times * width) < 2 * times * a.cols * width;

export interface TruncatedSvdOptions extends RandomisedSvdOptions {
  /** The exact SVD is used while min(rows, cols) is at most this; default 2048 (a few seconds). */
  readonly exactUpTo?: number;
}

const EXACT_UP_TO = 2048;

/** Whether `truncatedSvd` with its defaults rounds A to float32 first: whoever needs A for nothing else can round it and free the original. */
export const isRoundedForSvd = ({ rows, cols }: Matrix<FloatArray>): boolean => Math.min(rows, cols) > EXACT_UP_TO;

/**
 * The leading `rank` triples of A: `svd` when min(rows, cols) <= exactUpTo, otherwise `randomisedSvd` with products in float32,
 * which halves its memory and its time and errs less than the random subspace does.
 */
export async function truncatedSvd(a: Matrix<FloatArray>, rank: number, options: TruncatedSvdOptions): Promise<Svd> {
  const { gemm, exactUpTo = EXACT_UP_TO } = options;
  return Math.min(a.rows, a.cols) <= exactUpTo ? svd(a, { gemm, rank }) : randomisedSvd(toFloat32(a), rank, options);
}
