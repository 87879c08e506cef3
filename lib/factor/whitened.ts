import type { Gemm } from '../linalg/gemm.ts';
import { matrix, scaleColumns, scaleRows, sliceRows, transpose, type Matrix } from '../linalg/matrix.ts';
import { truncatedSvd } from '../linalg/randomised-svd.ts';
import { symmetricSqrt, type SymmetricSqrt } from '../linalg/symmetric-sqrt.ts';
import { seededRandom } from '../random.ts';
import type { LayerStatistics } from '../statistics/layer-statistics.ts';
import { stackRows } from './joint.ts';
import { placements, type FactorInput, type FactorStrategy } from './strategy.ts';

/** Added to the second moment, as a share of its mean diagonal: SVD-LLM's and TransMLA's. */
const DAMPING = 0.01;

/** S = (C + damping mean(diag C) I)^(1/2) and its inverse, C = E[x x^T]. */
export async function whitening({ secondMoment: { rows, cols, data } }: Pick<LayerStatistics, 'secondMoment'>, damping: number, gemm: Gemm): Promise<SymmetricSqrt> {
  let trace = 0;
  for (let i = 0; i < rows; i++) trace += data[i * cols + i] ?? NaN;
  const added = (damping * trace) / rows;
  return symmetricSqrt(matrix(rows, cols, data.map((x, at) => (at % (cols + 1) === 0 ? x + added : x))), { gemm });
}

/**
 * M S = U diag(s) V^T, so that M ~ (U s)(V^T S^-1): of all products of this rank the one with the least E||M x - up down x||^2.
 * down [rank, d], up [rows, rank].
 */
export async function whitenedLowRank(m: Matrix, rank: number, { root, inverseRoot }: SymmetricSqrt, { gemm, seed, singularValues }: Pick<FactorInput, 'gemm' | 'seed' | 'singularValues'>): Promise<{ down: Matrix; up: Matrix; spectrum: Float64Array }> {
  const { u, s, v } = await truncatedSvd(await gemm.multiply(m, root), rank, { gemm, random: seededRandom(seed) });
  const placement = placements[singularValues];
  const down = await gemm.multiply(scaleRows(transpose(v), s.map(placement.down)), inverseRoot);
  return { down, up: scaleColumns(u, s.map(placement.up)), spectrum: s };
}

/**
 * Joint SVD of [W_k,nope ; W_v] with the inputs' second moment as the measure of what matters: CARE-U's and SVD-LLM's
 * whitening (a Cholesky factor in place of the symmetric root gives the same product) on MHA2MLA's joint latent.
 * Rank 1..min(g n + g v, d). Source: Wang et al. 2024 (SVD-LLM), section 3.1; CARE 2026, section 3.
 */
export const whitened: FactorStrategy = {
  paper: 'Wang et al. 2024 (SVD-LLM); CARE 2026, CARE-U',
  needsStatistics: true,
  rankRange: (keyRows, valueRows, hidden) => [1, Math.min(keyRows + valueRows, hidden)],
  async factor({ keyNope, value, rank, statistics, ...options }) {
    if (statistics === null) throw new TypeError('whitened: statistics of calibration text are needed, got none');
    const { down, up, spectrum } = await whitenedLowRank(stackRows(keyNope, value), rank, await whitening(statistics, DAMPING, options.gemm), options);
    return { down, spectrum, keyUp: sliceRows(up, 0, keyNope.rows), valueUp: sliceRows(up, keyNope.rows, up.rows) };
  },
};
