import { keyScales, linear, linearHeads, normedQueries, normedRopeKey, partialRopeQuery, rotatedKey } from '../../kernels/index.ts';
import { record } from '../graph/record.ts';
import type { Subgraph } from '../graph/subgraph.ts';
import { lazily } from '../lazily.ts';
import { isPlanStrategyName, planStrategies, type PlanStrategyName } from '../plan/index.ts';
import type { PlanStrategy } from '../plan/strategy.ts';
import { keepHighest } from '../plan/two-norm.ts';
import { checkStatistics, type LayerStatistics } from '../statistics/layer-statistics.ts';
import { checkAttentionLayer, pairsPerHead, type AttentionLayer } from './attention-layer.ts';
import { keyNopeRows, keyRopeRows, queryElements, queryNopeRows, queryRopeRows, remainingElements, toProjection, zeroOtherRows } from './complex-rows.ts';
import { checkHeadNorm, splitHeadNorm } from './head-norm.ts';
import { headNormValues, layerInputs, projectionValues, recordAngles } from './layer-graph.ts';
import type { PlanChoice, RopePlan } from './rope-plan.ts';

export interface RankRopeDimsOptions {
  /** A row of lib/plan/index.ts. Default 'uniform', which needs no data. */
  readonly strategy?: PlanStrategyName;
  /** RoPE pairs (not dims) that keep rotating, per KV head: for the strategies that choose pairs. */
  readonly pairs?: number;
  /** Rotating components n of the layer, shared by all heads: for the strategies that combine pairs. */
  readonly components?: number;
  /** Neighbouring frequencies taken together, for the strategies that do ('ro-rope'). Default: chosen by the statistics. */
  readonly fold?: number;
  readonly statistics?: LayerStatistics;
  /**
   * Instead of statistics, for '2-norm' and '2-norm-sum': the importance of every pair, [kvHeads, pairs per head], the larger
   * the more; such as a layer of MHA2MLA's tables (readPairTable).
   */
  readonly scores?: Float64Array;
}

/**
 * Chooses which part of a layer keeps rotating. Ranks the RoPE pairs by the strategy and returns the plan: rotating
 * components with their frequencies, the remainder, and a subgraph that computes both from hidden states.
 * Errors: unknown strategy (lists the valid ones), its pairs or components missing or out of range, statistics missing or of another layer.
 * Source: Ji et al. 2025 (MHA2MLA), section 3.1.
 */
export function rankRopeDims(attention: AttentionLayer, { strategy = 'uniform', pairs, components, fold, statistics, scores }: RankRopeDimsOptions): RopePlan {
  checkAttentionLayer('rankRopeDims', attention);
  const { layer } = attention;
  if (!isPlanStrategyName(strategy)) throw new RangeError(`rankRopeDims: strategy must be one of ${Object.keys(planStrategies).join(', ')}, got ${String(strategy)}`);
  const row: PlanStrategy = planStrategies[strategy];
  const [count, other] = row.counts === 'pairs' ? [pairs, components] : [components, pairs];
  const [least, most] = row.countRange(attention);
  const unit = row.counts === 'pairs' ? 'per KV head ' : '';
  if (other !== undefined) throw new RangeError(`rankRopeDims: strategy ${strategy} takes ${row.counts}, got ${row.counts === 'pairs' ? 'components' : 'pairs'} ${other}`);
  if (count === undefined || !Number.isInteger(count) || count < least || count > most) {
    throw new RangeError(`rankRopeDims: ${row.counts} must be ${least}..${most} ${unit}for layer ${layer}, got ${count ?? 'none'}`);
  }
  if (fold !== undefined && row.takesFold !== true) throw new RangeError(`rankRopeDims: strategy ${strategy} takes no fold, got ${fold}`);
  if (scores !== undefined) {
    checkScores(attention, strategy, scores, statistics);
    return ropePlan(attention, strategy, keepHighest(attention, scores, count));
  }
  if (row.needsStatistics && statistics === undefined) throw new TypeError(`rankRopeDims: strategy ${strategy} needs statistics of calibration text for layer ${layer}, got none`);
  if (statistics !== undefined) checkStatistics('rankRopeDims', attention, statistics);
  return ropePlan(attention, strategy, row.plan(attention, { count, fold: fold ?? null, statistics: statistics ?? null }));
}

function checkScores({ layer, kvHeads, headDim }: AttentionLayer, strategy: string, scores: Float64Array, statistics: LayerStatistics | undefined): void {
  if (strategy !== '2-norm' && strategy !== '2-norm-sum') throw new RangeError(`rankRopeDims: scores belong to strategies 2-norm and 2-norm-sum, got them with ${strategy} for layer ${layer}`);
  if (statistics !== undefined) throw new RangeError(`rankRopeDims: scores stand in place of statistics, got both for layer ${layer}`);
  const wanted = (kvHeads * headDim) / 2;
  if (scores.length !== wanted) throw new RangeError(`rankRopeDims: scores must be ${wanted} numbers, [${kvHeads}, ${headDim / 2}], for layer ${layer}, got ${scores.length}`);
  if (!scores.every(Number.isFinite)) throw new RangeError(`rankRopeDims: scores must be finite for layer ${layer}`);
}

/** A plan from a strategy's choice, or from components of your own. */
export function ropePlan(attention: AttentionLayer, strategy: string, choice: PlanChoice): RopePlan {
  const { layer, kvHeads } = attention;
  checkHeadNorm('rankRopeDims', attention, strategy, choice);
  const subgraph = lazily(() => planSubgraph(attention, choice));
  return {
    layer, strategy, ...choice,
    keptShare: choice.components.length / (kvHeads * pairsPerHead(attention)),
    nopeElements: remainingElements(attention, choice),
    get subgraph() { return subgraph(); },
  };
}

function planSubgraph(attention: AttentionLayer, choice: PlanChoice): Subgraph {
  const { layer, heads, kvHeads, headDim, hidden, maxPositions } = attention;
  const allQueries = queryNopeRows(attention, choice);
  const ropeWidth = 2 * choice.components.length;
  const dims = { heads, kvHeads, ropeWidth, nopeWidth: headDim };
  const wholeHeads = Array.from({ length: kvHeads }, () => Array.from({ length: headDim }, (_, element) => element));
  const headNorm = splitHeadNorm(attention, { components: choice.components, nopeElements: wholeHeads });
  // A norm counts every element once: those that rotate are then left out of the remainder.
  const queryNope = headNorm === null ? allQueries : zeroOtherRows(allQueries, queryElements({ nopeElements: remainingElements(attention, choice) }, attention));
  return record(`rope-plan-${layer}`, layerInputs(hidden), (g, x) => {
    const value = projectionValues(g);
    const angles = recordAngles(g, choice.components.map(({ frequency }) => frequency), x.positions, maxPositions);
    const weights = {
      queryRope: value('q_rope_proj', toProjection(queryRopeRows(attention, choice))),
      queryNope: value('q_nope_proj', toProjection(queryNope)),
      keyRope: value('k_rope_proj', toProjection(keyRopeRows(attention, choice))),
    };
    const norm = headNormValues(g, headNorm);
    const { rope, nope } = partialRopeQuery(g, x.hidden, weights, angles, dims, (parts) => (norm === null ? parts : normedQueries(g, parts, norm, dims)));
    const key = linear(g, x.hidden, weights.keyRope);
    const rest = linearHeads(g, x.hidden, value('k_nope_proj', toProjection(keyNopeRows(attention, choice))), [kvHeads], headDim);
    const scales = norm === null ? null : keyScales(g, { rope: key, nope: rest }, norm, dims);
    const kRope = rotatedKey(g, norm === null || scales === null ? key : normedRopeKey(g, key, scales, norm, dims), angles);
    const kNope = scales === null ? rest : g.mul(rest, g.reshape(scales, ['b', 's', kvHeads, 1]));
    if (rope === null || nope === null) throw new RangeError(`rankRopeDims: a plan must keep at least one component for layer ${layer}`);
    return {
      qRope: g.reshape(rope, ['b', 's', heads, ropeWidth]), kRope, qNope: g.reshape(nope, ['b', 's', heads, headDim]), kNope,
    };
  });
}
