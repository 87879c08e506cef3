/** Matrix products as a parameter: the factorisations of this folder know this interface and no runtime. */
import { allocateLike, toFloat64, transpose, type FloatArray, type Matrix } from './matrix.ts';

export interface GemmOptions {
  readonly transposeA?: boolean;
  readonly transposeB?: boolean;
}

export interface Gemm {
  /**
   * op(A) op(B) with op(X) = X or X^T. Both float32 or both float64; the result has their type.
   * Throws when the inner sizes or the types differ.
   */
  multiply<A extends FloatArray>(a: Matrix<A>, b: Matrix<A>, options?: GemmOptions): Promise<Matrix<A>>;
}

/** The sizes of op(A) op(B): [rows, inner] x [inner, cols]. Throws when A and B do not fit. */
export function productSize(a: Matrix<FloatArray>, b: Matrix<FloatArray>, options: GemmOptions): { rows: number; inner: number; cols: number } {
  const [rows, inner] = options.transposeA ? [a.cols, a.rows] : [a.rows, a.cols];
  const [innerB, cols] = options.transposeB ? [b.cols, b.rows] : [b.rows, b.cols];
  if (inner !== innerB) {
    throw new RangeError(`multiply: inner sizes must agree, got ${rows} x ${inner} times ${innerB} x ${cols}`);
  }
  if (a.data instanceof Float32Array !== b.data instanceof Float32Array) {
    throw new TypeError('multiply: both matrices must be float32 or both float64, got one of each');
  }
  return { rows, inner, cols };
}

/** The product in plain loops, every sum in float64. The reference, and the fast way for small matrices. */
export function multiplyPlain<A extends FloatArray>(a: Matrix<A>, b: Matrix<A>, options: GemmOptions = {}): Matrix<A> {
  const { rows, inner, cols } = productSize(a, b, options);
  // float64 copies of float32 operands keep the inner loop on one array type
  const left = toFloat64(a).data;
  const right = toFloat64(options.transposeB ? transpose(b) : b).data;
  const [rowStride, innerStride] = options.transposeA ? [1, a.cols] : [a.cols, 1];
  const data = allocateLike(a.data, rows * cols);
  const sums = new Float64Array(cols);
  for (let r = 0; r < rows; r++) {
    sums.fill(0);
    const from = r * rowStride;
    let k = 0;
    // four rows of B a time: a quarter of the traffic on `sums`
    for (; k + 3 < inner; k += 4) {
      const a0 = left[from + k * innerStride]!;
      const a1 = left[from + (k + 1) * innerStride]!;
      const a2 = left[from + (k + 2) * innerStride]!;
      const a3 = left[from + (k + 3) * innerStride]!;
      const b0 = k * cols;
      const b1 = b0 + cols;
      const b2 = b1 + cols;
      const b3 = b2 + cols;
      for (let c = 0; c < cols; c++) {
        sums[c]! += a0 * right[b0 + c]! + a1 * right[b1 + c]! + (a2 * right[b2 + c]! + a3 * right[b3 + c]!);
      }
    }
    for (; k < inner; k++) {
      const a0 = left[from + k * innerStride]!;
      const b0 = k * cols;
      for (let c = 0; c < cols; c++) sums[c]! += a0 * right[b0 + c]!;
    }
    data.set(sums, r * cols);
  }
  return { rows, cols, data };
}

/** `multiplyPlain` as a Gemm. */
export const plainGemm: Gemm = {
  async multiply(a, b, options) {
    return multiplyPlain(a, b, options);
  },
};
