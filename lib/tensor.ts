/**
 * Host tensors {dtype, shape, data}: checked construction, conversion between element types, views of raw bytes, and
 * the door to `ndarray` for strided views.
 */
import ndarray from 'ndarray';
import type { DataOf, DType, HostTensor } from '../kernels/emit.ts';
import { bfloat16ToFloat32, float16ToFloat32, float32ToBfloat16, float32ToFloat16 } from './float16.ts';

export type { DataOf, DType, HostTensor };

interface ArrayKind<A> {
  readonly BYTES_PER_ELEMENT: number;
  readonly name: string;
  new (length: number): A;
  new (buffer: ArrayBufferLike, byteOffset: number, length: number): A;
}

const kinds: { readonly [K in DType]: ArrayKind<DataOf[K]> } = {
  float32: Float32Array,
  float64: Float64Array,
  float16: Uint16Array,
  bfloat16: Uint16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int64: BigInt64Array,
  bool: Uint8Array,
};

/** Bytes of one element. */
export const bytesPerElement = (dtype: DType): number => kinds[dtype].BYTES_PER_ELEMENT;

/** Product of the axis lengths; 1 for a scalar []. Refuses lengths that are not whole numbers >= 0. */
export function elementCount(shape: readonly number[]): number {
  let count = 1;
  for (const length of shape) {
    if (!Number.isSafeInteger(length) || length < 0) {
      throw new RangeError(`elementCount: axis lengths must be whole numbers >= 0, got [${shape.join(', ')}]`);
    }
    count *= length;
  }
  if (!Number.isSafeInteger(count)) throw new RangeError(`elementCount: [${shape.join(', ')}] has too many elements`);
  return count;
}

/** Bytes of all elements of a tensor. */
export const byteLength = (tensor: HostTensor): number => tensor.data.byteLength;

// The dtype is still unknown to the compiler here: the three callers checked that data has its kind.
const assemble = <D extends DType>(dtype: D, shape: readonly number[], data: DataOf[D]): HostTensor<D> =>
  ({ dtype, shape: [...shape], data });

/**
 * A tensor over `data`, which is not copied.
 * Errors: data of another array kind than dtype holds, or of another length than the product of `shape`.
 */
export function tensor<D extends DType>(dtype: D, shape: readonly number[], data: DataOf[D]): HostTensor<D> {
  if (!(data instanceof kinds[dtype])) throw new TypeError(`tensor: ${dtype} data must be ${kinds[dtype].name}, got ${kindName(data)}`);
  const count = elementCount(shape);
  if (data.length !== count) {
    throw new RangeError(`tensor: shape [${shape.join(', ')}] needs ${count} elements, got ${data.length}`);
  }
  return assemble(dtype, shape, data);
}

const kindName = (data: unknown): string => (data instanceof Object ? data.constructor.name : typeof data);

/** A tensor of zeros. */
export function zeros<D extends DType>(dtype: D, shape: readonly number[]): HostTensor<D> {
  return assemble(dtype, shape, new kinds[dtype](elementCount(shape)));
}

/** The same elements under another shape; no copy. */
export function reshapeTensor<D extends DType>(from: HostTensor<D>, shape: readonly number[]): HostTensor<D> {
  const { dtype, data } = from as { readonly dtype: D; readonly data: DataOf[D] };
  return tensor(dtype, shape, data);
}

/** The elements as bytes in the machine's order (little-endian on every platform Node runs on); no copy. */
export function tensorBytes(from: HostTensor): Uint8Array {
  return new Uint8Array(from.data.buffer, from.data.byteOffset, from.data.byteLength);
}

/** A tensor over raw bytes: a view when `bytes` starts at a multiple of the element width, else a copy. */
export function tensorFromBytes<D extends DType>(dtype: D, shape: readonly number[], bytes: Uint8Array): HostTensor<D> {
  const width = bytesPerElement(dtype);
  const count = elementCount(shape);
  if (bytes.byteLength !== count * width) {
    throw new RangeError(`tensorFromBytes: ${dtype} [${shape.join(', ')}] needs ${count * width} bytes, got ${bytes.byteLength}`);
  }
  // Buffer's own slice() would not copy.
  const aligned = bytes.byteOffset % width === 0 ? bytes : Uint8Array.prototype.slice.call(bytes);
  return assemble(dtype, shape, new kinds[dtype](aligned.buffer, aligned.byteOffset, count));
}

/** The values as float32: exact for 8- and 16-bit types, rounded to nearest for wider ones. No copy of a float32 tensor. */
export function toFloat32(from: HostTensor): HostTensor<'float32'> {
  switch (from.dtype) {
    case 'float32':
      return from;
    case 'float16':
      return assemble('float32', from.shape, float16ToFloat32(from.data));
    case 'bfloat16':
      return assemble('float32', from.shape, bfloat16ToFloat32(from.data));
    case 'int64':
      return assemble('float32', from.shape, Float32Array.from(from.data, Number));
    default:
      return assemble('float32', from.shape, new Float32Array(from.data));
  }
}

/** The values as float64: exact, but int64 beyond 2^53 is rounded. No copy of a float64 tensor. */
export function toFloat64(from: HostTensor): HostTensor<'float64'> {
  switch (from.dtype) {
    case 'float64':
      return from;
    case 'float16':
    case 'bfloat16':
      return assemble('float64', from.shape, new Float64Array(toFloat32(from).data));
    case 'int64':
      return assemble('float64', from.shape, Float64Array.from(from.data, Number));
    default:
      return assemble('float64', from.shape, new Float64Array(from.data));
  }
}

/** Inclusive ranges of the whole-number types that a float64 can carry. */
const integerRange: { readonly [K in DType]?: readonly [number, number] } = {
  int8: [-128, 127],
  uint8: [0, 255],
  int16: [-32768, 32767],
  uint16: [0, 65535],
  int32: [-(2 ** 31), 2 ** 31 - 1],
  uint32: [0, 2 ** 32 - 1],
  int64: [Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER],
  bool: [0, 1],
};

/**
 * The values in another element type. Floats are rounded to nearest, ties to even (to half width through float32);
 * conversion to whole-number types is exact or refused. The same tensor comes back when the type is the same.
 * Errors: a value that the whole-number type does not hold, with its index.
 */
export function toDType<D extends DType>(from: HostTensor, dtype: D): HostTensor<D> {
  const target: DType = dtype;
  return convert(from, target) as unknown as HostTensor<D>; // convert answers in the dtype it is given
}

function convert(from: HostTensor, dtype: DType): HostTensor {
  if (from.dtype === dtype) return from;
  if (dtype === 'float32') return toFloat32(from);
  if (dtype === 'float64') return toFloat64(from);
  if (dtype === 'float16') return assemble('float16', from.shape, float32ToFloat16(toFloat32(from).data));
  if (dtype === 'bfloat16') return assemble('bfloat16', from.shape, float32ToBfloat16(toFloat32(from).data));
  const values = toFloat64(from).data;
  const [low, high] = integerRange[dtype]!;
  const refused = values.findIndex((v) => !Number.isInteger(v) || v < low || v > high);
  if (refused >= 0) throw new RangeError(`toDType: ${dtype} holds whole numbers ${low}..${high}, got ${values[refused]} at ${refused}`);
  if (dtype === 'int64') return assemble('int64', from.shape, BigInt64Array.from(values, BigInt));
  const out = zeros(dtype, from.shape);
  out.data.set(values);
  return out;
}

/** Element storage as `ndarray` types it: its bigint64 arrays are never over a SharedArrayBuffer. */
export type NdarrayOf<D extends DType> = ndarray.NdArray<DataOf[D] & ndarray.Data>;

/** A strided `ndarray` view of a tensor; both share memory. Half-width floats appear as their 16 raw bits. */
export function toNdarray<D extends DType>(from: HostTensor<D>): NdarrayOf<D> {
  const { data } = from as { readonly data: DataOf[D] & ndarray.Data };
  return ndarray(data, [...from.shape]);
}

/**
 * A tensor over an `ndarray`, which does not know half-width floats, so the dtype is named. The memory is shared when
 * the view is contiguous in row-major order; a strided view is copied once.
 */
export function fromNdarray<D extends DType>(dtype: D, from: NdarrayOf<D>): HostTensor<D> {
  const count = elementCount(from.shape);
  if (!(from.data instanceof kinds[dtype])) {
    throw new TypeError(`fromNdarray: ${dtype} data must be ${kinds[dtype].name}, got ${kindName(from.data)}`);
  }
  if (isContiguous(from.shape, from.stride)) {
    const { buffer, byteOffset, BYTES_PER_ELEMENT: width } = from.data;
    return tensor(dtype, from.shape, new kinds[dtype](buffer, byteOffset + from.offset * width, count));
  }
  return tensor(dtype, from.shape, gatherStrided(from.data, from.shape, from.stride, from.offset, new kinds[dtype](count)));
}

function isContiguous(shape: readonly number[], stride: readonly number[]): boolean {
  let expected = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    if (shape[axis] !== 1 && stride[axis] !== expected) return false;
    expected *= shape[axis]!;
  }
  return true;
}

function gatherStrided<A extends DataOf[DType]>(
  data: A,
  shape: readonly number[],
  stride: readonly number[],
  offset: number,
  out: A,
): A {
  const index = shape.map(() => 0);
  let at = offset;
  for (let i = 0; i < out.length; i++) {
    out[i] = data[at]!;
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      at += stride[axis]!;
      if (++index[axis]! < shape[axis]!) break;
      at -= stride[axis]! * shape[axis]!;
      index[axis] = 0;
    }
  }
  return out;
}
