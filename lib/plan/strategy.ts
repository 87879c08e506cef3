import type { LayerStatistics } from '../statistics/layer-statistics.ts';
import { pairsPerHead, type AttentionLayer } from '../surgery/attention-layer.ts';
import { singlePair, type PlanChoice } from '../surgery/rope-plan.ts';

/** A way to choose what keeps rotating. Adding one is a file and a row in index.ts. */
export interface PlanStrategy {
  readonly paper: string;
  /** Whether it must be given statistics of calibration text. */
  readonly needsStatistics: boolean;
  readonly plan: (attention: AttentionLayer, options: { readonly pairs: number; readonly statistics: LayerStatistics | null }) => PlanChoice;
}

/** The given pairs of every KV head, each at its own frequency, in ascending order. */
export function keepPairs(attention: AttentionLayer, pairsOf: (kvHead: number) => readonly number[], scores: Float64Array | null): PlanChoice {
  const { kvHeads, heads, frequencies } = attention;
  const components = Array.from({ length: kvHeads }, (_, kvHead) =>
    [...pairsOf(kvHead)].sort((a, b) => a - b).map((pair) => singlePair(kvHead, pair, frequencies[pair] ?? NaN, heads / kvHeads)));
  return { components: components.flat(), scores, fold: [] };
}

/** A strategy that keeps the same pairs in every layer and head, by a rule on their index alone. */
export const byIndex = (paper: string, pairAt: (i: number, pairs: number, pairsPerHead: number) => number): PlanStrategy => ({
  paper,
  needsStatistics: false,
  plan: (attention, { pairs }) => keepPairs(attention, () => Array.from({ length: pairs }, (_, i) => pairAt(i, pairs, pairsPerHead(attention))), null),
});
