/** Dense real matrices, row-major: element (r, c) is data[r * cols + c]. */

export type FloatArray = Float32Array | Float64Array;

export interface Matrix<A extends FloatArray = Float64Array> {
  readonly rows: number;
  readonly cols: number;
  readonly data: A;
}

/** A matrix around existing row-major numbers (shared, not copied). Throws when the length is not rows * cols. */
export function matrix<A extends FloatArray>(rows: number, cols: number, data: A): Matrix<A> {
  checkSize('matrix', rows, cols);
  if (data.length !== rows * cols) {
    throw new RangeError(`matrix: data must hold ${rows} x ${cols} = ${rows * cols} numbers, got ${data.length}`);
  }
  return { rows, cols, data };
}

/** A float64 matrix of zeros. */
export function zeros(rows: number, cols: number): Matrix {
  checkSize('zeros', rows, cols);
  return { rows, cols, data: new Float64Array(rows * cols) };
}

/** The float64 identity, n x n. */
export function identity(n: number): Matrix {
  const out = zeros(n, n);
  for (let i = 0; i < n; i++) out.data[i * n + i] = 1;
  return out;
}

/** A float64 matrix from nested rows, e.g. `fromRows([[1, 2], [3, 4]])`. Throws on ragged rows. */
export function fromRows(rows: readonly (readonly number[])[]): Matrix {
  const cols = rows[0]?.length ?? 0;
  rows.forEach((row, r) => {
    if (row.length !== cols) throw new RangeError(`fromRows: row ${r} must have ${cols} numbers like row 0, got ${row.length}`);
  });
  return { rows: rows.length, cols, data: Float64Array.from(rows.flat()) };
}

/** Element (row, col). Throws outside the matrix; hot loops index `data` themselves. */
export function at(a: Matrix<FloatArray>, row: number, col: number): number {
  const value = row >= 0 && row < a.rows && col >= 0 && col < a.cols ? a.data[row * a.cols + col] : undefined;
  if (value === undefined) throw new RangeError(`at: element must lie inside ${a.rows} x ${a.cols}, got (${row}, ${col})`);
  return value;
}

/** A^T as a new matrix of the same number type. */
export function transpose<A extends FloatArray>(a: Matrix<A>): Matrix<A> {
  const { rows, cols } = a;
  const source: FloatArray = a.data;
  const data = allocateLike(a.data, rows * cols);
  const target: FloatArray = data;
  const tile = 32; // both sides of a tile stay in the first-level cache
  for (let r0 = 0; r0 < rows; r0 += tile) {
    const r1 = Math.min(rows, r0 + tile);
    for (let c0 = 0; c0 < cols; c0 += tile) {
      const c1 = Math.min(cols, c0 + tile);
      for (let r = r0; r < r1; r++) for (let c = c0; c < c1; c++) target[c * rows + r] = source[r * cols + c]!;
    }
  }
  return { rows: cols, cols: rows, data };
}

/** Rows start..end-1 as a view: it shares memory with `a`. */
export function sliceRows<A extends FloatArray>(a: Matrix<A>, start: number, end: number): Matrix<A> {
  checkRange('sliceRows', start, end, a.rows);
  // subarray keeps the array type; TypeScript only knows the union
  return { rows: end - start, cols: a.cols, data: a.data.subarray(start * a.cols, end * a.cols) as A };
}

/** Columns start..end-1 as a copy. */
export function sliceColumns<A extends FloatArray>(a: Matrix<A>, start: number, end: number): Matrix<A> {
  checkRange('sliceColumns', start, end, a.cols);
  const cols = end - start;
  const data = allocateLike(a.data, a.rows * cols);
  for (let r = 0; r < a.rows; r++) data.set(a.data.subarray(r * a.cols + start, r * a.cols + end), r * cols);
  return { rows: a.rows, cols, data };
}

/** The given columns, in that order (repeats allowed), as a copy. */
export function takeColumns<A extends FloatArray>(a: Matrix<A>, indices: ArrayLike<number>): Matrix<A> {
  const cols = indices.length;
  for (let c = 0; c < cols; c++) {
    const index = indices[c]!;
    if (!Number.isInteger(index) || index < 0 || index >= a.cols) {
      throw new RangeError(`takeColumns: column must be in 0..${a.cols - 1}, got ${index}`);
    }
  }
  const source: FloatArray = a.data;
  const data = allocateLike(a.data, a.rows * cols);
  const target: FloatArray = data;
  for (let r = 0; r < a.rows; r++) for (let c = 0; c < cols; c++) target[r * cols + c] = source[r * a.cols + indices[c]!]!;
  return { rows: a.rows, cols, data };
}

/** A diag(factors): column c multiplied by factors[c]. */
export function scaleColumns<A extends FloatArray>(a: Matrix<A>, factors: ArrayLike<number>): Matrix<A> {
  checkLength('scaleColumns', factors.length, a.cols);
  const source: FloatArray = a.data;
  const data = allocateLike(a.data, source.length);
  const target: FloatArray = data;
  for (let r = 0, k = 0; r < a.rows; r++) for (let c = 0; c < a.cols; c++, k++) target[k] = source[k]! * factors[c]!;
  return { rows: a.rows, cols: a.cols, data };
}

/** diag(factors) A: row r multiplied by factors[r]. */
export function scaleRows<A extends FloatArray>(a: Matrix<A>, factors: ArrayLike<number>): Matrix<A> {
  checkLength('scaleRows', factors.length, a.rows);
  const source: FloatArray = a.data;
  const data = allocateLike(a.data, source.length);
  const target: FloatArray = data;
  for (let r = 0, k = 0; r < a.rows; r++) for (let c = 0; c < a.cols; c++, k++) target[k] = source[k]! * factors[r]!;
  return { rows: a.rows, cols: a.cols, data };
}

/** A - B, of A's number type. */
export function subtract<A extends FloatArray>(a: Matrix<A>, b: Matrix<A>): Matrix<A> {
  if (a.rows !== b.rows || a.cols !== b.cols) {
    throw new RangeError(`subtract: sizes must agree, got ${a.rows} x ${a.cols} and ${b.rows} x ${b.cols}`);
  }
  const x: FloatArray = a.data;
  const y: FloatArray = b.data;
  const data = allocateLike(a.data, x.length);
  const target: FloatArray = data;
  for (let i = 0; i < x.length; i++) target[i] = x[i]! - y[i]!;
  return { rows: a.rows, cols: a.cols, data };
}

/** sqrt(sum of squares), summed in float64. */
export function frobeniusNorm(a: Matrix<FloatArray>): number {
  let sum = 0;
  for (let i = 0; i < a.data.length; i++) sum += a.data[i]! ** 2;
  return Math.sqrt(sum);
}

/** The same numbers as float64; a float64 matrix is returned as it is. */
export function toFloat64(a: Matrix<FloatArray>): Matrix {
  return { rows: a.rows, cols: a.cols, data: a.data instanceof Float64Array ? a.data : Float64Array.from(a.data) };
}

/** The same numbers rounded to float32; a float32 matrix is returned as it is. */
export function toFloat32(a: Matrix<FloatArray>): Matrix<Float32Array> {
  return { rows: a.rows, cols: a.cols, data: a.data instanceof Float32Array ? a.data : Float32Array.from(a.data) };
}

/** Distance from 1 to the next number of a type. */
export const epsilonOf = (like: FloatArray): number => (like instanceof Float32Array ? 2 ** -23 : Number.EPSILON);

/** `length` zeros of the same number type as `like`. */
export function allocateLike<A extends FloatArray>(like: A, length: number): A {
  // the branch proves the type, which TypeScript cannot carry over to the type parameter
  return (like instanceof Float32Array ? new Float32Array(length) : new Float64Array(length)) as A;
}

/** Throws `caller: ...` when an element is NaN or infinite, naming the first one. */
export function checkFinite(caller: string, a: Matrix<FloatArray>): void {
  for (let i = 0; i < a.data.length; i++) {
    if (!Number.isFinite(a.data[i]!)) {
      throw new RangeError(`${caller}: matrix must be finite, got ${a.data[i]} at row ${Math.floor(i / a.cols)}, column ${i % a.cols}`);
    }
  }
}

/** Throws `caller: ...` when the matrix is not square. */
export function checkSquare(caller: string, a: Matrix<FloatArray>): void {
  if (a.rows !== a.cols) throw new RangeError(`${caller}: matrix must be square, got ${a.rows} x ${a.cols}`);
}

function checkSize(caller: string, rows: number, cols: number): void {
  if (!Number.isInteger(rows) || !Number.isInteger(cols) || rows < 0 || cols < 0) {
    throw new RangeError(`${caller}: rows and cols must be non-negative integers, got ${rows} x ${cols}`);
  }
}

function checkRange(caller: string, start: number, end: number, limit: number): void {
  if (!Number.isInteger(start) || !Number.isInteger(end) || start < 0 || end < start || end > limit) {
    throw new RangeError(`${caller}: range must satisfy 0 <= start <= end <= ${limit}, got ${start}..${end}`);
  }
}

function checkLength(caller: string, got: number, expected: number): void {
  if (got !== expected) throw new RangeError(`${caller}: needs ${expected} factors, got ${got}`);
}
