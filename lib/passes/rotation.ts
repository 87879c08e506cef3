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
  const odd = size / power, random = seededRandom(seed), scale = 1 / Math.sqrt(power);
  const signs = Float64Array.from({ length: size }, () => (random.integer(2) === 0 ? scale : -scale));
  const mix = cosineTransform(odd, power);
  return {
    size,
    apply(x) {
      for (let i = 0; i < size; i++) x[i]! *= signs[i]!;
      for (let from = 0; from < size; from += power) hadamard(x, from, power);
      mix(x);
    },
  };
}

/** Products of a cosine transform that are summed at a time. */
const TERMS = 4;

/**
 * The orthogonal cosine transform of an odd number of rows [odd, width], in place: y[k] = sum over n of c[k, n] x[n]. A cosine is
 * the same for n from either end, or its opposite where k is odd, and 0 in the middle: half of the products are enough.
 */
function cosineTransform(odd: number, width: number): (x: Float64Array) => void {
  if (odd === 1) return () => {};
  const half = (odd - 1) / 2, terms = Math.ceil(half / TERMS) * TERMS;
  const cosine = (k: number, n: number): number => Math.sqrt((k === 0 ? 1 : 2) / odd) * Math.cos((Math.PI * k * (2 * n + 1)) / (2 * odd));
  // Zeros behind the first `half`, so that products go four at a time.
  const cosines = Float64Array.from({ length: odd * terms }, (_, at) => (at % terms < half ? cosine(Math.floor(at / terms), at % terms) : 0));
  const middles = Float64Array.from({ length: odd }, (_, k) => (k % 2 === 0 ? cosine(k, half) : 0));
  const sums = new Float64Array(terms * width), differences = new Float64Array(terms * width), middle = new Float64Array(width);
  return (x) => {
    for (let n = 0; n < half; n++) {
      for (let p = 0, at = n * width, a = at, b = (odd - 1 - n) * width; p < width; p++, at++, a++, b++) {
        sums[at] = x[a]! + x[b]!;
        differences[at] = x[a]! - x[b]!;
      }
    }
    middle.set(x.subarray(half * width, (half + 1) * width));
    for (let k = 0; k < odd; k++) {
      const from = k % 2 === 0 ? sums : differences, y = k * width, m = middles[k]!;
      for (let p = 0; p < width; p++) x[y + p] = m * middle[p]!;
      for (let n = 0; n < terms; n += TERMS) {
        const row = k * terms + n, c0 = cosines[row]!, c1 = cosines[row + 1]!, c2 = cosines[row + 2]!, c3 = cosines[row + 3]!;
        const i0 = n * width, i1 = i0 + width, i2 = i1 + width, i3 = i2 + width;
        for (let p = 0; p < width; p++) x[y + p]! += c0 * from[i0 + p]! + c1 * from[i1 + p]! + c2 * from[i2 + p]! + c3 * from[i3 + p]!;
      }
    }
  };
}

/** Hadamard's transform of `length` (a power of two) elements in place, unscaled; three halvings at a time, so that a third of the reads and writes is left. */
function hadamard(x: Float64Array, from: number, length: number): void {
  let half = 1;
  for (; 8 * half <= length; half *= 8) {
    for (let start = from; start < from + length; start += 8 * half) {
      for (let i = start; i < start + half; i++) {
        const i1 = i + half, i2 = i1 + half, i3 = i2 + half, i4 = i3 + half, i5 = i4 + half, i6 = i5 + half, i7 = i6 + half;
        const x0 = x[i]!, x1 = x[i1]!, x2 = x[i2]!, x3 = x[i3]!, x4 = x[i4]!, x5 = x[i5]!, x6 = x[i6]!, x7 = x[i7]!;
        const a0 = x0 + x1, a1 = x0 - x1, a2 = x2 + x3, a3 = x2 - x3, a4 = x4 + x5, a5 = x4 - x5, a6 = x6 + x7, a7 = x6 - x7;
        const b0 = a0 + a2, b1 = a1 + a3, b2 = a0 - a2, b3 = a1 - a3, b4 = a4 + a6, b5 = a5 + a7, b6 = a4 - a6, b7 = a5 - a7;
        x[i] = b0 + b4; x[i1] = b1 + b5; x[i2] = b2 + b6; x[i3] = b3 + b7;
        x[i4] = b0 - b4; x[i5] = b1 - b5; x[i6] = b2 - b6; x[i7] = b3 - b7;
      }
    }
  }
  for (; half < length; half *= 2) {
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
    for (let i = 0; i < size; i++) x[i] = rows[at + i]!;
    if (gain !== null) for (let i = 0; i < size; i++) x[i]! *= gain[i]!;
    apply(x);
    out.set(x, at);
  }
  return out;
}

/** Columns that are read together: their rows' neighbours come from the nearest cache. */
const STRIP = 16;

/** R^T times [size, columns]; a new array. */
export function rotateColumns({ size, apply }: Rotation, matrix: Float32Array): Float32Array {
  const columns = matrix.length / size, out = new Float32Array(matrix.length);
  const strip = Array.from({ length: Math.min(STRIP, columns) }, () => new Float64Array(size));
  for (let first = 0; first < columns; first += STRIP) {
    const some = strip.slice(0, columns - first);
    for (let i = 0; i < size; i++) for (let c = 0, at = i * columns + first; c < some.length; c++, at++) some[c]![i] = matrix[at]!;
    for (const x of some) apply(x);
    for (let i = 0; i < size; i++) for (let c = 0, at = i * columns + first; c < some.length; c++, at++) out[at] = some[c]![i]!;
  }
  return out;
}
