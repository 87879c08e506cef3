import type { LayerStatistics } from '../statistics/layer-statistics.ts';
import { pairsPerHead, type AttentionLayer } from '../surgery/attention-layer.ts';
import { singlePair, type PlanChoice } from '../surgery/rope-plan.ts';

export interface PlanOptions {
  /** Pairs per KV head, or components of the layer: what `PlanStrategy.counts` says. Inside `countRange`. */
  readonly count: number;
  /** Frequencies taken together, for a strategy that takes a fold; null leaves it to the strategy. */
  readonly fold: number | null;
  /** Null when none were given; never null where the strategy needs them. */
  readonly statistics: LayerStatistics | null;
}

/** A way to choose what keeps rotating. Adding one is a file and a row in index.ts. */
export interface PlanStrategy {
  readonly paper: string;
  /** Whether it must be given statistics of calibration text. */
  readonly needsStatistics: boolean;
  /** What its size is counted in: RoPE pairs of each KV head, or components n that all heads share. */
  readonly counts: 'pairs' | 'components';
  /** Least and largest count for a layer. */
  readonly countRange: (attention: AttentionLayer) => readonly [least: number, most: number];
  /** Whether it takes neighbouring frequencies together, as many as `fold` says. Default no. */
  readonly takesFold?: boolean;
  readonly plan: (attention: AttentionLayer, options: PlanOptions) => PlanChoice;
}

/** 1 up to all pairs of a head: the range of the strategies that count pairs. */
export const anyPairs = (attention: AttentionLayer): readonly [number, number] => [1, pairsPerHead(attention)];

/** 1 up to all pairs of all KV heads: the range of the strategies that count components. */
export const anyComponents = (attention: AttentionLayer): readonly [number, number] => [1, attention.kvHeads * pairsPerHead(attention)];

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
  counts: 'pairs',
  countRange: anyPairs,
  plan: (attention, { count }) => keepPairs(attention, () => Array.from({ length: count }, (_, i) => pairAt(i, count, pairsPerHead(attention))), null),
});

/** The statistics of a strategy that needs them. Errors: none were given. */
export function required(strategy: string, statistics: LayerStatistics | null): LayerStatistics {
  if (statistics === null) throw new TypeError(`${strategy}: statistics of calibration text are needed, got none`);
  return statistics;
}
