/**
 * An orthogonal rotation of vectors that mixes every element with every other in n log n steps: random signs, then
 * Hadamard's matrix over the largest power of two in n, then a cosine transform over the odd rest.
 */
import { seededRandom } from '../random.ts';

export interface Rotation {
  readonly size: number;
  /** x <- x R for a row vector x of `size` elements. */
  apply(x: Float64Array): void;
}

/** The rotation of a size, the same for the same seed. */
export function mixingRotation(size: number, seed = 0): Rotation {
  if (!Number.isInteger(size) || size < 1) throw new RangeError(`mixingRotation: size must be 1 or more, got ${size}`);
  let power = 1;
  while (size % (2 * power) === 0) power *= 2;
  const odd = size / power, random = seededRandom(seed);
  const signs = Float64Array.from({ length: size }, () => (random.integer(2) === 0 ? 1 : -1));
  const cosines = Float64Array.from({ length: odd * odd }, (_, at) => {
    const k = Math.floor(at / odd), n = at % odd;
    // The Hadamard part's 1 / sqrt(power) is in here too.
    return Math.sqrt((k === 0 ? 1 : 2) / size) * Math.cos((Math.PI * k * (2 * n + 1)) / (2 * odd));
  });
  const column = new Float64Array(odd);
  return {
    size,
    apply(x) {
      for (let i = 0; i < size; i++) x[i]! *= signs[i]!;
      for (let from = 0; from < size; from += power) hadamard(x, from, power);
      for (let p = 0; p < power; p++) {
        for (let k = 0; k < odd; k++) {
          let sum = 0;
          for (let n = 0; n < odd; n++) sum += cosines[k * odd + n]! * x[n * power + p]!;
          column[k] = sum;
        }
        for (let k = 0; k < odd; k++) x[k * power + p] = column[k]!;
      }
    },
  };
}

/** Hadamard's transform of `length` (a power of two) elements in place, unscaled. */
function hadamard(x: Float64Array, from: number, length: number): void {
  for (let half = 1; half < length; half *= 2) {
    for (let start = from; start < from + length; start += 2 * half) {
      for (let i = start; i < start + half; i++) {
        const a = x[i]!, b = x[i + half]!;
        x[i] = a + b;
        x[i + half] = a - b;
      }
    }
  }
}

/** Each row of [rows, size], multiplied by `gain` where given, times R; a new array. */
export function rotateRows({ size, apply }: Rotation, rows: Float32Array, gain: Float32Array | null): Float32Array {
  const out = new Float32Array(rows.length), x = new Float64Array(size);
  for (let at = 0; at < rows.length; at += size) {
    for (let i = 0; i < size; i++) x[i] = rows[at + i]! * (gain === null ? 1 : gain[i]!);
    apply(x);
    out.set(x, at);
  }
  return out;
}

/** R^T times [size, columns]; a new array. */
export function rotateColumns({ size, apply }: Rotation, matrix: Float32Array): Float32Array {
  const columns = matrix.length / size, out = new Float32Array(matrix.length), x = new Float64Array(size);
  for (let column = 0; column < columns; column++) {
    for (let i = 0; i < size; i++) x[i] = matrix[i * columns + column]!;
    apply(x);
    for (let i = 0; i < size; i++) out[i * columns + column] = x[i]!;
  }
  return out;
}
