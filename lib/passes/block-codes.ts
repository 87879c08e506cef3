/**
 * Block-wise codes of a matrix in the layout of onnxruntime's MatMulNBits: every output has its K weights in blocks of
 * `blockSize` along K, one scale and zero point per block, w ~ scale * (code - zero). 4-bit codes lie two in a byte,
 * the earlier in the low half. K is padded with weights of 0 to whole blocks.
 * Source: onnxruntime docs/ContribOperators.md, com.microsoft.MatMulNBits.
 */
import { blockRoundings, isSymmetric, type BlockFit, type BlockRoundingName } from './block-rounding.ts';

export type Bits = 4 | 8;

export interface BlockCodes {
  readonly outputs: number;
  readonly inputs: number;
  readonly bits: Bits;
  readonly blockSize: number;
  /** [outputs, blocks, blockSize * bits / 8]. */
  readonly codes: Uint8Array;
  /** [outputs, blocks]. */
  readonly scales: Float32Array;
  /** [outputs, ceil(blocks * bits / 8)], packed as the codes are; null: the middle code everywhere. */
  readonly zeros: Uint8Array | null;
  /** ||W - W'|| / ||W||, Frobenius; 0 for a matrix of zeros. */
  readonly relativeError: number;
}

export interface BlockCodesOptions {
  readonly bits: Bits;
  readonly blockSize: number;
  readonly rounding: BlockRoundingName;
  /** Factor on the squared error per input, [K]: E[x^2] from calibration. Default: all alike. */
  readonly importance?: ArrayLike<number>;
}

export const blocksOf = (inputs: number, blockSize: number): number => Math.ceil(inputs / blockSize);

/** Where weight (output, input) lies: row-major [outputs, inputs], or its transpose. */
const strides = (inputs: number, outputs: number, transposed: boolean): { output: number; input: number } =>
  (transposed ? { output: 1, input: outputs } : { output: inputs, input: 1 });

/**
 * Quantises a matrix. `weights`: [outputs, inputs] row-major, or [inputs, outputs] when `transposed`.
 * Errors: lengths that do not fit, a weight that is not finite (naming where it is).
 */
export function quantiseBlocks(weights: Float32Array, outputs: number, inputs: number, transposed: boolean, options: BlockCodesOptions): BlockCodes {
  const { bits, blockSize, rounding } = options;
  if (weights.length !== outputs * inputs) throw new RangeError(`quantiseBlocks: weights must be [${outputs}, ${inputs}], got ${weights.length} numbers`);
  const blocks = blocksOf(inputs, blockSize), top = 2 ** bits - 1, symmetric = isSymmetric(rounding);
  const codes = new Uint8Array((outputs * blocks * blockSize * bits) / 8);
  const scales = new Float32Array(outputs * blocks);
  const zeroRow = Math.ceil((blocks * bits) / 8);
  const zeros = symmetric ? null : new Uint8Array(outputs * zeroRow);
  const importance = importanceBlocks(inputs, blocks * blockSize, options.importance);
  const block = new Float64Array(blockSize), fitBlock = blockRoundings[rounding], fit: BlockFit = { scale: 0, zero: 0 };
  const stride = strides(inputs, outputs, transposed);
  let lost = 0, whole = 0;
  for (let output = 0, at = 0; output < outputs; output++) {
    for (let b = 0; b < blocks; b++, at++) {
      const from = b * blockSize, count = Math.min(blockSize, inputs - from), start = output * stride.output + from * stride.input;
      for (let i = 0; i < count; i++) block[i] = weights[start + i * stride.input]!;
      fitBlock(block, importance.subarray(from, from + count), count, top, fit);
      const { scale, zero } = fit;
      if (!Number.isFinite(scale)) throw new RangeError(`quantiseBlocks: weights must be finite, got ${scale} as the scale of output ${output}, inputs ${from}..${from + count - 1}`);
      scales[at] = scale;
      if (zeros !== null) put(zeros, output * zeroRow, b, zero, bits);
      const inverse = scale === 0 ? 0 : 1 / scale, first = at * blockSize;
      for (let i = 0; i < count; i++) {
        const w = block[i]!;
        let code = (w * inverse + zero + 0.5) | 0;
        code = code < 0 ? 0 : code > top ? top : code;
        const rest = w - scale * (code - zero);
        lost += rest * rest;
        whole += w * w;
        if (bits === 8) codes[first + i] = code;
        else codes[(first + i) >> 1]! |= code << (4 * (i & 1));
      }
      // Padding must be worth 0, which is the code of the zero point.
      for (let i = count; i < blockSize; i++) put(codes, (first * bits) / 8, i, zero, bits);
    }
  }
  if (!Number.isFinite(whole)) throw new RangeError('quantiseBlocks: weights must be finite, got NaN or infinity');
  return { outputs, inputs, bits, blockSize, codes, scales, zeros, relativeError: whole === 0 ? 0 : Math.sqrt(lost / whole) };
}

/** Writes value `index` of a packed row that starts at byte `row` and holds 0 there. */
function put(packed: Uint8Array, row: number, index: number, value: number, bits: Bits): void {
  if (bits === 8) packed[row + index] = value;
  else packed[row + (index >> 1)]! |= value << (4 * (index & 1));
}

const get = (packed: Uint8Array, row: number, index: number, bits: Bits): number =>
  (bits === 8 ? packed[row + index]! : (packed[row + (index >> 1)]! >> (4 * (index & 1))) & 15);

/** Importance padded to whole blocks; inputs that never fire still get a little weight, so that no block is left without any. */
function importanceBlocks(inputs: number, padded: number, given: ArrayLike<number> | undefined): Float64Array {
  if (given === undefined) return new Float64Array(padded).fill(1);
  if (given.length !== inputs) throw new RangeError(`quantiseBlocks: importance must have ${inputs} numbers, got ${given.length}`);
  const values = Float64Array.from(given);
  const bad = values.findIndex((v) => !Number.isFinite(v) || v < 0);
  if (bad >= 0) throw new RangeError(`quantiseBlocks: importance must be finite and not negative, got ${values[bad]} for input ${bad}`);
  const mean = values.reduce((a, b) => a + b, 0) / inputs;
  const floor = mean === 0 ? 1 : mean * 1e-3;
  const out = new Float64Array(padded).fill(floor);
  values.forEach((v, i) => { out[i] = Math.max(v, floor); });
  return out;
}

/** Codes and zero points that lie one in a byte, [outputs, blocks, blockSize] and [outputs, blocks], brought into the layout. */
export function packCodes(
  { codes, scales, zeros }: { readonly codes: Uint8Array; readonly scales: Float32Array; readonly zeros: Uint8Array },
  outputs: number, inputs: number, { bits, blockSize, rounding }: BlockCodesOptions, relativeError: number,
): BlockCodes {
  const blocks = blocksOf(inputs, blockSize), zeroRow = Math.ceil((blocks * bits) / 8);
  const packed = bits === 8 ? codes : new Uint8Array(codes.length / 2);
  if (bits === 4) for (let i = 0; i < packed.length; i++) packed[i] = codes[2 * i]! | (codes[2 * i + 1]! << 4);
  const packedZeros = isSymmetric(rounding) ? null : new Uint8Array(outputs * zeroRow);
  if (packedZeros !== null) zeros.forEach((zero, at) => put(packedZeros, Math.floor(at / blocks) * zeroRow, at % blocks, zero, bits));
  return { outputs, inputs, bits, blockSize, codes: packed, scales, zeros: packedZeros, relativeError };
}

/** Zero points one in a byte: [outputs, blocks]. */
export function unpackZeros({ outputs, inputs, bits, blockSize, zeros }: BlockCodes): Uint8Array {
  const blocks = blocksOf(inputs, blockSize), zeroRow = Math.ceil((blocks * bits) / 8);
  const out = new Uint8Array(outputs * blocks).fill(2 ** (bits - 1));
  if (zeros !== null) for (let at = 0; at < out.length; at++) out[at] = get(zeros, Math.floor(at / blocks) * zeroRow, at % blocks, bits);
  return out;
}

/** The matrix that codes stand for, in float64: [outputs, inputs]. The reference for every operator that reads them. */
export function dequantiseBlocks({ outputs, inputs, bits, blockSize, codes, scales, zeros }: BlockCodes): Float64Array {
  const blocks = blocksOf(inputs, blockSize), zeroRow = Math.ceil((blocks * bits) / 8);
  const weights = new Float64Array(outputs * inputs);
  for (let output = 0; output < outputs; output++) {
    for (let i = 0; i < inputs; i++) {
      const b = Math.floor(i / blockSize), at = output * blocks + b;
      const zero = zeros === null ? 2 ** (bits - 1) : get(zeros, output * zeroRow, b, bits);
      weights[output * inputs + i] = scales[at]! * (get(codes, (at * blockSize * bits) / 8, i - b * blockSize, bits) - zero);
    }
  }
  return weights;
}
