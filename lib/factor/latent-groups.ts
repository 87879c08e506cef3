/**
 * A latent per group of KV heads instead of one for all: the same cached elements, fewer FLOPs in the absorbed form (every
 * head reads rank / groups channels instead of rank), a little less quality, since groups cannot share directions.
 */
import type { HostTensor } from '../../kernels/emit.ts';
import { lazily } from '../lazily.ts';
import { matrix, sliceRows, zeros, type Matrix } from '../linalg/matrix.ts';
import type { LayerStatistics } from '../statistics/layer-statistics.ts';
import type { AttentionLayer, Projection } from '../surgery/attention-layer.ts';
import { stackRows } from './joint.ts';
import type { FactorInput, FactorMatrices, FactorStrategy } from './strategy.ts';

/** Part `group` of `groups` equal parts of some rows. */
const part = (rows: Matrix, group: number, groups: number): Matrix => sliceRows(rows, (group * rows.rows) / groups, ((group + 1) * rows.rows) / groups);
const slice = (numbers: Float64Array, group: number, groups: number): Float64Array => numbers.slice((group * numbers.length) / groups, ((group + 1) * numbers.length) / groups);

/** The given block of columns. */
function columns(from: Matrix, start: number, end: number): Matrix {
  const out = zeros(from.rows, end - start);
  for (let row = 0; row < from.rows; row++) out.data.set(from.data.subarray(row * from.cols + start, row * from.cols + end), row * out.cols);
  return out;
}

function rowsOf({ weight, bias }: Projection, group: number, groups: number): Projection {
  const cut = ({ shape: [rows = 0, ...rest], data }: HostTensor<'float32'>): HostTensor<'float32'> =>
    ({ dtype: 'float32', shape: [rows / groups, ...rest], data: data.slice((group * data.length) / groups, ((group + 1) * data.length) / groups) });
  return { weight: cut(weight), bias: bias === null ? null : cut(bias) };
}

/** A group of KV heads with the query heads that read them, as a layer of its own; its output bias is nobody's in particular. */
function groupOfLayer(attention: AttentionLayer, group: number, groups: number): AttentionLayer {
  const { heads, kvHeads, headDim, hidden, output } = attention;
  const width = (heads * headDim) / groups;
  const all = matrix(hidden, heads * headDim, Float64Array.from(output.weight.data));
  const own = columns(all, group * width, (group + 1) * width);
  return {
    ...attention, heads: heads / groups, kvHeads: kvHeads / groups,
    query: rowsOf(attention.query, group, groups), key: rowsOf(attention.key, group, groups), value: rowsOf(attention.value, group, groups),
    output: { weight: { dtype: 'float32', shape: [hidden, width], data: Float32Array.from(own.data) }, bias: null },
  };
}

function groupOfStatistics(statistics: LayerStatistics, group: number, groups: number): LayerStatistics {
  const keys = statistics.keyMoment.rows / groups;
  return {
    ...statistics,
    queryPairNorms: slice(statistics.queryPairNorms, group, groups), keyPairNorms: slice(statistics.keyPairNorms, group, groups),
    queryMoments: part(statistics.queryMoments, group, groups), keyMoment: columns(part(statistics.keyMoment, group, groups), group * keys, (group + 1) * keys),
    distances: part(statistics.distances, group, groups), outputSensitivity: slice(statistics.outputSensitivity, group, groups),
    meanAttended: part(statistics.meanAttended, group, groups),
  };
}

/** Runs a strategy once per group of KV heads, each with its share of the rank: down [R, d], ups [rows, R / groups]. */
export async function factorInGroups(strategy: FactorStrategy, input: FactorInput, groups: number): Promise<FactorMatrices> {
  if (groups === 1) return strategy.factor(input);
  // A basis over all heads cannot be kept inside a group: keys are then taken as they are.
  const { rest: _acrossHeads, ...plan } = input.plan;
  const queries = lazily(input.queryNope);
  const results: FactorMatrices[] = [];
  for (let group = 0; group < groups; group++) {
    results.push(await strategy.factor({
      ...input, plan: { ...plan, subgraph: input.plan.subgraph }, attention: groupOfLayer(input.attention, group, groups),
      statistics: input.statistics === null ? null : groupOfStatistics(input.statistics, group, groups),
      queryNope() {
        const { weight, bias } = queries();
        const own = part(weight, group, groups);
        return { weight: { ...own, data: own.data.slice() }, bias: slice(bias, group, groups) };
      },
      keyNope: part(input.keyNope, group, groups), keyNopeBias: slice(input.keyNopeBias, group, groups), value: part(input.value, group, groups),
      rank: input.rank / groups, keyRank: Math.floor(input.keyRank / groups),
    }));
  }
  const stacked = (of: (result: FactorMatrices) => Matrix): Matrix => results.map(of).reduce(stackRows);
  const biases = results.flatMap(({ outputBias }) => (outputBias === undefined ? [] : [outputBias]));
  return {
    down: stacked(({ down }) => down), keyUp: stacked(({ keyUp }) => keyUp), valueUp: stacked(({ valueUp }) => valueUp),
    spectrum: Float64Array.from(results.flatMap(({ spectrum }) => [...spectrum])).sort().reverse(),
    ...(biases.length === 0 ? {} : { outputBias: biases.reduce((sum, bias) => sum.map((x, i) => x + (bias[i] ?? NaN))) }),
  };
}

/** Up-projections of groups [rows, R / groups] as one that reads the whole latent: [rows, R], zero outside a row's own group. */
export function spreadGroups(up: Matrix, groups: number): Matrix {
  if (groups === 1 || up.rows === 0) return up;
  const wide = zeros(up.rows, up.cols * groups);
  for (let row = 0; row < up.rows; row++) {
    const group = Math.floor((row * groups) / up.rows);
    wide.data.set(up.data.subarray(row * up.cols, (row + 1) * up.cols), row * wide.cols + group * up.cols);
  }
  return wide;
}
