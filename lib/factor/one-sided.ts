import type { Matrix } from '../linalg/matrix.ts';
import { identity } from '../linalg/matrix.ts';
import { lowRank, stackRows } from './joint.ts';
import { widen } from './split.ts';
import type { FactorStrategy } from './strategy.ts';

/** M = up down without loss and with as few latent channels as that takes. */
function exact(m: Matrix): { down: Matrix; up: Matrix } {
  return m.rows <= m.cols ? { down: m, up: identity(m.rows) } : { down: identity(m.cols), up: m };
}

/** Channels of a latent that holds the rows as they are. */
const wholeRank = (rows: number, hidden: number): number => Math.min(rows, hidden);

/**
 * SVD of the keys alone; values are cached as they are, in the last channels of the latent. Rank: those channels and
 * 1..min(g n, d) for the keys. Source: MHA2MLA, main branch, `svd_init_method: only_key`.
 */
export const keyOnly: FactorStrategy = {
  paper: 'Ji et al. 2025 (MHA2MLA), only_key',
  needsStatistics: false,
  rankRange: (keyRows, valueRows, hidden) => {
    const values = wholeRank(valueRows, hidden);
    return keyRows === 0 ? [values, values] : [values + 1, values + wholeRank(keyRows, hidden)];
  },
  async factor({ keyNope, value, rank, ...options }) {
    const values = exact(value);
    const keyRank = rank - values.down.rows;
    if (keyRank === 0) return { down: values.down, keyUp: widen(keyNope, 0, rank), valueUp: values.up, spectrum: new Float64Array(0) };
    const keys = await lowRank(keyNope, keyRank, options);
    return { down: stackRows(keys.down, values.down), keyUp: widen(keys.up, 0, rank), valueUp: widen(values.up, keyRank, rank), spectrum: keys.spectrum };
  },
};

/**
 * SVD of the values alone; keys that no longer rotate are cached as they are, in the first channels of the latent. Rank:
 * those channels and 1..min(g v, d) for the values. Source: MHA2MLA, main branch, `svd_init_method: only_value`.
 */
export const valueOnly: FactorStrategy = {
  paper: 'Ji et al. 2025 (MHA2MLA), only_value',
  needsStatistics: false,
  rankRange: (keyRows, valueRows, hidden) => {
    const keys = wholeRank(keyRows, hidden);
    return [keys + 1, keys + wholeRank(valueRows, hidden)];
  },
  async factor({ keyNope, value, rank, ...options }) {
    const keys = exact(keyNope);
    const keyRank = keyNope.rows === 0 ? 0 : keys.down.rows;
    const values = await lowRank(value, rank - keyRank, options);
    return {
      down: keyRank === 0 ? values.down : stackRows(keys.down, values.down),
      keyUp: widen(keys.up, 0, rank), valueUp: widen(values.up, keyRank, rank), spectrum: values.spectrum,
    };
  },
};

/**
 * No factorisation: keys that no longer rotate and values are cached as they are (as x itself where it is the narrower).
 * Shows what a plan costs by itself. Rank: min(g n, d) + min(g v, d). Source: MHA2MLA, main branch, `svd_init_method: none`.
 */
export const none: FactorStrategy = {
  paper: 'Ji et al. 2025 (MHA2MLA), none',
  needsStatistics: false,
  rankRange: (keyRows, valueRows, hidden) => {
    const rank = wholeRank(keyRows, hidden) + wholeRank(valueRows, hidden);
    return [rank, rank];
  },
  async factor({ keyNope, value, rank }) {
    const [keys, values] = [exact(keyNope), exact(value)];
    if (keyNope.rows === 0) return { down: values.down, keyUp: widen(keyNope, 0, rank), valueUp: values.up, spectrum: new Float64Array(0) };
    return { down: stackRows(keys.down, values.down), keyUp: widen(keys.up, 0, rank), valueUp: widen(values.up, keys.down.rows, rank), spectrum: new Float64Array(0) };
  },
};
