import { freeMemory } from '../free-memory.ts';
import { solveSpd } from '../linalg/cholesky.ts';
import type { Gemm } from '../linalg/gemm.ts';
import { matrix, scaleRows, sliceRows, transpose, zeros, type Matrix } from '../linalg/matrix.ts';
import { symmetricSqrt } from '../linalg/symmetric-sqrt.ts';
import type { LayerStatistics } from '../statistics/layer-statistics.ts';
import type { AttentionLayer } from '../surgery/attention-layer.ts';
import { stackRows } from './joint.ts';
import { leadingDirections } from './leading-directions.ts';
import type { FactorInput, FactorStrategy } from './strategy.ts';

/** Ridge of the up-projections, relative to their mean squared channel (which is 1). */
const UP_RIDGE = 1e-6;
/** A channel whose variance is below this share of the largest carries nothing but rounding, and stays empty. */
const EMPTY_CHANNEL = 1e-13;

/**
 * Errors are counted where they hurt, both in units of attention output: those of keys by the queries that read them and
 * by how much the output moves with their scores (tau), those of values by W_o. Inputs are centred, for a constant key
 * offset cancels in softmax, and the constant of values comes back as an output bias.
 *
 *   J = C - mu mu^T,  Qg = sum over heads of g of tau_h s^2 E[q_h q_h^T],  Og = sum of W_o,h^T W_o,h
 *   M = [Qg^(1/2) K_g ; Og^(1/2) V_g],  M J M^T = U S^2 U^T,  down = the first R rows of U^T M, each over its deviation
 *   up = K J down^T (down J down^T + ridge)^-1, and the same for values
 *   bias = sum over heads of W_o,h (V_g - up_g down) m_h, m_h the mean input that head h attends to
 *
 * Channels have variance 1. Rank 1..min(g n + g v, d). Source: this project, docs/frequency-bank.md, step 2.
 */
export const twoSided: FactorStrategy = {
  paper: 'this project: two-sided',
  needsStatistics: true,
  rankRange: (keyRows, valueRows, hidden) => [1, Math.min(keyRows + valueRows, hidden)],
  async factor(input) {
    const { attention, statistics, keyNope, value, rank, gemm, seed } = input;
    if (statistics === null) throw new TypeError('two-sided: statistics of calibration text are needed, got none');
    if ((attention.headNorm ?? null) !== null) throw new TypeError(`two-sided: layer ${attention.layer} must not norm its heads, its scores are not products of projections`);
    const covariance = centred(statistics);
    const keys = await byGroup(keyNope, await queryMetrics(input, statistics), gemm);
    const values = await byGroup(value, await outputMetrics(attention, gemm), gemm);
    const weighted = stackRows(keys, values);
    if (keys.rows > 0) freeMemory([keys.data, values.data]);
    const { directions, spectrum } = await leadingDirections(weighted, covariance, rank, { gemm, seed });
    const deviations = spectrum.subarray(0, rank);
    const down = scaleRows(await gemm.multiply(directions, weighted), deviations.map((s) => (s ** 2 > EMPTY_CHANNEL * spectrum[0]! ** 2 ? 1 / s : 0)));
    freeMemory([weighted.data]);
    const inputs = await gemm.multiply(covariance, down, { transposeB: true }); // [d, R]
    freeMemory([covariance.data]);
    const gram = await gemm.multiply(down, inputs);
    const up = async (rows: Matrix): Promise<Matrix> => {
      if (rows.rows === 0) return zeros(0, rank);
      const seen = transpose(await gemm.multiply(rows, inputs));
      const solution = await solveSpd(gram, seen, { gemm, ridge: UP_RIDGE });
      const turned = transpose(solution);
      freeMemory([seen.data, solution.data]);
      return turned;
    };
    const [keyUp, valueUp] = [await up(keyNope), await up(value)];
    return { down, keyUp, valueUp, spectrum, outputBias: await meanOutput(attention, statistics, value, valueUp, down, gemm) };
  },
};

/** C - mu mu^T. */
function centred({ secondMoment, mean }: LayerStatistics): Matrix {
  const { rows, cols, data } = secondMoment;
  return matrix(rows, cols, data.map((x, at) => x - mean[Math.floor(at / cols)]! * mean[at % cols]!));
}

/** Rows [g n, d] of every KV head times the root of its metric [n, n]. */
async function byGroup(rows: Matrix, metrics: readonly Matrix[], gemm: Gemm): Promise<Matrix> {
  const out = zeros(rows.rows, rows.cols);
  const width = rows.rows / metrics.length;
  if (width === 0) return out;
  for (const [group, metric] of metrics.entries()) {
    const { root } = await symmetricSqrt(metric, { gemm });
    const weighted = await gemm.multiply(root, sliceRows(rows, group * width, (group + 1) * width));
    out.data.set(weighted.data, group * width * rows.cols);
    freeMemory([weighted.data]);
  }
  return out;
}

/** Qg of every KV head: sum over its query heads of tau_h s^2 E[q q^T] with q = W x + b. */
async function queryMetrics({ attention, queryNope, gemm }: FactorInput, { secondMoment, mean, outputSensitivity }: LayerStatistics): Promise<Matrix[]> {
  const { heads, kvHeads, scale } = attention;
  const { weight, bias } = queryNope();
  const n = weight.rows / heads;
  if (n === 0) return Array.from({ length: kvHeads }, () => zeros(0, 0));
  const seen = await gemm.multiply(weight, secondMoment);
  const average = await gemm.multiply(weight, matrix(mean.length, 1, mean)); // W mu
  const metrics = Array.from({ length: kvHeads }, () => zeros(n, n));
  for (let head = 0; head < heads; head++) {
    const from = head * n;
    const moment = await gemm.multiply(sliceRows(seen, from, from + n), sliceRows(weight, from, from + n), { transposeB: true });
    const share = outputSensitivity[head]! * scale ** 2;
    const into = metrics[Math.floor(head / (heads / kvHeads))]!.data;
    for (let r = 0; r < n; r++) {
      const [averageR, biasR] = [average.data[from + r]!, bias[from + r]!];
      for (let c = 0; c < n; c++) {
        const [averageC, biasC] = [average.data[from + c]!, bias[from + c]!];
        into[r * n + c]! += share * (moment.data[r * n + c]! + averageR * biasC + biasR * averageC + biasR * biasC);
      }
    }
  }
  freeMemory([weight.data, seen.data]);
  return metrics;
}

/** W_o,h [hidden, v] of one query head, in float64. */
const outputOf = ({ output, headDim, heads, hidden }: AttentionLayer, head: number): Matrix =>
  matrix(hidden, headDim, Float64Array.from({ length: hidden * headDim }, (_, at) => output.weight.data[Math.floor(at / headDim) * heads * headDim + head * headDim + (at % headDim)]!));

/** Og of every KV head: sum over its query heads of W_o,h^T W_o,h. */
async function outputMetrics(attention: AttentionLayer, gemm: Gemm): Promise<Matrix[]> {
  const { heads, kvHeads, headDim } = attention;
  const metrics = Array.from({ length: kvHeads }, () => zeros(headDim, headDim));
  for (let head = 0; head < heads; head++) {
    const own = outputOf(attention, head);
    const product = await gemm.multiply(own, own, { transposeA: true });
    const into = metrics[Math.floor(head / (heads / kvHeads))]!.data;
    product.data.forEach((x, at) => { into[at]! += x; });
    freeMemory([own.data]);
  }
  return metrics;
}

/** What the mean of the values that the latent leaves out adds to the layer's output: [hidden]. */
async function meanOutput(attention: AttentionLayer, { meanAttended }: LayerStatistics, value: Matrix, valueUp: Matrix, down: Matrix, gemm: Gemm): Promise<Float64Array> {
  const { heads, kvHeads, headDim, hidden } = attention;
  const whole = await gemm.multiply(meanAttended, value, { transposeB: true }); // [h, g v]
  const kept = await gemm.multiply(await gemm.multiply(meanAttended, down, { transposeB: true }), valueUp, { transposeB: true });
  const bias = new Float64Array(hidden);
  for (let head = 0; head < heads; head++) {
    const from = head * value.rows + Math.floor(head / (heads / kvHeads)) * headDim;
    const lost = Float64Array.from({ length: headDim }, (_, i) => whole.data[from + i]! - kept.data[from + i]!);
    const own = outputOf(attention, head);
    (await gemm.multiply(own, matrix(headDim, 1, lost))).data.forEach((x, at) => { bias[at]! += x; });
    freeMemory([own.data]);
  }
  return bias;
}
