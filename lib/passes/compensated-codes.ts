/** Rounding that makes up for its own errors, given how the inputs of a matrix move together. */
import { cholesky } from '../linalg/cholesky.ts';
import type { Gemm } from '../linalg/gemm.ts';
import { matrix, type Matrix } from '../linalg/matrix.ts';
import { blocksOf, packCodes, type BlockCodes, type BlockCodesOptions } from './block-codes.ts';
import { blockRoundings, type BlockFit } from './block-rounding.ts';

export interface CompensationOptions extends BlockCodesOptions {
  readonly gemm: Gemm;
  /** Added to the diagonal of the moments, as a part of its mean: trust in the calibration text. Default 0.01. */
  readonly damping?: number;
}

/** Outputs that are rounded together: their rests stay in memory as float64. */
const STRIP = 4096;

/**
 * Codes of a matrix that minimise E||(W - W') x||^2 step by step instead of ||W - W'||^2. With E[x x^T] = L L^T the error
 * is ||L^T (w - w')||^2 for each output; from the last input to the first, each weight is rounded after adding what the
 * weights rounded before it left over: w_i + sum over k > i of L_ki / L_ii (w_k - w'_k).
 *
 * weights: [outputs, inputs] row-major. moments: E[x x^T], [inputs, inputs]. `relativeError` of the result is that of the
 * weights as always, which this makes larger, not smaller.
 * Errors: lengths that do not fit, numbers that are not finite, moments that are not those of any input.
 * Source: Frantar et al. 2022 (GPTQ); in this form, without an inverse, Chen et al. 2025.
 */
export async function compensatedCodes(weights: Float32Array, outputs: number, inputs: number, moments: Matrix, options: CompensationOptions): Promise<BlockCodes> {
  const { bits, blockSize, rounding, gemm, damping = 0.01 } = options;
  if (weights.length !== outputs * inputs) throw new RangeError(`compensatedCodes: weights must be [${outputs}, ${inputs}], got ${weights.length} numbers`);
  if (moments.rows !== inputs || moments.cols !== inputs) throw new RangeError(`compensatedCodes: moments must be [${inputs}, ${inputs}], got [${moments.rows}, ${moments.cols}]`);
  const bad = weights.findIndex((w) => !Number.isFinite(w));
  if (bad >= 0) throw new RangeError(`compensatedCodes: weights must be finite, got ${weights[bad]} at output ${Math.floor(bad / inputs)}, input ${bad % inputs}`);
  const feedback = await feedbackOf(moments, damping, gemm);
  const blocks = blocksOf(inputs, blockSize), top = 2 ** bits - 1;
  const rounded = { codes: new Uint8Array(outputs * blocks * blockSize), scales: new Float32Array(outputs * blocks), zeros: new Uint8Array(outputs * blocks) };
  const fitBlock = blockRoundings[rounding], fit: BlockFit = { scale: 0, zero: 0 };
  const target = new Float64Array(blockSize), ones = new Float64Array(blockSize).fill(1);
  let lost = 0, whole = 0;
  for (let first = 0; first < outputs; first += STRIP) {
    const rows = Math.min(STRIP, outputs - first);
    const rest = new Float64Array(rows * inputs); // w - w', 0 where not yet rounded
    for (let b = blocks - 1; b >= 0; b--) {
      const from = b * blockSize, count = Math.min(blockSize, inputs - from), end = from + count;
      const carried = end === inputs ? null : await carry(rest, rows, inputs, feedback, from, end, gemm);
      for (let row = 0; row < rows; row++) {
        const at = (first + row) * inputs + from, r = row * inputs + from;
        for (let i = 0; i < count; i++) target[i] = weights[at + i]! + (carried === null ? 0 : carried[row * count + i]!);
        fitBlock(target, ones, count, top, fit);
        const { scale, zero } = fit, inverse = scale === 0 ? 0 : 1 / scale, block = (first + row) * blocks + b;
        rounded.scales[block] = scale;
        rounded.zeros[block] = zero;
        rounded.codes.fill(zero, block * blockSize + count, (block + 1) * blockSize);
        for (let i = count - 1; i >= 0; i--) {
          let sum = target[i]!;
          const column = (from + i) * inputs + from;
          for (let k = i + 1; k < count; k++) sum += feedback[column + k]! * rest[r + k]!;
          let code = (sum * inverse + zero + 0.5) | 0;
          code = code < 0 ? 0 : code > top ? top : code;
          rounded.codes[block * blockSize + i] = code;
          const w = weights[at + i]!, left = w - scale * (code - zero);
          rest[r + i] = left;
          lost += left * left;
          whole += w * w;
        }
      }
    }
  }
  return packCodes(rounded, outputs, inputs, options, whole === 0 ? 0 : Math.sqrt(lost / whole));
}

/** L_ki / L_ii at [i, k] for k > i: row i holds what input i takes over from the inputs behind it. */
async function feedbackOf(moments: Matrix, damping: number, gemm: Gemm): Promise<Float64Array> {
  const n = moments.rows, data = moments.data.slice();
  let trace = 0;
  for (let i = 0; i < n; i++) trace += data[i * n + i]!;
  // Inputs that never fire have no moments at all: any positive number makes them independent.
  const ridge = trace === 0 ? 1 : (damping * trace) / n;
  for (let i = 0; i < n; i++) data[i * n + i]! += ridge;
  const { data: lower } = await cholesky(matrix(n, n, data), { gemm });
  const feedback = new Float64Array(n * n);
  for (let k = 0; k < n; k++) for (let i = 0; i < k; i++) feedback[i * n + k] = lower[k * n + i]! / lower[i * n + i]!;
  return feedback;
}

/** What inputs from..end take over from those behind `end`: [rows, end - from]. */
async function carry(rest: Float64Array, rows: number, inputs: number, feedback: Float64Array, from: number, end: number, gemm: Gemm): Promise<Float64Array> {
  const behind = inputs - end;
  const done = new Float64Array(rows * behind), taken = new Float64Array((end - from) * behind);
  for (let row = 0; row < rows; row++) done.set(rest.subarray(row * inputs + end, (row + 1) * inputs), row * behind);
  for (let i = from; i < end; i++) taken.set(feedback.subarray(i * inputs + end, (i + 1) * inputs), (i - from) * behind);
  return (await gemm.multiply(matrix(rows, behind, done), matrix(end - from, behind, taken), { transposeB: true })).data;
}
