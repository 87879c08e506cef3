/** The strategies that the accuracy table compares. */
import type { Calibration, ConvertOptions, ModelStatistics } from '../../lib/index.ts';

export interface AccuracyRow {
  readonly name: string;
  readonly paper: string;
  /** What it looks at beside the weights. */
  readonly needs: 'weights' | 'statistics' | 'statistics, refit';
  readonly options: (calibration: Calibration, statistics: ModelStatistics) => ConvertOptions;
}

type Choice = Pick<ConvertOptions, 'plan' | 'factor' | 'singularValues' | 'latentGroups' | 'fold' | 'adjustRanks'>;

const byWeights = (name: string, paper: string, choice: Choice): AccuracyRow => ({ name, paper, needs: 'weights', options: () => choice });
const byStatistics = (name: string, paper: string, choice: Choice): AccuracyRow => ({ name, paper, needs: 'statistics', options: (_, statistics) => ({ ...choice, statistics }) });
const refitted = (name: string, paper: string, choice: Choice): AccuracyRow =>
  ({ name, paper, needs: 'statistics, refit', options: (calibration, statistics) => ({ ...choice, statistics, calibration: { ...calibration, heldOut: [] }, refit: true }) });

export const accuracyRows: readonly AccuracyRow[] = [
  byWeights('high + joint', 'MHA2MLA', { plan: 'high', factor: 'joint' }),
  byWeights('low + joint', 'MHA2MLA', { plan: 'low', factor: 'joint' }),
  byWeights('uniform + joint', 'MHA2MLA', { plan: 'uniform', factor: 'joint' }),
  byWeights('uniform + split', 'MHA2MLA', { plan: 'uniform', factor: 'split' }),
  byWeights('uniform + key-only', 'MHA2MLA', { plan: 'uniform', factor: 'key-only' }),
  byWeights('uniform + value-only', 'MHA2MLA', { plan: 'uniform', factor: 'value-only' }),
  byStatistics('2-norm + joint', 'MHA2MLA', { plan: '2-norm', factor: 'joint' }),
  byStatistics('uniform + whitened', 'CARE-U, SVD-LLM', { plan: 'uniform', factor: 'whitened' }),
  byStatistics('uniform + care', 'CARE', { plan: 'uniform', factor: 'care' }),
  byStatistics('ro-rope + balanced-pca', 'TransMLA', { plan: 'ro-rope', factor: 'balanced-pca' }),
  byStatistics('bank + joint', 'ours and MHA2MLA', { plan: 'bank', factor: 'joint' }),
  byStatistics('bank + whitened', 'ours and CARE-U', { plan: 'bank', factor: 'whitened' }),
  byStatistics('bank + two-sided', 'ours', { plan: 'bank', factor: 'two-sided' }),
  refitted('ro-rope + balanced-pca + refit', 'TransMLA and ours', { plan: 'ro-rope', factor: 'balanced-pca' }),
  refitted('bank + two-sided + refit', 'ours, the default', { plan: 'bank', factor: 'two-sided' }),
  refitted('bank + two-sided + refit in 3 latent groups', 'ours', { plan: 'bank', factor: 'two-sided', latentGroups: 3 }),
];
