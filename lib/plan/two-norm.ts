import { pairsPerHead, type AttentionLayer } from '../surgery/attention-layer.ts';
import type { LayerStatistics } from '../statistics/layer-statistics.ts';
import { anyPairs, keepPairs, required, type PlanStrategy } from './strategy.ts';

/**
 * score[g, k] = sum over the query heads h of group g of mean ||q_h pair k|| x mean ||k_g pair k||: a bound on what the
 * pair can add to a score (Cauchy-Schwarz), as means over calibration tokens before RoPE. [kvHeads, pairs per head].
 * Source: Ji et al. 2025, appendix A; the product of means is what the MHA2MLA main branch computes.
 */
export function twoNormScores(attention: Pick<AttentionLayer, 'heads' | 'kvHeads' | 'headDim'>, statistics: Pick<LayerStatistics, 'queryPairNorms' | 'keyPairNorms'>): Float64Array {
  const { heads, kvHeads } = attention;
  const pairs = pairsPerHead(attention);
  const perGroup = heads / kvHeads;
  return Float64Array.from({ length: kvHeads * pairs }, (_, i) => {
    const [kvHead, pair] = [Math.floor(i / pairs), i % pairs];
    let queries = 0;
    for (let r = 0; r < perGroup; r++) queries += statistics.queryPairNorms[(kvHead * perGroup + r) * pairs + pair] ?? NaN;
    return queries * (statistics.keyPairNorms[i] ?? NaN);
  });
}

/** The pairs with the highest score, per layer and KV head. */
export const twoNorm: PlanStrategy = {
  paper: 'Ji et al. 2025 (MHA2MLA), section 3.1 and appendix A',
  needsStatistics: true,
  counts: 'pairs',
  countRange: anyPairs,
  plan(attention, { count, statistics }) {
    const scores = twoNormScores(attention, required('2-norm', statistics));
    const all = pairsPerHead(attention);
    const ranked = (kvHead: number): number[] => Array.from({ length: all }, (_, pair) => pair)
      .sort((a, b) => (scores[kvHead * all + b] ?? 0) - (scores[kvHead * all + a] ?? 0) || a - b);
    return keepPairs(attention, (kvHead) => ranked(kvHead).slice(0, count), scores);
  },
};
