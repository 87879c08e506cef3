/**
 * The door to files that torch.save wrote: one tensor in a zip archive, described by a pickle. A pickle is a program that
 * may call anything; here it may only rebuild a tensor, and every other instruction or name is refused.
 * Source: torch/serialization.py; Python's Lib/pickletools.py.
 */
import type { DType, HostTensor } from '../../kernels/emit.ts';
import { bytesPerElement, elementCount, tensorFromBytes } from '../tensor.ts';
import { readBytes } from './read-bytes.ts';
import { zipEntries } from './zip-entries.ts';

const storages: Readonly<Record<string, DType>> = {
  'torch DoubleStorage': 'float64', 'torch FloatStorage': 'float32', 'torch HalfStorage': 'float16', 'torch BFloat16Storage': 'bfloat16',
  'torch LongStorage': 'int64', 'torch IntStorage': 'int32', 'torch ShortStorage': 'int16', 'torch CharStorage': 'int8',
  'torch ByteStorage': 'uint8', 'torch BoolStorage': 'bool',
};
const REBUILD = 'torch._utils _rebuild_tensor_v2';
const ORDERED_DICT = 'collections OrderedDict';

/** Numbers as they are; everything else by kind. */
type Item =
  | number
  | boolean
  | string
  | null
  | { readonly kind: 'mark' }
  | { readonly kind: 'dict' }
  | { readonly kind: 'global'; readonly name: string }
  | { readonly kind: 'tuple'; readonly items: readonly Item[] }
  | { readonly kind: 'storage'; readonly dtype: DType; readonly key: string; readonly elements: number }
  | TensorItem;

interface TensorItem {
  readonly kind: 'tensor';
  readonly dtype: DType;
  readonly key: string;
  /** In elements of its storage. */
  readonly offset: number;
  readonly shape: readonly number[];
  readonly elements: number;
}

type Refuse = (rule: string) => Error;

/** Runs a pickle that builds one tensor. */
function unpickle(bytes: Uint8Array, refuse: Refuse): TensorItem {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const stack: Item[] = [];
  const memo = new Map<number, Item>();
  let at = 0;
  const take = (count: number): number => {
    if (at + count > bytes.length) throw refuse('must hold a whole pickle, but it ends early');
    at += count;
    return at - count;
  };
  const text = (count: number): string => new TextDecoder().decode(bytes.subarray(take(count), at));
  const line = (): string => {
    const end = bytes.indexOf(10, at);
    if (end < 0) throw refuse('must hold a whole pickle, but it ends early');
    const found = text(end - at);
    take(1);
    return found;
  };
  const pop = (): Item => {
    const item = stack.pop();
    if (item === undefined) throw refuse('must hold a valid pickle, but its stack runs empty');
    return item;
  };
  const popTuple = (count: number): Item => ({ kind: 'tuple', items: Array.from({ length: count }, pop).reverse() });
  const popToMark = (): Item => {
    const mark = stack.findLastIndex((item) => typeof item === 'object' && item?.kind === 'mark');
    if (mark < 0) throw refuse('must hold a valid pickle, but a mark is missing');
    const items = stack.splice(mark).slice(1);
    return { kind: 'tuple', items };
  };
  const remember = (key: number): void => {
    const top = stack.at(-1);
    if (top === undefined) throw refuse('must hold a valid pickle, but its stack runs empty');
    memo.set(key, top);
  };
  const recall = (key: number): Item => {
    const item = memo.get(key);
    if (item === undefined) throw refuse(`must hold a valid pickle, but nothing is remembered as ${key}`);
    return item;
  };

  const instructions: Readonly<Record<number, () => void>> = {
    0x80: () => void take(1), // PROTO
    0x63: () => void stack.push({ kind: 'global', name: `${line()} ${line()}` }), // GLOBAL
    0x71: () => remember(bytes[take(1)] ?? 0), // BINPUT
    0x72: () => remember(view.getUint32(take(4), true)), // LONG_BINPUT
    0x68: () => void stack.push(recall(bytes[take(1)] ?? 0)), // BINGET
    0x6a: () => void stack.push(recall(view.getUint32(take(4), true))), // LONG_BINGET
    0x28: () => void stack.push({ kind: 'mark' }), // MARK
    0x58: () => void stack.push(text(view.getUint32(take(4), true))), // BINUNICODE
    0x4b: () => void stack.push(bytes[take(1)] ?? 0), // BININT1
    0x4d: () => void stack.push(view.getUint16(take(2), true)), // BININT2
    0x4a: () => void stack.push(view.getInt32(take(4), true)), // BININT
    0x4e: () => void stack.push(null), // NONE
    0x88: () => void stack.push(true), // NEWTRUE
    0x89: () => void stack.push(false), // NEWFALSE
    0x29: () => void stack.push({ kind: 'tuple', items: [] }), // EMPTY_TUPLE
    0x85: () => void stack.push(popTuple(1)), // TUPLE1
    0x86: () => void stack.push(popTuple(2)), // TUPLE2
    0x87: () => void stack.push(popTuple(3)), // TUPLE3
    0x74: () => void stack.push(popToMark()), // TUPLE
    0x51: () => void stack.push(storage(pop(), refuse)), // BINPERSID
    0x52: () => { // REDUCE
      const args = pop();
      stack.push(call(pop(), args, refuse));
    },
  };
  for (;;) {
    const code = bytes[take(1)] ?? 0;
    if (code === 0x2e) break; // STOP
    const instruction = instructions[code];
    if (instruction === undefined) throw refuse(`must hold one tensor and nothing else, but its pickle has instruction 0x${code.toString(16)}`);
    instruction();
  }
  const result = pop();
  if (typeof result !== 'object' || result?.kind !== 'tensor') throw refuse(`must hold one tensor and nothing else, got ${nameOf(result)}`);
  return result;
}

const nameOf = (item: Item): string => (typeof item !== 'object' || item === null ? JSON.stringify(item) : item.kind === 'global' ? item.name : item.kind);

const itemsOf = (item: Item): readonly Item[] => (typeof item === 'object' && item?.kind === 'tuple' ? item.items : []);

/** ('storage', type, key, device, elements). */
function storage(id: Item, refuse: Refuse): Item {
  const [tag, type, key, , elements] = itemsOf(id);
  const name = type === undefined ? '' : nameOf(type);
  const dtype = Object.hasOwn(storages, name) ? storages[name] : undefined;
  if (tag !== 'storage' || typeof key !== 'string' || typeof elements !== 'number' || dtype === undefined) {
    throw refuse(`must hold a storage of a known type, got ${name}`);
  }
  return { kind: 'storage', dtype, key, elements };
}

function call(callee: Item, args: Item, refuse: Refuse): Item {
  const name = nameOf(callee);
  if (name === ORDERED_DICT && itemsOf(args).length === 0) return { kind: 'dict' };
  if (name !== REBUILD) throw refuse(`must hold one tensor and nothing else, but its pickle calls ${name}`);
  const [from, offset, size, stride] = itemsOf(args);
  const [shape, strides] = [wholeNumbers(size), wholeNumbers(stride)];
  if (typeof from !== 'object' || from?.kind !== 'storage' || typeof offset !== 'number' || offset < 0 || shape === null || strides === null) {
    throw refuse('must rebuild its tensor from a storage, an offset, a shape and strides');
  }
  let expected = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    if (shape[axis] !== 1 && strides[axis] !== expected) throw refuse(`must hold a contiguous tensor, got shape [${shape}] with strides [${strides}]`);
    expected *= shape[axis] ?? 1;
  }
  return { kind: 'tensor', dtype: from.dtype, key: from.key, offset, shape, elements: from.elements };
}

function wholeNumbers(item: Item | undefined): number[] | null {
  const items = item === undefined ? [] : itemsOf(item);
  const numbers = items.filter((value): value is number => typeof value === 'number' && Number.isSafeInteger(value) && value >= 0);
  return item === undefined || numbers.length !== items.length ? null : numbers;
}

/**
 * Reads a .pt or .pth file that holds exactly one tensor, in its own element type. No code of the file runs.
 * Errors: no zip archive (torch.save before PyTorch 1.6), anything but one contiguous tensor, data that do not fit it.
 */
export async function readTorchTensor(path: string): Promise<HostTensor> {
  const refuse: Refuse = (rule) => new Error(`readTorchTensor: ${path} ${rule}`);
  const entries = await zipEntries(path);
  const pickle = [...entries.values()].find(({ name }) => name.endsWith('/data.pkl') || name === 'data.pkl');
  if (pickle === undefined) throw refuse('must hold data.pkl, as torch.save writes it');
  const prefix = pickle.name.slice(0, -'data.pkl'.length);
  const order = entries.get(`${prefix}byteorder`);
  if (order !== undefined && new TextDecoder().decode(await readBytes(path, order.offset, order.bytes)) !== 'little') throw refuse('must be little-endian');
  const { dtype, key, offset, shape } = unpickle(await readBytes(path, pickle.offset, pickle.bytes), refuse);
  const data = entries.get(`${prefix}data/${key}`);
  const [start, bytes] = [offset * bytesPerElement(dtype), elementCount(shape) * bytesPerElement(dtype)];
  if (data === undefined || start + bytes > data.bytes) throw refuse(`must hold ${start + bytes} bytes of data/${key} for a ${dtype} tensor [${shape}], got ${data?.bytes ?? 'none'}`);
  return tensorFromBytes(dtype, shape, await readBytes(path, data.offset + start, bytes));
}
