import { matrix, scaleColumns, scaleRows, sliceRows, transpose, type Matrix } from '../linalg/matrix.ts';
import { truncatedSvd } from '../linalg/randomised-svd.ts';
import { symmetricSqrt } from '../linalg/symmetric-sqrt.ts';
import { seededRandom } from '../random.ts';
import type { LayerStatistics } from '../statistics/layer-statistics.ts';
import type { AttentionLayer, Projection } from '../surgery/attention-layer.ts';
import { stackRows } from './joint.ts';
import { placements, type FactorInput, type FactorStrategy } from './strategy.ts';

/** Rows of a projection with their bias as one more column: they act on [x ; 1]. */
function withBias(weight: Matrix, bias: ArrayLike<number> | null): Matrix {
  const { rows, cols, data } = weight;
  return matrix(rows, cols + 1, Float64Array.from({ length: rows * (cols + 1) }, (_, at) => {
    const [row, col] = [Math.floor(at / (cols + 1)), at % (cols + 1)];
    return col < cols ? (data[row * cols + col] ?? NaN) : (bias?.[row] ?? 0);
  }));
}

/** E[[x ; 1] [x ; 1]^T]. */
function augmentedMoment({ secondMoment: { rows, data }, mean }: LayerStatistics): Matrix {
  const n = rows + 1;
  return matrix(n, n, Float64Array.from({ length: n * n }, (_, at) => {
    const [r, c] = [Math.floor(at / n), at % n];
    if (r < rows && c < rows) return data[r * rows + c] ?? NaN;
    return r === rows && c === rows ? 1 : (mean[Math.min(r, c)] ?? NaN);
  }));
}

/** sqrt(E[y_i^2]) averaged over the channels i of `seen`, which is W C^(1/2). */
function meanChannel({ rows, cols, data }: Matrix, from = 0): number {
  let sum = 0;
  for (let row = from; row < rows; row++) {
    let square = 0;
    for (let col = 0; col < cols; col++) square += (data[row * cols + col] ?? NaN) ** 2;
    sum += Math.sqrt(square);
  }
  return sum / (rows - from);
}

/** The keys' remainder in the basis that the plan gives it (two channels per combination), else as it is. */
function channels({ attention, plan }: FactorInput, keyNope: Matrix): Matrix {
  if (plan.rest === undefined) return keyNope;
  const { headDim } = attention;
  const row = new Map(plan.nopeElements.flatMap((elements, head) => elements.map((element) => head * headDim + element)).map((element, i) => [element, i]));
  const { cols } = keyNope;
  const out = new Float64Array(2 * plan.rest.length * cols);
  plan.rest.forEach((terms, c) => [0, headDim / 2].forEach((member, part) => {
    for (const { head, pair, re } of terms) {
      const source = row.get(head * headDim + pair + member);
      if (source === undefined) continue;
      for (let col = 0; col < cols; col++) out[(2 * c + part) * cols + col] = (out[(2 * c + part) * cols + col] ?? 0) + re * (keyNope.data[source * cols + col] ?? NaN);
    }
  }));
  return matrix(2 * plan.rest.length, cols, out);
}

/**
 * Principal components of [k_nope / ratio ; v] over calibration tokens, biases included and not centred; ratio = mean norm of
 * the key channels over that of the value channels, so that the larger of the two does not take all components. As in the
 * code of TransMLA the first 2n value channels stay out of that mean, and v's bias goes through the latent.
 * Rank 1..min(g n + g v, d, and one more with biases). Source: Meng et al. 2025 (TransMLA), section 4.3; transmla/lora_qkv.py.
 */
export const balancedPca: FactorStrategy = {
  paper: 'Meng et al. 2025 (TransMLA), BKV-PCA',
  needsStatistics: true,
  rankRange: (keyRows, valueRows, hidden) => [1, Math.min(keyRows + valueRows, hidden)],
  async factor(input) {
    const { attention, plan, statistics, rank, keyNopeBias, gemm, seed, singularValues } = input;
    if (statistics === null) throw new TypeError('balanced-pca: statistics of calibration text are needed, got none');
    // Fewer tokens than inputs leave eigenvalues of zero, which float32 sums may miss by a little to either side.
    const { root } = await symmetricSqrt(augmentedMoment(statistics), { gemm, noise: 1e-6 });
    const [keys, values] = [withBias(input.keyNope, keyNopeBias), withBias(input.value, attention.value.bias?.data ?? null)];
    const rotating = 2 * plan.components.length;
    const ratio = keys.rows === 0 ? 1 : meanChannel(await gemm.multiply(channels(input, keys), root)) / meanChannel(await gemm.multiply(values, root), rotating < values.rows ? rotating : 0);
    const balanced = stackRows(scaleRows(keys, new Float64Array(keys.rows).fill(1 / ratio)), values);
    const { u, s } = await truncatedSvd(await gemm.multiply(balanced, root), rank, { gemm, random: seededRandom(seed) });
    // U is orthonormal; where singular values are wanted on the up side, the latent is divided by them.
    const up = s.map((x) => (x > 0 ? placements[singularValues].up(x) : 1));
    const weights = stackRows(scaleRows(input.keyNope, new Float64Array(keys.rows).fill(1 / ratio)), input.value);
    const down = scaleRows(await gemm.multiply(transpose(u), weights), up.map((x) => 1 / x));
    const scaled = scaleColumns(u, up);
    const valueU = sliceRows(u, keys.rows, u.rows);
    return {
      down, spectrum: s,
      keyUp: scaleRows(sliceRows(scaled, 0, keys.rows), new Float64Array(keys.rows).fill(ratio)), valueUp: sliceRows(scaled, keys.rows, scaled.rows),
      ...(attention.value.bias === null ? {} : { outputBias: await biasLost(attention, attention.value.bias, valueU, u, balanced, gemm) }),
    };
  },
};

/** W_o (U_v U^T b - b_v): what the value bias becomes on its way through the latent, less itself. [hidden]. */
async function biasLost({ output, heads, kvHeads, headDim, hidden }: AttentionLayer, bias: NonNullable<Projection['bias']>, valueU: Matrix, u: Matrix, balanced: Matrix, gemm: FactorInput['gemm']): Promise<Float64Array> {
  const last = balanced.cols - 1;
  const biases = matrix(balanced.rows, 1, Float64Array.from({ length: balanced.rows }, (_, row) => balanced.data[row * balanced.cols + last] ?? NaN));
  const through = await gemm.multiply(valueU, await gemm.multiply(u, biases, { transposeA: true }));
  const perGroup = heads / kvHeads;
  const width = heads * headDim;
  return Float64Array.from({ length: hidden }, (_, row) => {
    let sum = 0;
    for (let column = 0; column < width; column++) {
      const channel = Math.floor(column / headDim / perGroup) * headDim + (column % headDim);
      sum += (output.weight.data[row * width + column] ?? NaN) * ((through.data[channel] ?? NaN) - (bias.data[channel] ?? NaN));
    }
    return sum;
  });
}
