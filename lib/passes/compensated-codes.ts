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

/** Outputs that are rounded together; bounds the memory of their rests. */
const STRIP = 4096;
/** Inputs between two matrix products that carry rests over; among them, plain loops do. */
const PANEL = 128;

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
  const panel = Math.max(PANEL, blockSize);
  let lost = 0, whole = 0;
  for (let first = 0; first < outputs; first += STRIP) {
    const rows = Math.min(STRIP, outputs - first);
    const rest = new Float32Array(rows * inputs); // w - w', 0 where not yet rounded
    for (let start = Math.floor((inputs - 1) / panel) * panel; start >= 0; start -= panel) {
      const stop = Math.min(start + panel, inputs), width = stop - start;
      const carried = await carry(rest, rows, inputs, feedback, start, stop, gemm);
      for (let row = 0; row < rows; row++) {
        const r = row * inputs, w = (first + row) * inputs;
        for (let from = start + Math.floor((width - 1) / blockSize) * blockSize; from >= start; from -= blockSize) {
          const count = Math.min(blockSize, stop - from), block = (first + row) * blocks + from / blockSize;
          // The block's own rests are still 0, so its targets hold what comes from behind it.
          for (let i = from; i < from + count; i++) target[i - from] = weights[w + i]! + carried[row * width + i - start]! + taken(feedback, rest, i * inputs, r, from + count, stop);
          fitBlock(target, ones, count, top, fit);
          const { scale, zero } = fit, inverse = scale === 0 ? 0 : 1 / scale;
          rounded.scales[block] = scale;
          rounded.zeros[block] = zero;
          rounded.codes.fill(zero, block * blockSize + count, (block + 1) * blockSize);
          for (let i = count - 1; i >= 0; i--) {
            const sum = target[i]! + taken(feedback, rest, (from + i) * inputs, r, from + i + 1, from + count);
            let code = (sum * inverse + zero + 0.5) | 0;
            code = code < 0 ? 0 : code > top ? top : code;
            rounded.codes[block * blockSize + i] = code;
            const weight = weights[w + from + i]!, left = weight - scale * (code - zero);
            rest[r + from + i] = left;
            lost += left * left;
            whole += weight * weight;
          }
        }
      }
    }
  }
  return packCodes(rounded, outputs, inputs, options, whole === 0 ? 0 : Math.sqrt(lost / whole));
}

/** L_ki / L_ii at [i, k] for k > i: row i holds what input i takes over from the inputs behind it. */
async function feedbackOf(moments: Matrix, damping: number, gemm: Gemm): Promise<Float32Array> {
  const n = moments.rows, data = moments.data.slice();
  let trace = 0;
  for (let i = 0; i < n; i++) trace += data[i * n + i]!;
  // Inputs that never fire have no moments at all: any positive number makes them independent.
  const ridge = trace === 0 ? 1 : (damping * trace) / n;
  for (let i = 0; i < n; i++) data[i * n + i]! += ridge;
  const { data: lower } = await cholesky(matrix(n, n, data), { gemm });
  const feedback = new Float32Array(n * n);
  for (let k = 0; k < n; k++) for (let i = 0; i < k; i++) feedback[i * n + k] = lower[k * n + i]! / lower[i * n + i]!;
  return feedback;
}

/** What one input takes over from inputs from..to of its row. */
function taken(feedback: Float32Array, rest: Float32Array, feedbackRow: number, restRow: number, from: number, to: number): number {
  let sum = 0;
  for (let k = from; k < to; k++) sum += feedback[feedbackRow + k]! * rest[restRow + k]!;
  return sum;
}

/** What inputs start..stop take over from those behind `stop`: [rows, stop - start]. */
async function carry(rest: Float32Array, rows: number, inputs: number, feedback: Float32Array, start: number, stop: number, gemm: Gemm): Promise<Float32Array> {
  const behind = inputs - stop, width = stop - start;
  if (behind === 0) return new Float32Array(rows * width);
  const done = new Float32Array(rows * behind), factors = new Float32Array(width * behind);
  for (let row = 0; row < rows; row++) done.set(rest.subarray(row * inputs + stop, (row + 1) * inputs), row * behind);
  for (let i = start; i < stop; i++) factors.set(feedback.subarray(i * inputs + stop, (i + 1) * inputs), (i - start) * behind);
  return (await gemm.multiply(matrix(rows, behind, done), matrix(width, behind, factors), { transposeB: true })).data;
}
