/** Bytes and typed arrays of host tensors. ONNX raw data, .safetensors and every machine Node runs on are little-endian. */
import type { DType, HostTensor } from '../../kernels/emit.ts';

type Make<D extends DType> = (shape: readonly number[], buffer: ArrayBufferLike, at: number, count: number) => HostTensor<D>;

/** Per dtype: bytes per element, and a view of `count` elements from byte `at` of a buffer. */
const TYPES: { readonly [D in DType]: readonly [bytes: number, make: Make<D>] } = {
  float32: [4, (shape, b, at, n) => ({ dtype: 'float32', shape, data: new Float32Array(b, at, n) })],
  float64: [8, (shape, b, at, n) => ({ dtype: 'float64', shape, data: new Float64Array(b, at, n) })],
  float16: [2, (shape, b, at, n) => ({ dtype: 'float16', shape, data: new Uint16Array(b, at, n) })],
  bfloat16: [2, (shape, b, at, n) => ({ dtype: 'bfloat16', shape, data: new Uint16Array(b, at, n) })],
  int8: [1, (shape, b, at, n) => ({ dtype: 'int8', shape, data: new Int8Array(b, at, n) })],
  uint8: [1, (shape, b, at, n) => ({ dtype: 'uint8', shape, data: new Uint8Array(b, at, n) })],
  int16: [2, (shape, b, at, n) => ({ dtype: 'int16', shape, data: new Int16Array(b, at, n) })],
  uint16: [2, (shape, b, at, n) => ({ dtype: 'uint16', shape, data: new Uint16Array(b, at, n) })],
  int32: [4, (shape, b, at, n) => ({ dtype: 'int32', shape, data: new Int32Array(b, at, n) })],
  uint32: [4, (shape, b, at, n) => ({ dtype: 'uint32', shape, data: new Uint32Array(b, at, n) })],
  int64: [8, (shape, b, at, n) => ({ dtype: 'int64', shape, data: new BigInt64Array(b, at, n) })],
  bool: [1, (shape, b, at, n) => ({ dtype: 'bool', shape, data: new Uint8Array(b, at, n) })],
};

export const bytesPerElement = (dtype: DType): number => TYPES[dtype][0];

/** Number of elements of a shape; 1 for a scalar. */
export const elementCount = (shape: readonly number[]): number => shape.reduce((product, n) => product * n, 1);

/** Bytes a tensor of this type and shape takes. */
export const byteCount = (tensor: { readonly dtype: DType; readonly shape: readonly number[] }): number =>
  elementCount(tensor.shape) * bytesPerElement(tensor.dtype);

/** The tensor's memory as bytes: a view, not a copy. */
export const bytesOf = (tensor: HostTensor): Uint8Array =>
  new Uint8Array(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength);

/** A view of `shape` elements from byte `at` of a buffer; `at` must be a multiple of the element size. */
export const tensorView = (dtype: DType, shape: readonly number[], buffer: ArrayBufferLike, at = 0): HostTensor =>
  TYPES[dtype][1](shape, buffer, at, elementCount(shape));

/** A tensor of zeros with its own memory. */
export const zeros = (dtype: DType, shape: readonly number[]): HostTensor =>
  tensorView(dtype, shape, new ArrayBuffer(elementCount(shape) * bytesPerElement(dtype)));

/** A tensor from little-endian bytes, copied into its own aligned memory; throws when the length does not fit the shape. */
export function tensorFromBytes(dtype: DType, shape: readonly number[], bytes: Uint8Array): HostTensor {
  const tensor = zeros(dtype, shape);
  if (bytes.byteLength !== tensor.data.byteLength) {
    throw new Error(`tensorFromBytes: ${dtype} [${shape}] takes ${tensor.data.byteLength} bytes, got ${bytes.byteLength}`);
  }
  bytesOf(tensor).set(bytes);
  return tensor;
}

/** A tensor from plain numbers or bigints, rounded to the dtype by the typed array; not for half-width floats. */
export function tensorFromNumbers(dtype: Exclude<DType, 'float16' | 'bfloat16'>, shape: readonly number[], values: Iterable<number | bigint>): HostTensor {
  const tensor = zeros(dtype, shape);
  let at = 0;
  for (const value of values) {
    if (tensor.data instanceof BigInt64Array) tensor.data[at] = BigInt(value);
    else tensor.data[at] = Number(value);
    at++;
  }
  if (at !== tensor.data.length) throw new Error(`tensorFromNumbers: ${dtype} [${shape}] has ${tensor.data.length} elements, got ${at}`);
  return tensor;
}
