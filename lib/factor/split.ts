import { matrix, zeros, type Matrix } from '../linalg/matrix.ts';
import { lowRank, stackRows } from './joint.ts';
import type { FactorStrategy } from './strategy.ts';

/** `up` placed in columns from..from+up.cols of a matrix that is `cols` wide. */
function widen(up: Matrix, from: number, cols: number): Matrix {
  const wide = zeros(up.rows, cols);
  for (let row = 0; row < up.rows; row++) wide.data.set(up.data.subarray(row * up.cols, (row + 1) * up.cols), row * cols + from);
  return wide;
}

/**
 * Separate SVDs of W_k,nope and W_v: the latent's first half serves keys, its second half values. `rank` is the width
 * of both together, so that it costs the same cache as `joint` (the MHA2MLA code takes it twice). Where no key is left,
 * values get all of it. Source: Ji et al. 2025 (MHA2MLA), section 3.2, `SVD_split`.
 */
export const split: FactorStrategy = {
  paper: 'Ji et al. 2025 (MHA2MLA), section 3.2',
  needsStatistics: false,
  rankRange: (keyRows, valueRows, hidden) => (keyRows === 0 ? [1, Math.min(valueRows, hidden)] : [2, Math.min(2 * Math.min(keyRows, hidden) + 1, 2 * Math.min(valueRows, hidden))]),
  async factor({ keyNope, value, rank, ...options }) {
    const keyRank = keyNope.rows === 0 ? 0 : Math.floor(rank / 2);
    const values = await lowRank(value, rank - keyRank, options);
    if (keyRank === 0) return { down: values.down, keyUp: matrix(0, rank, new Float64Array(0)), valueUp: values.up, spectrum: values.spectrum };
    const keys = await lowRank(keyNope, keyRank, options);
    return {
      down: stackRows(keys.down, values.down),
      keyUp: widen(keys.up, 0, rank),
      valueUp: widen(values.up, keyRank, rank),
      spectrum: Float64Array.from([...keys.spectrum, ...values.spectrum]).sort().reverse(),
    };
  },
};
