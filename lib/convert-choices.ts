/** What a conversion may decide over all layers before it converts the first: TransMLA's fold, and CARE's ranks. */
import { at } from '../kernels/at.ts';
import type { ResolvedBudget } from './budget.ts';
import { planOptions } from './convert-layer.ts';
import { adjustedRanks } from './factor/adjusted-ranks.ts';
import { careSpectra } from './factor/care.ts';
import type { FactorStrategyName } from './factor/index.ts';
import { halfForKeys } from './factor/split.ts';
import type { Gemm } from './linalg/gemm.ts';
import { withGemm } from './linalg/onnx-gemm.ts';
import type { Model } from './models/model.ts';
import { planStrategies, type PlanStrategyName } from './plan/index.ts';
import type { PlanStrategy } from './plan/strategy.ts';
import { searchFold, type FoldSearch } from './search-fold.ts';
import type { Calibration } from './statistics/calibration.ts';
import type { LayerStatistics } from './statistics/layer-statistics.ts';
import { readAttentionLayer } from './surgery/attention-layer.ts';
import { remainderOf } from './surgery/joint-kv-svd.ts';
import { rankRopeDims } from './surgery/rank-rope-dims.ts';

type StatisticsOf = (layer: number) => Promise<LayerStatistics>;

export interface LayerRanks {
  readonly rank: number;
  readonly keyRank: number;
}

export interface ChoicesAsked {
  readonly plan: PlanStrategyName;
  readonly factor: FactorStrategyName;
  readonly budget: ResolvedBudget;
  readonly latentGroups: number;
  readonly fold: number | 'search' | undefined;
  readonly adjustRanks: boolean;
  readonly calibration: Calibration | null;
  readonly threads?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface Choices {
  /** Null where the plan takes none, or chooses its own. */
  readonly fold: number | null;
  readonly foldSearch: FoldSearch | null;
  /** Of every layer; null where all have the budget's. */
  readonly ranks: readonly LayerRanks[] | null;
  /** The statistics once more from the first layer on. */
  readonly statistics: StatisticsOf | null;
}

/**
 * Searches the fold and adjusts the ranks where that is asked for; both need the statistics of all layers, which are then in
 * memory together. Errors: a search without text or with another plan than ro-rope, adjusted ranks with another factor than care.
 */
export async function chooseOverLayers(model: Model, statistics: StatisticsOf | null, asked: ChoicesAsked): Promise<Choices> {
  const { plan, factor, fold: wish, adjustRanks, calibration, latentGroups, threads, signal } = asked;
  const row: PlanStrategy = planStrategies[plan];
  if (wish !== undefined && row.takesFold !== true) throw new TypeError(`convert: plan ${plan} takes no fold, got ${wish}`);
  if (adjustRanks && factor !== 'care') throw new TypeError(`convert: ranks are adjusted for factor care, got ${factor}`);
  if (adjustRanks && latentGroups !== 1) throw new TypeError(`convert: ranks are adjusted for one latent per layer, got ${latentGroups} groups`);
  if (wish !== 'search' && !adjustRanks) return { fold: wish ?? null, foldSearch: null, ranks: null, statistics };
  if (statistics === null) throw new TypeError('convert: adjusted ranks and a searched fold need calibration text, got none');
  if (wish === 'search' && calibration === null) throw new TypeError('convert: a fold is searched on calibration text, got statistics alone');
  const all: LayerStatistics[] = [];
  for (let layer = 0; layer < model.config.layers; layer++) {
    signal?.throwIfAborted();
    all.push(await statistics(layer));
  }
  const foldSearch = wish !== 'search' || calibration === null ? null
    : await searchFold(model, all, { components: asked.budget.components ?? 1, windows: calibration.windows.slice(0, calibration.attentionWindows), threads, signal });
  const fold = foldSearch?.fold ?? (typeof wish === 'number' ? wish : null);
  const ranks = adjustRanks ? await withGemm((gemm) => careRanks(model, all, asked, fold, gemm), { threads }) : null;
  return { fold, foldSearch, ranks, statistics: async (layer) => at(all, layer) };
}

/** CARE: key ranks and value ranks of all layers, each kind from a budget of its own. */
async function careRanks(model: Model, statistics: readonly LayerStatistics[], { plan, budget, signal }: ChoicesAsked, fold: number | null, gemm: Gemm): Promise<LayerRanks[]> {
  const keys: Float64Array[] = [];
  const values: Float64Array[] = [];
  let keyRows = 0;
  for (const [layer, known] of statistics.entries()) {
    signal?.throwIfAborted();
    const attention = await readAttentionLayer(model, layer);
    const { keyNope, value } = remainderOf(attention, rankRopeDims(attention, planOptions(plan, budget, fold, known)));
    keyRows = keyNope.rows;
    const spectra = await careSpectra({ keyNope, value, statistics: known, gemm });
    keys.push(spectra.keys);
    values.push(spectra.values);
  }
  const { kvHeads, headDim, hidden } = model.config;
  const keyRank = halfForKeys(budget.rank, keyRows, kvHeads * headDim, hidden);
  const keyRanks = keyRank === 0 ? keys.map(() => 0) : adjustedRanks(keys, { rank: keyRank });
  const valueRanks = adjustedRanks(values, { rank: budget.rank - keyRank });
  return keyRanks.map((own, layer) => ({ keyRank: own, rank: own + at(valueRanks, layer) }));
}
