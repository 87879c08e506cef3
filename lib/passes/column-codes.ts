/**
 * Whole-number codes of a matrix with one scale per output: w ~ scale * (code - 128), codes 1..255 in uint8, laid out
 * [inputs, outputs] as onnxruntime's integer products want them. Not int8: for unsigned times signed codes the engine
 * saturates at 16 bits on processors without VNNI instructions, silently and by up to half of the result; signCodes turns them
 * where it does not.
 */
export interface ColumnCodes {
  readonly inputs: number;
  readonly outputs: number;
  /** [inputs, outputs]. */
  readonly codes: Uint8Array;
  /** [outputs]. */
  readonly scales: Float32Array;
  /** ||W - W'|| / ||W||, Frobenius; 0 for a matrix of zeros. */
  readonly relativeError: number;
}

/** The code of a weight of 0. */
export const COLUMN_ZERO = 128;

/** Outputs that are transposed together: their reads stay in the nearest cache while the writes run along rows. */
const STRIP = 64;

/**
 * Rounds to nearest, the largest magnitude of an output on 127. `weights`: [outputs, inputs] row-major, or [inputs,
 * outputs] when `transposed`. Errors: lengths that do not fit, a weight that is not finite.
 */
export function quantiseColumns(weights: Float32Array, outputs: number, inputs: number, transposed: boolean): ColumnCodes {
  if (weights.length !== outputs * inputs) throw new RangeError(`quantiseColumns: weights must be [${outputs}, ${inputs}], got ${weights.length} numbers`);
  const codes = new Uint8Array(inputs * outputs), scales = new Float32Array(outputs);
  const step = transposed ? outputs : 1, row = transposed ? 1 : inputs;
  const inverse = new Float64Array(outputs);
  for (let output = 0; output < outputs; output++) {
    let extreme = 0;
    for (let i = 0, at = output * row; i < inputs; i++, at += step) {
      const magnitude = Math.abs(weights[at]!);
      // Not "if larger": NaN must not slip through.
      if (!(magnitude <= extreme)) extreme = magnitude;
    }
    if (!Number.isFinite(extreme)) throw new RangeError(`quantiseColumns: weights must be finite, got ${extreme} for output ${output}`);
    const scale = Math.fround(extreme / 127);
    scales[output] = scale;
    inverse[output] = scale === 0 ? 0 : 1 / scale;
  }
  let lost = 0, whole = 0;
  for (let first = 0; first < outputs; first += STRIP) {
    const end = Math.min(first + STRIP, outputs);
    for (let i = 0; i < inputs; i++) {
      for (let output = first; output < end; output++) {
        const w = weights[output * row + i * step]!;
        // Truncation of a positive number rounds down.
        const code = (w * inverse[output]! + (COLUMN_ZERO + 0.5)) | 0;
        const rest = w - scales[output]! * (code - COLUMN_ZERO);
        codes[i * outputs + output] = code;
        lost += rest * rest;
        whole += w * w;
      }
    }
  }
  return { inputs, outputs, codes, scales, relativeError: whole === 0 ? 0 : Math.sqrt(lost / whole) };
}

/** The matrix that codes stand for, in float64: [inputs, outputs]. */
export function dequantiseColumns({ inputs, outputs, codes, scales }: ColumnCodes): Float64Array {
  return Float64Array.from({ length: inputs * outputs }, (_, at) => (codes[at]! - COLUMN_ZERO) * scales[at % outputs]!);
}
