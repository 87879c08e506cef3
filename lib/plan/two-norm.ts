import { pairsPerHead, type AttentionLayer } from '../surgery/attention-layer.ts';
import type { LayerStatistics } from '../statistics/layer-statistics.ts';
import { anyPairs, keepPairs, required, type PlanStrategy } from './strategy.ts';

type Heads = Pick<AttentionLayer, 'heads' | 'kvHeads' | 'headDim'>;
type PairNorms = Pick<LayerStatistics, 'queryPairNorms' | 'keyPairNorms'>;

/** Sum over the query heads h of group g of f(E||q_h pair k||, E||k_g pair k||): [kvHeads, pairs per head]. */
function groupScores(attention: Heads, { queryPairNorms, keyPairNorms }: PairNorms, f: (query: number, key: number) => number): Float64Array {
  const { heads, kvHeads } = attention;
  const pairs = pairsPerHead(attention);
  const perGroup = heads / kvHeads;
  return Float64Array.from({ length: kvHeads * pairs }, (_, i) => {
    const [kvHead, pair] = [Math.floor(i / pairs), i % pairs];
    let score = 0;
    for (let r = 0; r < perGroup; r++) score += f(queryPairNorms[(kvHead * perGroup + r) * pairs + pair] ?? NaN, keyPairNorms[i] ?? NaN);
    return score;
  });
}

/**
 * score[g, k] = sum over the query heads h of group g of mean ||q_h pair k|| x mean ||k_g pair k||: a bound on what the
 * pair can add to a score (Cauchy-Schwarz), as means over calibration tokens before RoPE. [kvHeads, pairs per head].
 * Source: Ji et al. 2025, appendix A; the product of means is what the MHA2MLA main branch computes.
 */
export const twoNormScores = (attention: Heads, statistics: PairNorms): Float64Array => groupScores(attention, statistics, (query, key) => query * key);

/**
 * The same with mean ||q_h pair k|| + mean ||k_g pair k||: what stands in MHA2MLA's tables of scores (qk_tensor_*.pth), by
 * which its released legacy checkpoints were made. [kvHeads, pairs per head].
 */
export const twoNormSumScores = (attention: Heads, statistics: PairNorms): Float64Array => groupScores(attention, statistics, (query, key) => query + key);

/** The `count` pairs of every KV head with the highest of the given scores [kvHeads, pairs per head]. */
export function keepHighest(attention: AttentionLayer, scores: Float64Array, count: number): ReturnType<typeof keepPairs> {
  const all = pairsPerHead(attention);
  const ranked = (kvHead: number): number[] => Array.from({ length: all }, (_, pair) => pair)
    .sort((a, b) => (scores[kvHead * all + b] ?? 0) - (scores[kvHead * all + a] ?? 0) || a - b);
  return keepPairs(attention, (kvHead) => ranked(kvHead).slice(0, count), scores);
}

const byScore = (name: string, paper: string, scoresOf: typeof twoNormScores): PlanStrategy => ({
  paper,
  needsStatistics: true,
  counts: 'pairs',
  countRange: anyPairs,
  plan: (attention, { count, statistics }) => keepHighest(attention, scoresOf(attention, required(name, statistics)), count),
});

/** The pairs with the highest product of mean norms, per layer and KV head. */
export const twoNorm = byScore('2-norm', 'Ji et al. 2025 (MHA2MLA), section 3.1 and appendix A', twoNormScores);

/** The pairs with the highest sum of mean norms, per layer and KV head. */
export const twoNormSum = byScore('2-norm-sum', 'MHA2MLA, released legacy tables', twoNormSumScores);
