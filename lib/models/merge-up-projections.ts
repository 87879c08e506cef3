/** Weights of kernels/merged-attention.ts, multiplied together from those of a converted layer. */
import type { Constant, HostTensor } from '../graph/subgraph.ts';
import type { Gemm } from '../linalg/gemm.ts';
import { matrix, sliceColumns, sliceRows, toFloat64, type Matrix } from '../linalg/matrix.ts';
import { constantValues } from '../passes/constant-weight.ts';
import { mlaTensorName, type MlaTensor } from './mla-config.ts';
import type { Model } from './model.ts';

const mergedNames = { queryRope: 'q_rope_scaled', queryLatent: 'q_latent_proj', output: 'o_latent_proj' } as const;

/** Name of a merged layer's tensor without its ending. */
export const mergedTensorName = (layer: number, tensor: keyof typeof mergedNames): string => `model.layers.${layer}.self_attn.${mergedNames[tensor]}`;

/** Whether weights are those of a merged layer. */
export const isMerged = (constants: ReadonlyMap<string, Constant>, layer: number): boolean => constants.has(`${mergedTensorName(layer, 'output')}.weight`);

/**
 * The constants of a decoder with the given layers merged: q_latent = scale keyUp^T q_nope per head [h c, d], o_latent =
 * o_proj valueUp [d, h c], and rope queries of all components, scaled. What they replace is left out. Products run in
 * float64. No output changes beyond rounding.
 */
export async function mergeUpProjections(model: Model, constants: ReadonlyMap<string, Constant>, layers: readonly number[], gemm: Gemm): Promise<ReadonlyMap<string, Constant>> {
  const merged = new Map(constants);
  for (const layer of layers) {
    const taken = (tensor: MlaTensor, ending = 'weight'): HostTensor<'float32'> | null => {
      const name = `${mlaTensorName(layer, tensor)}.${ending}`, constant = constants.get(name);
      merged.delete(name);
      return constant === undefined ? null : constantValues(constant);
    };
    const give = (tensor: keyof typeof mergedNames, { rows, cols, data }: Matrix): void => {
      merged.set(`${mergedTensorName(layer, tensor)}.weight`, { dtype: 'float32', shape: [rows, cols], data: Float32Array.from(data) });
    };
    const giveBias = (tensor: keyof typeof mergedNames, bias: ArrayLike<number> | null): void => {
      if (bias !== null) merged.set(`${mergedTensorName(layer, tensor)}.bias`, { dtype: 'float32', shape: [bias.length], data: Float32Array.from(bias) });
    };
    const { heads, kvHeads } = model.config, scale = model.scale, groupOf = (head: number): number => Math.floor(head / (heads / kvHeads));
    const wide = ({ data, shape: [rows = 1, cols = 1] }: HostTensor<'float32'>): Matrix => toFloat64(matrix(rows, cols, data));
    /** Rows of one head or KV head out of those of `parts`. */
    const block = (a: Matrix, parts: number, part: number): Matrix => sliceRows(a, (part * a.rows) / parts, ((part + 1) * a.rows) / parts);

    const rope = taken('queryRope'), ropeBias = taken('queryRope', 'bias');
    if (rope !== null) {
      const width = 2 * (model.mla?.layers[layer]?.frequencies.length ?? 0);
      give('queryRope', spreadRows(wide(rope), heads, kvHeads, width, scale));
      giveBias('queryRope', ropeBias === null ? null : spreadRows(toFloat64(matrix(ropeBias.data.length, 1, ropeBias.data)), heads, kvHeads, width, scale).data);
    }
    const nope = taken('queryNope'), keyUp = taken('keyUp'), nopeBias = taken('queryNope', 'bias');
    if (nope !== null && keyUp !== null) {
      const keys = wide(keyUp);
      const absorbed = async (queries: Matrix): Promise<Matrix> => stacked(await Promise.all(Array.from({ length: heads }, (_, head) =>
        gemm.multiply(block(keys, kvHeads, groupOf(head)), block(queries, heads, head), { transposeA: true }))), scale);
      give('queryLatent', await absorbed(wide(nope)));
      giveBias('queryLatent', nopeBias === null ? null : (await absorbed(toFloat64(matrix(nopeBias.data.length, 1, nopeBias.data)))).data);
    }
    const output = taken('output'), valueUp = taken('valueUp'), outputBias = taken('output', 'bias');
    if (output === null || valueUp === null) throw new RangeError(`mergeUpProjections: weights of layer ${layer} must have o_proj and v_up_proj`);
    const whole = wide(output), values = wide(valueUp), width = whole.cols / heads;
    give('output', besides(await Promise.all(Array.from({ length: heads }, (_, head) =>
      gemm.multiply(sliceColumns(whole, head * width, (head + 1) * width), block(values, kvHeads, groupOf(head)))))));
    giveBias('output', outputBias?.data ?? null);
  }
  return merged;
}

/** Rope queries [h m, d], or [h m / g, d] of their own KV head's components only, as [h m, d] with zeros elsewhere; times `by`. */
function spreadRows(rows: Matrix, heads: number, kvHeads: number, width: number, by: number): Matrix {
  const data = new Float64Array(heads * width * rows.cols), own = rows.rows / heads / 2, all = width / 2;
  for (let head = 0; head < heads; head++) {
    // Where all components are there, `own` is `all` and nothing moves.
    const first = own === all ? 0 : Math.floor(head / (heads / kvHeads)) * own;
    for (let half = 0; half < 2; half++) {
      const from = (head * 2 + half) * own * rows.cols, to = (head * width + half * all + first) * rows.cols;
      for (let i = 0; i < own * rows.cols; i++) data[to + i] = rows.data[from + i]! * by;
    }
  }
  return matrix(heads * width, rows.cols, data);
}

/** Blocks below each other, times `by`. */
function stacked(blocks: readonly Matrix[], by: number): Matrix {
  const rows = blocks.reduce((sum, block) => sum + block.rows, 0), cols = blocks[0]?.cols ?? 0, data = new Float64Array(rows * cols);
  let at = 0;
  for (const block of blocks) for (const value of block.data) data[at++] = value * by;
  return matrix(rows, cols, data);
}

/** Blocks of equal size beside each other. */
function besides(blocks: readonly Matrix[]): Matrix {
  const { rows = 0, cols = 0 } = blocks[0] ?? {}, data = new Float64Array(rows * cols * blocks.length);
  blocks.forEach((block, i) => {
    for (let row = 0; row < rows; row++) data.set(block.data.subarray(row * cols, (row + 1) * cols), (row * blocks.length + i) * cols);
  });
  return matrix(rows, cols * blocks.length, data);
}
