import { separateLatents, separateRange } from './split.ts';
import { whitenedLowRank, whitening } from './whitened.ts';
import type { FactorStrategy } from './strategy.ts';

/** Added to the second moment, as a share of its mean diagonal: ten times what SVD-LLM adds, as in CARE's code. */
export const CARE_DAMPING = 0.1;

/**
 * Whitened SVDs of W_k,nope and of W_v by themselves, with a latent each inside the layer's: half the rank for keys unless
 * keyRank says otherwise (`careRanks` allots the ranks of all layers by their spectra).
 * Source: CARE 2026, section 3; its care/low-rank code for the damping.
 */
export const care: FactorStrategy = {
  paper: 'CARE 2026',
  needsStatistics: true,
  separate: true,
  rankRange: separateRange,
  async factor({ keyNope, value, rank, keyRank, statistics, ...options }) {
    if (statistics === null) throw new TypeError('care: statistics of calibration text are needed, got none');
    const roots = await whitening(statistics, CARE_DAMPING, options.gemm);
    return separateLatents({ rank, keyRank }, keyNope, value, (m, part) => whitenedLowRank(m, part, roots, options));
  },
};
