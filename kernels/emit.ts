/**
 * The vocabulary. A kernel is written once against `Emit<V>` and read three ways: evaluated in float64
 * (lib/eager.ts), recorded as an ONNX subgraph (lib/graph/record.ts), or differentiated (one reverse rule per word).
 * `V` is whatever the reader calls a tensor. Shapes follow numpy: broadcasting aligns trailing axes.
 */

/** Element types a host tensor can hold; half-width floats carry their 16 raw bits. */
export interface DataOf {
  float32: Float32Array;
  float64: Float64Array;
  float16: Uint16Array;
  bfloat16: Uint16Array;
  int8: Int8Array;
  uint8: Uint8Array;
  int16: Int16Array;
  uint16: Uint16Array;
  int32: Int32Array;
  uint32: Uint32Array;
  int64: BigInt64Array;
  bool: Uint8Array;
}
export type DType = keyof DataOf;

/** A tensor in host memory, row-major and contiguous. */
export type HostTensor<D extends DType = DType> = {
  [K in D]: { readonly dtype: K; readonly shape: readonly number[]; readonly data: DataOf[K] };
}[D];

/** An axis length: a number, or an expression in named symbols such as `s` or `p+s` (lib/graph/dims.ts). */
export type Dim = number | string;

export interface Emit<V> {
  /** A tensor known when the program is written. */
  constant(tensor: HostTensor): V;
  shape(a: V): readonly Dim[];
  /** Sum of products in index notation, e.g. `bshd,bthd->bhst`. No repeated axis inside one operand. */
  einsum(equation: string, ...operands: readonly V[]): V;
  add(a: V, b: V): V;
  sub(a: V, b: V): V;
  mul(a: V, b: V): V;
  div(a: V, b: V): V;
  scale(a: V, by: number): V;
  /** a + by, for a plain number. */
  shift(a: V, by: number): V;
  square(a: V): V;
  sqrt(a: V): V;
  exp(a: V): V;
  log(a: V): V;
  sigmoid(a: V): V;
  /** Sum over the last axis, which stays with length 1. */
  sum(a: V): V;
  /** Mean over the last axis, which stays with length 1. */
  mean(a: V): V;
  /** Softmax over the last axis. */
  softmax(a: V): V;
  /** log(sum(exp(a))) over the last axis, which stays with length 1. */
  logSumExp(a: V): V;
  /**
   * Rotation of the pairs (k, k + n) of the first 2n elements of the last axis: [x1 cos - x2 sin | x2 cos + x1 sin]; what
   * lies behind them stays. a: [b, s, heads, 2n or more]; cos, sin: [s, n].
   */
  rotate(a: V, cos: V, sin: V): V;
  /** Rows of `table` [n, ...row] at integer `indices` [...i] -> [...i, ...row]. */
  gather(table: V, indices: V): V;
  /** One element of the last axis per row: a [..., n], indices [...] -> [..., 1]. */
  pick(a: V, indices: V): V;
  concat(axis: number, parts: readonly V[]): V;
  /** The inverse of concat: consecutive pieces of the given lengths along one axis. */
  split(a: V, axis: number, lengths: readonly Dim[]): V[];
  /** The same elements in the same order under another shape. */
  reshape(a: V, shape: readonly Dim[]): V;
  /** `a` repeated along its axes of length 1, and along new leading axes, until it has `shape`. */
  expand(a: V, shape: readonly Dim[]): V;
  /** One number everywhere, of the element type of `like`. */
  fill(like: V, shape: readonly Dim[], value: number): V;
  /** `table` [n, ...row] with `updates` [...i, ...row] added at rows `indices` [...i]; what comes twice is added twice. */
  addRows(table: V, indices: V, updates: V): V;
  /** `a` [..., n] with `updates` [..., 1] added to one element of the last axis per row, the one `pick` would take. */
  addPicked(a: V, indices: V, updates: V): V;
  /**
   * Additive attention mask [s, t]: 0 where key position <= query position (and > query position - window when a
   * window is given), else a number so low that softmax gives 0. Positions are int64 vectors [s] and [t].
   */
  causalMask(queryPositions: V, keyPositions: V, window: number | null): V;
}

/** Bits of one code in a quantised row. */
export type CodeBits = 4 | 8;

/** More words, for rows as a cache stores them. They round, so they have no reverse rule and training does without. */
export interface StorageEmit<V> extends Emit<V> {
  /** Largest magnitude over the last axis, which stays with length 1. */
  maxAbs(a: V): V;
  /** The same numbers in another float type, rounded to it. */
  cast(a: V, dtype: 'float32' | 'float16'): V;
  /**
   * Codes of `a` with one step per row, clipped. step: [..., 1]. 8 bits: round(a / step), -128..127, stored as code + 128. 4 bits:
   * floor(a / step) + 1/2, -7.5..7.5 (no code is spent on 0, and 16 of them cover as much as 15), stored as code + 7.5, two a
   * byte, element i low and i + n/2 high: [..., n/2].
   */
  encode(a: V, step: V, bits: CodeBits): V;
  /** The codes of stored bytes. */
  decode(bytes: V, bits: CodeBits): V;
  /** `einsum` of `a` with decode(bytes); a reading may round every row of `a` to 8 bits for it. */
  einsumCodes(equation: string, a: V, bytes: V, bits: CodeBits): V;
  /** The same of weights, none of which is negative: a reading may round every row of them to 0..255. */
  weighCodes(equation: string, weights: V, bytes: V, bits: CodeBits): V;
}
