/** Complex principal components of segments of frequencies, over all KV heads, in the weighted space of keys. */
import { hermitianEighSmall, type ComplexMatrix, type HermitianEigen } from '../linalg/hermitian-eigh.ts';
import { zeros, type Matrix } from '../linalg/matrix.ts';

/** The eigenproblem of one segment: W^(1/2) E[k k^*] W^(1/2) = U diag(values) U^*, rows (g, f) KV head by KV head. */
export type SegmentComponents = (from: number, to: number) => HermitianEigen;

/**
 * Directions over the KV heads that a frequency takes into segments of several frequencies. With more KV heads a segment's
 * problem would grow with their cube (256 rows for 32 heads), and a segment keeps few components of all.
 */
const DIRECTIONS_PER_FREQUENCY = 8;

/** `keys` is E[k k^*] over (g, f) at g * pairs + f, `weights` the energy weights of its rows. */
export function segmentComponents(keys: ComplexMatrix, weights: Float64Array, kvHeads: number, pairs: number): SegmentComponents {
  const whole: SegmentComponents = (from, to) => hermitianEighSmall(blockOf(keys, weights, rowsOf(kvHeads, pairs, from, to), rowsOf(kvHeads, pairs, from, to)));
  if (kvHeads <= DIRECTIONS_PER_FREQUENCY) return whole;
  const directions = Array.from({ length: pairs }, (_, f) => leading(whole(f, f + 1), DIRECTIONS_PER_FREQUENCY));
  return (from, to) => (to - from === 1 ? whole(from, to) : reduced(keys, weights, kvHeads, pairs, directions.slice(from, to), from));
}

/** Index (g, f) of every row of a segment's matrices, KV head by KV head. */
export const rowsOf = (kvHeads: number, pairs: number, from: number, to: number): number[] =>
  Array.from({ length: kvHeads * (to - from) }, (_, i) => Math.floor(i / (to - from)) * pairs + from + (i % (to - from)));

const complexZeros = (rows: number, cols: number): ComplexMatrix => ({ real: zeros(rows, cols), imaginary: zeros(rows, cols) });

/** The given rows and columns of W^(1/2) keys W^(1/2). */
function blockOf(keys: ComplexMatrix, weights: Float64Array, rows: readonly number[], columns: readonly number[]): ComplexMatrix {
  const part = ({ data, cols }: Matrix): Matrix => {
    const out = zeros(rows.length, columns.length);
    rows.forEach((a, r) => columns.forEach((b, c) => { out.data[r * columns.length + c] = Math.sqrt(weights[a]! * weights[b]!) * data[a * cols + b]!; }));
    return out;
  };
  return { real: part(keys.real), imaginary: part(keys.imaginary) };
}

/** The eigenvectors of the `count` largest eigenvalues, as columns. */
function leading({ vectors: { real, imaginary } }: HermitianEigen, count: number): ComplexMatrix {
  const n = real.rows;
  const kept = Math.min(count, n);
  const out = complexZeros(n, kept);
  for (let r = 0; r < n; r++) {
    for (let c = 0; c < kept; c++) {
      out.real.data[r * kept + c] = real.data[r * n + n - 1 - c]!;
      out.imaginary.data[r * kept + c] = imaginary.data[r * n + n - 1 - c]!;
    }
  }
  return out;
}

/** The segment's problem inside the span of each frequency's leading directions; vectors come back over all rows. */
function reduced(keys: ComplexMatrix, weights: Float64Array, kvHeads: number, pairs: number, directions: readonly ComplexMatrix[], from: number): HermitianEigen {
  const width = directions.length;
  const kept = directions[0]?.real.cols ?? 0;
  const n = width * kept;
  const small = complexZeros(n, n);
  directions.forEach((left, i) => directions.slice(0, i + 1).forEach((right, j) => {
    const block = blockOf(keys, weights, rowsOf(kvHeads, pairs, from + i, from + i + 1), rowsOf(kvHeads, pairs, from + j, from + j + 1));
    const product = multiply(adjoint(left), multiply(block, right));
    for (let a = 0; a < kept; a++) {
      for (let b = 0; b < kept; b++) {
        small.real.data[(i * kept + a) * n + j * kept + b] = product.real.data[a * kept + b]!;
        small.imaginary.data[(i * kept + a) * n + j * kept + b] = product.imaginary.data[a * kept + b]!;
      }
    }
  }));
  const { values, vectors } = hermitianEighSmall(small); // reads the lower triangle only
  const lifted = complexZeros(kvHeads * width, n);
  directions.forEach((basis, i) => {
    const own = multiply(basis, rowsFrom(vectors, i * kept, kept));
    for (let g = 0; g < kvHeads; g++) {
      lifted.real.data.set(own.real.data.subarray(g * n, (g + 1) * n), (g * width + i) * n);
      lifted.imaginary.data.set(own.imaginary.data.subarray(g * n, (g + 1) * n), (g * width + i) * n);
    }
  });
  return { values, vectors: lifted };
}

function rowsFrom({ real, imaginary }: ComplexMatrix, start: number, count: number): ComplexMatrix {
  const cut = ({ cols, data }: Matrix): Matrix => ({ rows: count, cols, data: data.subarray(start * cols, (start + count) * cols) });
  return { real: cut(real), imaginary: cut(imaginary) };
}

function adjoint({ real, imaginary }: ComplexMatrix): ComplexMatrix {
  const out = complexZeros(real.cols, real.rows);
  for (let r = 0; r < real.rows; r++) {
    for (let c = 0; c < real.cols; c++) {
      out.real.data[c * real.rows + r] = real.data[r * real.cols + c]!;
      out.imaginary.data[c * real.rows + r] = -imaginary.data[r * real.cols + c]!;
    }
  }
  return out;
}

function multiply(a: ComplexMatrix, b: ComplexMatrix): ComplexMatrix {
  const out = complexZeros(a.real.rows, b.real.cols);
  const cols = b.real.cols;
  for (let r = 0; r < a.real.rows; r++) {
    for (let k = 0; k < a.real.cols; k++) {
      const [x, y] = [a.real.data[r * a.real.cols + k]!, a.imaginary.data[r * a.real.cols + k]!];
      for (let c = 0; c < cols; c++) {
        const [u, v] = [b.real.data[k * cols + c]!, b.imaginary.data[k * cols + c]!];
        out.real.data[r * cols + c]! += x * u - y * v;
        out.imaginary.data[r * cols + c]! += x * v + y * u;
      }
    }
  }
  return out;
}
