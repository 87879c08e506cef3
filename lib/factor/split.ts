import { matrix, zeros, type Matrix } from '../linalg/matrix.ts';
import { lowRank, stackRows } from './joint.ts';
import type { FactorStrategy } from './strategy.ts';

/** `up` placed in columns from..from+up.cols of a matrix that is `cols` wide. */
export function widen(up: Matrix, from: number, cols: number): Matrix {
  const wide = zeros(up.rows, cols);
  for (let row = 0; row < up.rows; row++) wide.data.set(up.data.subarray(row * up.cols, (row + 1) * up.cols), row * cols + from);
  return wide;
}

/** Least and largest rank of a latent whose first channels serve keys and whose last serve values. */
export const separateRange = (keyRows: number, valueRows: number, hidden: number): readonly [number, number] =>
  [keyRows === 0 ? 1 : 2, Math.min(keyRows, hidden) + Math.min(valueRows, hidden)];

/** Half the rank for keys, as far as keys and values each can use theirs. */
export function halfForKeys(rank: number, keyRows: number, valueRows: number, hidden: number): number {
  const [keys, values] = [Math.min(keyRows, hidden), Math.min(valueRows, hidden)];
  return Math.min(keys, Math.max(Math.floor(rank / 2), rank - values));
}

/** One latent from one for keys and one for values. */
export async function separateLatents(
  ranks: { readonly rank: number; readonly keyRank: number }, keyNope: Matrix, value: Matrix,
  factor: (m: Matrix, rank: number) => Promise<{ down: Matrix; up: Matrix; spectrum: Float64Array }>,
): Promise<{ down: Matrix; keyUp: Matrix; valueUp: Matrix; spectrum: Float64Array }> {
  const { rank, keyRank } = ranks;
  const values = await factor(value, rank - keyRank);
  if (keyRank === 0) return { down: values.down, keyUp: matrix(0, rank, new Float64Array(0)), valueUp: values.up, spectrum: values.spectrum };
  const keys = await factor(keyNope, keyRank);
  return {
    down: stackRows(keys.down, values.down),
    keyUp: widen(keys.up, 0, rank),
    valueUp: widen(values.up, keyRank, rank),
    spectrum: Float64Array.from([...keys.spectrum, ...values.spectrum]).sort().reverse(),
  };
}

/**
 * Separate SVDs of W_k,nope and W_v: the latent's first channels serve keys, its last values, half of them each unless
 * keyRank says otherwise or one side needs no more. `rank` is the width of both together, so that it costs the same cache
 * as `joint` (the MHA2MLA code takes it twice). Where no key is left, values get all of it.
 * Source: Ji et al. 2025 (MHA2MLA), section 3.2, `SVD_split`.
 */
export const split: FactorStrategy = {
  paper: 'Ji et al. 2025 (MHA2MLA), section 3.2',
  needsStatistics: false,
  separate: true,
  rankRange: separateRange,
  factor: ({ keyNope, value, rank, keyRank, ...options }) => separateLatents({ rank, keyRank }, keyNope, value, (m, part) => lowRank(m, part, options)),
};
