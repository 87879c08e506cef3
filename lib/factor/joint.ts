import { freeMemory } from '../free-memory.ts';
import { matrix, scaleColumns, scaleRows, sliceRows, toFloat32, transpose, type FloatArray, type Matrix } from '../linalg/matrix.ts';
import { isRoundedForSvd, truncatedSvd } from '../linalg/randomised-svd.ts';
import { seededRandom } from '../random.ts';
import { placements, type FactorInput, type FactorStrategy } from './strategy.ts';

/** One matrix above another. */
export function stackRows(above: Matrix, below: Matrix): Matrix {
  if (above.rows === 0) return below;
  const data = new Float64Array(above.data.length + below.data.length);
  data.set(above.data);
  data.set(below.data, above.data.length);
  return matrix(above.rows + below.rows, above.cols, data);
}

/** M ~ up down of the given rank, with the singular values placed as asked: down [rank, cols], up [rows, rank]. */
export async function lowRank(m: Matrix<FloatArray>, rank: number, { gemm, seed, singularValues }: Pick<FactorInput, 'gemm' | 'seed' | 'singularValues'>): Promise<{ down: Matrix; up: Matrix; spectrum: Float64Array }> {
  const { u, s, v } = await truncatedSvd(m, rank, { gemm, random: seededRandom(seed) });
  const placement = placements[singularValues], turned = transpose(v);
  const factors = { down: scaleRows(turned, s.map(placement.down)), up: scaleColumns(u, s.map(placement.up)), spectrum: s };
  freeMemory([turned.data, u.data, v.data]);
  return factors;
}

/**
 * SVD of [W_k,nope ; W_v] for all heads of a layer at once: one latent serves keys and values.
 * Rank 1..min(g n + g v, d). Source: Ji et al. 2025 (MHA2MLA), section 3.2, `SVD_joint`.
 */
export const joint: FactorStrategy = {
  paper: 'Ji et al. 2025 (MHA2MLA), section 3.2',
  needsStatistics: false,
  rankRange: (keyRows, valueRows, hidden) => [1, Math.min(keyRows + valueRows, hidden)],
  async factor({ keyNope, value, rank, ...options }) {
    const stacked = stackRows(keyNope, value), m = isRoundedForSvd(stacked) ? toFloat32(stacked) : stacked;
    if (m.data !== stacked.data && stacked.data !== value.data) freeMemory([stacked.data]);
    const { down, up, spectrum } = await lowRank(m, rank, options);
    if (m.data !== value.data) freeMemory([m.data]);
    return { down, spectrum, keyUp: sliceRows(up, 0, keyNope.rows), valueUp: sliceRows(up, keyNope.rows, up.rows) };
  },
};

