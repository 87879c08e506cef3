/** One layer of a conversion, through the four functions and the refit. */
import type { HostTensor } from '../kernels/emit.ts';
import type { ResolvedBudget } from './budget.ts';
import type { LayerRanks } from './convert-choices.ts';
import type { FactorStrategyName } from './factor/index.ts';
import type { SingularValuePlacement } from './factor/strategy.ts';
import { freeMemory } from './free-memory.ts';
import type { Gemm } from './linalg/gemm.ts';
import { mlaTensorName, type MlaExtra, type MlaLayerConfig, type MlaTensor } from './models/mla-config.ts';
import type { Model } from './models/model.ts';
import type { PlanStrategyName } from './plan/index.ts';
import type { Refit } from './refit.ts';
import type { LayerStatistics } from './statistics/layer-statistics.ts';
import type { WindowStore } from './statistics/window-store.ts';
import { readAttentionLayer } from './surgery/attention-layer.ts';
import { buildMlaLayer, type MlaLayer } from './surgery/build-mla-layer.ts';
import { jointKvSvd } from './surgery/joint-kv-svd.ts';
import { rankRopeDims, type RankRopeDimsOptions } from './surgery/rank-rope-dims.ts';

export interface LayerReport {
  readonly layer: number;
  readonly rank: number;
  /** Rotating components of the layer. */
  readonly components: number;
  /** Kept pairs per KV head; null where the plan combines pairs. */
  readonly pairs: number | null;
  readonly keyError: number;
  readonly valueError: number;
  /** ||o_source - o|| / ||o_source|| of the attention's output on calibration text, in the converted model; null without text. */
  readonly outputError: number | null;
  /** The same before the refit; null without a refit. */
  readonly outputErrorBeforeRefit: number | null;
  readonly energyKept: number;
  readonly spectrum: readonly number[];
  /** Radians per position of the rotating components. */
  readonly frequencies: readonly number[];
}

export interface LayerPlan {
  readonly plan: PlanStrategyName;
  readonly factor: FactorStrategyName;
  readonly singularValues: SingularValuePlacement;
  readonly budget: ResolvedBudget;
  readonly latentGroups: number;
  /** For a plan that takes one; null leaves it to the plan. */
  readonly fold: number | null;
  /** Of this layer, where they differ from the budget's. */
  readonly ranks: LayerRanks | null;
  readonly seed: number;
  readonly gemm: Gemm;
  /** Null without calibration text. With `changes` false it only measures. */
  readonly refit: { readonly pass: Refit; readonly changes: boolean; /** Source outputs known from collecting statistics. */ readonly targets: WindowStore | null } | null;
}

/** What rankRopeDims takes of a budget, a fold and statistics. */
export const planOptions = (plan: PlanStrategyName, { pairs, components }: ResolvedBudget, fold: number | null, statistics: LayerStatistics | null): RankRopeDimsOptions => ({
  strategy: plan, ...(pairs === null ? {} : { pairs }), ...(components === null ? {} : { components }), ...(fold === null ? {} : { fold }), ...(statistics === null ? {} : { statistics }),
});

/** A layer through the four functions, and what its report says of them. What this reads and makes on the way is gone when it returns. */
async function factoredLayer(
  model: Model, layer: number, collect: () => Promise<LayerStatistics | null>, options: LayerPlan,
): Promise<{ built: MlaLayer; report: Omit<LayerReport, 'outputError' | 'outputErrorBeforeRefit'> }> {
  const { budget, latentGroups, gemm, seed, singularValues, fold, ranks } = options;
  const rank = ranks?.rank ?? budget.rank;
  const [statistics, attention] = [await collect(), await readAttentionLayer(model, layer)];
  const known = statistics === null ? {} : { statistics };
  const plan = rankRopeDims(attention, planOptions(options.plan, budget, fold, statistics));
  const factors = await jointKvSvd(attention, plan, { strategy: options.factor, singularValues, rank, ...(ranks === null ? {} : { keyRank: ranks.keyRank }), latentGroups, gemm, seed, ...known });
  const built = buildMlaLayer(attention, plan, factors);
  freeMemory([attention.query, attention.key, attention.value].map(({ weight }) => weight.data));
  return {
    built,
    report: {
      layer, rank, components: plan.components.length, pairs: budget.pairs, keyError: factors.keyError, valueError: factors.valueError,
      energyKept: factors.energyKept, spectrum: Array.from(factors.spectrum), frequencies: built.frequencies,
    },
  };
}

/**
 * Reads, converts and, with text, refits layer `layer`. `statistics` is asked once: the refit of a large layer needs the
 * memory that they and the source's weights took. Errors: what the four functions refuse.
 */
export async function convertLayer(model: Model, layer: number, statistics: () => Promise<LayerStatistics | null>, options: LayerPlan): Promise<{ mla: MlaLayer; report: LayerReport }> {
  const { refit } = options;
  const { built, report } = await factoredLayer(model, layer, statistics, options);
  const fitted = refit === null ? null : await refit.pass.next(built, refit.targets);
  return {
    mla: fitted?.mla ?? built,
    report: { ...report, outputError: fitted?.errorAfter ?? null, outputErrorBeforeRefit: fitted !== null && refit?.changes === true ? fitted.errorBefore : null },
  };
}

const headNormConfig = ({ headNorm, kvHeads }: MlaLayer): Pick<MlaLayerConfig, 'headNorm'> => (headNorm === null ? {} : { headNorm: { eps: headNorm.eps, kvHeads } });

/** What config.json must say of a layer. */
export const layerConfig = (mla: MlaLayer): MlaLayerConfig => ({ rank: mla.rank, frequencies: [...mla.frequencies], nopeWidth: mla.nopeWidth, ...(mla.latentGroups === 1 ? {} : { latentGroups: mla.latentGroups }), ...headNormConfig(mla) });

/** A layer's tensors under their names in the artefact. */
export function mlaTensors({ layer, weights, headNorm }: MlaLayer): [string, HostTensor][] {
  const norms: readonly [MlaExtra, HostTensor | null][] = headNorm === null ? [] : [['queryRopeNorm', headNorm.queryRope], ['keyRopeNorm', headNorm.keyRope], ['nopeNorm', headNorm.nope]];
  const tensors = norms.flatMap(([name, weight]): [string, HostTensor][] => (weight === null ? [] : [[`${mlaTensorName(layer, name)}.weight`, weight]]));
  const order: readonly MlaTensor[] = ['queryRope', 'queryNope', 'keyRope', 'down', 'keyUp', 'valueUp', 'output'];
  for (const tensor of order) {
    const projection = weights[tensor];
    if (projection === null) continue;
    const name = mlaTensorName(layer, tensor);
    tensors.push([`${name}.weight`, projection.weight]);
    if (projection.bias !== null) tensors.push([`${name}.bias`, projection.bias]);
  }
  return tensors;
}
