import type { HostTensor } from '../../kernels/emit.ts';
import { expandLatent, linear } from '../../kernels/index.ts';
import { factorStrategies, isFactorStrategyName, type FactorStrategyName } from '../factor/index.ts';
import { factorInGroups, spreadGroups } from '../factor/latent-groups.ts';
import { halfForKeys } from '../factor/split.ts';
import { placements, type FactorInput, type FactorMatrices, type FactorStrategy, type SingularValuePlacement } from '../factor/strategy.ts';
import { freeMemory } from '../free-memory.ts';
import { record, type Value } from '../graph/record.ts';
import type { Subgraph } from '../graph/subgraph.ts';
import { lazily } from '../lazily.ts';
import type { Gemm } from '../linalg/gemm.ts';
import { frobeniusNorm, matrix, subtract, type Matrix } from '../linalg/matrix.ts';
import { withGemm } from '../linalg/onnx-gemm.ts';
import { checkStatistics, type LayerStatistics } from '../statistics/layer-statistics.ts';
import type { AttentionLayer } from './attention-layer.ts';
import { keyNopeRows, queryElements, queryNopeRows, takeRows, type Rows } from './complex-rows.ts';
import { layerInputs } from './layer-graph.ts';
import type { RopePlan } from './rope-plan.ts';

export type JointKvSvdOptions = {
  /** A row of lib/factor/index.ts. Default 'joint'. */
  readonly strategy?: FactorStrategyName;
  /** Where the singular values go: 'up' (default, as the MHA2MLA code), 'sqrt' (as its paper) or 'down'. */
  readonly singularValues?: SingularValuePlacement;
  /** Matrix products; default a gemm on onnxruntime, opened for this call. */
  readonly gemm?: Gemm;
  /** Seed of the randomised SVD, which is used above 2048 rows and columns. Default 0. */
  readonly seed?: number;
  /** Of this layer; for the strategies that need them. */
  readonly statistics?: LayerStatistics;
  /** Channels of the latent that serve keys, for the strategies with a latent each ('split', 'care'). Default half of the rank. */
  readonly keyRank?: number;
  /** Groups of KV heads with a latent of their own, rank / latentGroups wide each. A divisor of kvHeads and of the rank. Default 1. */
  readonly latentGroups?: number;
} & (
  | { /** Width R of the layer's latent. */ readonly rank: number; readonly rankPerHead?: never }
  | { /** The paper's d_kv: R = rankPerHead x kvHeads. */ readonly rankPerHead: number; readonly rank?: never }
);

export interface KvFactors {
  readonly layer: number;
  readonly strategy: string;
  readonly singularValues: SingularValuePlacement;
  /** Width R of the latent. */
  readonly rank: number;
  readonly down: HostTensor<'float32'>; // [R, d]
  /** Width per head of the keys rebuilt from the latent: the plan's remainder. */
  readonly nopeWidth: number;
  /** Groups of KV heads with a latent of their own. */
  readonly latentGroups: number;
  readonly keyUp: HostTensor<'float32'>; // [g n, R / latentGroups]
  readonly valueUp: HostTensor<'float32'>; // [g v, R / latentGroups]
  /** Added to o_proj's bias by buildMlaLayer; null where the strategy has none. */
  readonly outputBias: HostTensor<'float32'> | null; // [d]
  /** Singular values kept, descending. */
  readonly spectrum: Float64Array;
  /** Share of the squared norm of [W_k,nope ; W_v] that the factors keep. */
  readonly energyKept: number;
  /** |W_k,nope - keyUp down| / |W_k,nope| (0 where no key is left). */
  readonly keyError: number;
  /** |W_v - valueUp down| / |W_v|. */
  readonly valueError: number;
  /** hidden [b, s, d] -> latent [b, s, R], kNope [b, s, g, n], v [b, s, g, headDim]; the latter two from the latent. */
  readonly subgraph: Subgraph;
}

/**
 * Factorises the keys that no longer rotate and the values of a layer: latent = down x, kNope = keyUp latent,
 * v = valueUp latent. Biases are not factorised (see buildMlaLayer).
 * Errors: unknown strategy or placement, rank out of range, a plan of another layer; each names the layer.
 * Source: Ji et al. 2025 (MHA2MLA), section 3.2.
 */
export async function jointKvSvd(attention: AttentionLayer, plan: RopePlan, options: JointKvSvdOptions): Promise<KvFactors> {
  const { layer, kvHeads, hidden } = attention;
  const { strategy = 'joint', singularValues = 'up', seed = 0, statistics = null, latentGroups = 1 } = options;
  const rank = options.rank ?? options.rankPerHead * kvHeads;
  if (!isFactorStrategyName(strategy)) throw new RangeError(`jointKvSvd: strategy must be one of ${Object.keys(factorStrategies).join(', ')}, got ${String(strategy)}`);
  if (!Object.hasOwn(placements, singularValues)) throw new RangeError(`jointKvSvd: singularValues must be one of ${Object.keys(placements).join(', ')}, got ${String(singularValues)}`);
  if (plan.layer !== layer) throw new RangeError(`jointKvSvd: plan must be that of layer ${layer}, got layer ${plan.layer}`);
  const remainder = remainderOf(attention, plan);
  const { keyNope, value, nopeWidth } = remainder;
  const row: FactorStrategy = factorStrategies[strategy];
  if (row.needsStatistics && statistics === null) throw new TypeError(`jointKvSvd: strategy ${strategy} needs statistics of calibration text for layer ${layer}, got none`);
  if (statistics !== null) checkStatistics('jointKvSvd', attention, statistics);
  if (!Number.isInteger(latentGroups) || latentGroups < 1 || kvHeads % latentGroups !== 0) throw new RangeError(`jointKvSvd: latentGroups must divide the ${kvHeads} KV heads of layer ${layer}, got ${latentGroups}`);
  const [least, most] = row.rankRange(keyNope.rows / latentGroups, value.rows / latentGroups, hidden).map((limit) => limit * latentGroups);
  if (least === undefined || most === undefined || !Number.isInteger(rank) || rank < least || rank > most) throw new RangeError(`jointKvSvd: rank must be ${least}..${most} for layer ${layer}, got ${rank}`);
  if (rank % latentGroups !== 0) throw new RangeError(`jointKvSvd: rank must be a multiple of the ${latentGroups} latent groups of layer ${layer}, got ${rank}`);
  const keyRank = keyRankOf(row, strategy, layer, { rank, asked: options.keyRank, keyRows: keyNope.rows, valueRows: value.rows, hidden });
  const factor = (gemm: Gemm): Promise<MeasuredFactors> => measuredFactors(factorInGroups(row, { attention, plan, statistics, ...remainder, rank, keyRank, singularValues, gemm, seed }, latentGroups), latentGroups, keyNope, value, gemm);
  const { factors, keyError, valueError, energyKept } = options.gemm === undefined ? await withGemm(factor) : await factor(options.gemm);
  const down = rounded(factors.down);
  const [keyUp, valueUp] = [rounded(factors.keyUp), rounded(factors.valueUp)];
  freeMemory([keyNope, value, factors.down, factors.keyUp, factors.valueUp].map(({ data }) => data));
  const subgraph = lazily(() => factorSubgraph(attention, { down, keyUp, valueUp, nopeWidth, latentGroups }));
  return {
    layer, strategy, singularValues, rank, latentGroups, nopeWidth, down, keyUp, valueUp,
    outputBias: factors.outputBias === undefined ? null : { dtype: 'float32', shape: [hidden], data: Float32Array.from(factors.outputBias) },
    spectrum: factors.spectrum, energyKept, keyError, valueError,
    get subgraph() { return subgraph(); },
  };
}

/** The key rank asked for, or the default. Errors: a strategy with one latent, channels that keys or values cannot use. */
function keyRankOf(row: FactorStrategy, strategy: string, layer: number, { rank, asked, keyRows, valueRows, hidden }: { rank: number; asked: number | undefined; keyRows: number; valueRows: number; hidden: number }): number {
  if (asked === undefined) return halfForKeys(rank, keyRows, valueRows, hidden);
  if (row.separate !== true) throw new RangeError(`jointKvSvd: strategy ${strategy} has one latent for keys and values, got keyRank ${asked} for layer ${layer}`);
  const [least, most] = [Math.max(keyRows === 0 ? 0 : 1, rank - Math.min(valueRows, hidden)), Math.min(keyRows, hidden, rank - 1)];
  if (!Number.isInteger(asked) || asked < least || asked > most) throw new RangeError(`jointKvSvd: keyRank must be ${least}..${most} of rank ${rank} for layer ${layer}, got ${asked}`);
  return asked;
}

/** What a plan leaves without rotation of W_k and, folded, of W_q: per head only those elements that are not zero; and W_v. */
export function remainderOf(attention: AttentionLayer, plan: RopePlan): Pick<FactorInput, 'keyNope' | 'keyNopeBias' | 'queryNope' | 'value'> & { nopeWidth: number } {
  const { headDim, heads, kvHeads } = attention;
  const keys = takeRows(keyNopeRows(attention, plan), plan.nopeElements.flatMap((elements, head) => elements.map((element) => head * headDim + element)));
  return {
    keyNope: asMatrix(keys), keyNopeBias: keys.bias ?? new Float64Array(keys.rows),
    queryNope() {
      const queries = takeRows(queryNopeRows(attention, plan), queryElements(plan, { heads, kvHeads, headDim }));
      return { weight: asMatrix(queries), bias: queries.bias ?? new Float64Array(queries.rows) };
    },
    value: asMatrix({ weight: Float64Array.from(attention.value.weight.data), rows: kvHeads * headDim, cols: attention.hidden }),
    nopeWidth: plan.nopeElements[0]?.length ?? 0,
  };
}

const asMatrix = ({ weight, rows, cols }: Pick<Rows, 'weight' | 'rows' | 'cols'>): Matrix => matrix(rows, cols, weight);
const rounded = ({ rows, cols, data }: Matrix): HostTensor<'float32'> => ({ dtype: 'float32', shape: [rows, cols], data: Float32Array.from(data) });

interface MeasuredFactors {
  readonly factors: FactorMatrices;
  readonly keyError: number;
  readonly valueError: number;
  readonly energyKept: number;
}

async function measuredFactors(work: Promise<FactorMatrices>, latentGroups: number, keyNope: Matrix, value: Matrix, gemm: Gemm): Promise<MeasuredFactors> {
  const factors = await work;
  const lost = async (up: Matrix, of: Matrix): Promise<number> => {
    if (of.rows === 0) return 0;
    const kept = await gemm.multiply(spreadGroups(up, latentGroups), factors.down);
    const difference = subtract(of, kept);
    const norm = frobeniusNorm(difference);
    freeMemory([kept.data, difference.data]);
    return norm;
  };
  const [keyLost, valueLost] = [await lost(factors.keyUp, keyNope), await lost(factors.valueUp, value)];
  const [keyNorm, valueNorm] = [keyNope.rows === 0 ? 0 : frobeniusNorm(keyNope), frobeniusNorm(value)];
  const relative = (error: number, norm: number): number => (norm === 0 ? 0 : error / norm);
  return {
    factors,
    keyError: relative(keyLost, keyNorm),
    valueError: relative(valueLost, valueNorm),
    energyKept: 1 - relative(keyLost ** 2 + valueLost ** 2, keyNorm ** 2 + valueNorm ** 2),
  };
}

function factorSubgraph({ layer, hidden, kvHeads, headDim }: AttentionLayer, { down, keyUp, valueUp, nopeWidth, latentGroups }: Pick<KvFactors, 'down' | 'keyUp' | 'valueUp' | 'nopeWidth' | 'latentGroups'>): Subgraph {
  return record(`kv-factors-${layer}`, { hidden: layerInputs(hidden).hidden }, (g, x) => {
    const latent = linear(g, x.hidden, { weight: g.parameter('kv_down_proj.weight', down), bias: null });
    const heads = (name: string, up: HostTensor<'float32'>, width: number): Value =>
      expandLatent(g, latent, g.reshape(g.parameter(name, up), [kvHeads, width, up.shape[1] ?? 0]), latentGroups);
    const v = heads('v_up_proj.weight', valueUp, headDim);
    const keys: Record<string, Value> = nopeWidth === 0 ? {} : { kNope: heads('k_up_proj.weight', keyUp, nopeWidth) };
    return { latent, ...keys, v };
  });
}
