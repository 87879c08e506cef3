import { eigh } from '../linalg/eigh.ts';
import type { Matrix } from '../linalg/matrix.ts';
import { separateLatents, separateRange } from './split.ts';
import { whitenedLowRank, whitening } from './whitened.ts';
import type { FactorInput, FactorStrategy } from './strategy.ts';

/** Added to the second moment, as a share of its mean diagonal: ten times what SVD-LLM adds, as in CARE's code. */
export const CARE_DAMPING = 0.1;

/**
 * Whitened SVDs of W_k,nope and of W_v by themselves, with a latent each inside the layer's: half the rank for keys unless
 * keyRank says otherwise (`adjustedRanks` allots the ranks of all layers by their spectra).
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

/** Singular values of the whitened W_k,nope and W_v, descending: what adjusted ranks go by. */
export async function careSpectra({ keyNope, value, statistics, gemm }: Pick<FactorInput, 'keyNope' | 'value' | 'gemm'> & { readonly statistics: NonNullable<FactorInput['statistics']> }): Promise<{ keys: Float64Array; values: Float64Array }> {
  const { root } = await whitening(statistics, CARE_DAMPING, gemm);
  const spectrum = async (m: Matrix): Promise<Float64Array> => {
    if (m.rows === 0) return new Float64Array(0);
    const seen = await gemm.multiply(m, root);
    const small = m.rows <= m.cols ? await gemm.multiply(seen, seen, { transposeB: true }) : await gemm.multiply(seen, seen, { transposeA: true });
    return (await eigh(small, { gemm })).values.map((x) => Math.sqrt(Math.max(x, 0))).reverse();
  };
  return { keys: await spectrum(keyNope), values: await spectrum(value) };
}
