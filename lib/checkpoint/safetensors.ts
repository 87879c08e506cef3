/**
 * The door to .safetensors files: 8 bytes of header length, a JSON header, then the tensors back to back.
 * Source: the format section of the safetensors README. The writer is in write-safetensors.ts.
 */
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { DType, HostTensor } from '../../kernels/emit.ts';
import { bytesPerElement, elementCount, tensorFromBytes } from '../tensor.ts';
import { fileBytes, readBytes } from './read-bytes.ts';

/** Element types by the name that the header uses. */
export const safetensorsTypes: Readonly<Record<string, DType>> = {
  F64: 'float64',
  F32: 'float32',
  F16: 'float16',
  BF16: 'bfloat16',
  I64: 'int64',
  I32: 'int32',
  I16: 'int16',
  I8: 'int8',
  U32: 'uint32',
  U16: 'uint16',
  U8: 'uint8',
  BOOL: 'bool',
};

/** The reference implementation refuses longer headers too. */
const MAX_HEADER_BYTES = 100_000_000;

/** Where a tensor lies. */
export interface SafetensorsEntry {
  readonly name: string;
  /** The header's type name, e.g. BF16. */
  readonly storage: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly file: string;
  /** From the start of the file, in bytes. */
  readonly offset: number;
  readonly bytes: number;
}

/** The tensors of one file, or of all shards of an index. */
export interface SafetensorsFile {
  readonly path: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly tensors: ReadonlyMap<string, SafetensorsEntry>;
}

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

function parseJson(text: string, refuse: (rule: string) => Error): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw refuse(`is not JSON: ${error instanceof Error ? error.message : String(error)}`);
  }
  if (!isRecord(value)) throw refuse(`must be a JSON object, got ${text.slice(0, 40)}`);
  return value;
}

/**
 * Reads the header of a .safetensors file, or of every shard that a .safetensors.index.json names. No tensor is read.
 * Errors: a file shorter than its header, bad JSON, an unknown type, offsets that overlap, leave holes, leave the file
 * or disagree with shape and type; an index whose tensor is not in its shard.
 */
export function openSafetensors(path: string): Promise<SafetensorsFile> {
  return path.endsWith('.index.json') ? openIndex(path) : openFile(path);
}

async function openFile(path: string): Promise<SafetensorsFile> {
  const refuse = (rule: string): Error => new Error(`openSafetensors: ${rule}`);
  const total = await fileBytes(path);
  if (total < 8) throw refuse(`${path} must start with 8 bytes of header length, got ${total} bytes in all`);
  const length = new DataView((await readBytes(path, 0, 8)).buffer).getBigUint64(0, true);
  if (length > BigInt(total - 8)) throw refuse(`header of ${path} is ${length} bytes but the file has ${total}`);
  if (length > BigInt(MAX_HEADER_BYTES)) throw refuse(`header of ${path} must have at most ${MAX_HEADER_BYTES} bytes, got ${length}`);
  const dataStart = 8 + Number(length);
  const text = new TextDecoder().decode(await readBytes(path, 8, Number(length)));
  const header = parseJson(text, (rule) => refuse(`header of ${path} ${rule}`));

  const metadata: Record<string, string> = {};
  const entries: SafetensorsEntry[] = [];
  for (const [name, value] of Object.entries(header)) {
    if (name !== '__metadata__') {
      entries.push(parseEntry(path, name, value, dataStart));
      continue;
    }
    if (!isRecord(value)) throw refuse(`__metadata__ of ${path} must be an object`);
    for (const [key, text] of Object.entries(value)) {
      if (typeof text !== 'string') throw refuse(`__metadata__ ${key} of ${path} must be a string, got ${JSON.stringify(text)}`);
      metadata[key] = text;
    }
  }
  checkLayout(path, entries, dataStart, total);
  return { path, metadata, tensors: new Map(entries.map((entry) => [entry.name, entry])) };
}

function parseEntry(path: string, name: string, value: unknown, dataStart: number): SafetensorsEntry {
  const refuse = (rule: string): Error => new Error(`openSafetensors: tensor ${name} of ${path} ${rule}`);
  const { dtype: storage, shape, data_offsets: offsets } = isRecord(value) ? value : {};
  if (typeof storage !== 'string') throw refuse(`has no dtype`);
  const dtype = Object.hasOwn(safetensorsTypes, storage) ? safetensorsTypes[storage] : undefined;
  if (dtype === undefined) throw refuse(`must have a dtype of ${Object.keys(safetensorsTypes).join(', ')}, got ${storage}`);
  if (!isWholeNumbers(shape)) throw refuse(`must have a shape of whole numbers, got ${JSON.stringify(shape)}`);
  if (!isWholeNumbers(offsets) || offsets.length !== 2) {
    throw refuse(`must have two data_offsets, got ${JSON.stringify(offsets)}`);
  }
  const [begin = 0, end = 0] = offsets;
  const bytes = elementCount(shape) * bytesPerElement(dtype);
  if (end - begin !== bytes) throw refuse(`${storage} [${shape.join(', ')}] needs ${bytes} bytes, got offsets ${begin}..${end}`);
  return { name, storage, dtype, shape, file: path, offset: dataStart + begin, bytes };
}

const isWholeNumbers = (value: unknown): value is number[] =>
  Array.isArray(value) && value.every((n) => Number.isSafeInteger(n) && n >= 0);

/** The tensors must tile the data from its first byte to the last of the file. */
function checkLayout(path: string, entries: readonly SafetensorsEntry[], dataStart: number, total: number): void {
  const refuse = (rule: string): Error => new Error(`openSafetensors: ${rule}`);
  let end = dataStart;
  let previous = 'the header';
  for (const entry of [...entries].sort((a, b) => a.offset - b.offset || a.bytes - b.bytes)) {
    const range = `${entry.offset - dataStart}..${entry.offset - dataStart + entry.bytes}`;
    if (entry.offset + entry.bytes > total) {
      throw refuse(`tensor ${entry.name} of ${path} lies at ${range} but the file has ${total - dataStart} bytes of data`);
    }
    if (entry.offset < end) throw refuse(`tensors ${previous} and ${entry.name} of ${path} overlap at ${range}`);
    if (entry.offset > end) throw refuse(`${path} has a hole of ${entry.offset - end} bytes before tensor ${entry.name}`);
    end = entry.offset + entry.bytes;
    previous = entry.name;
  }
  if (end !== total) throw refuse(`${path} has ${total - end} bytes after the last tensor, ${previous}`);
}

async function openIndex(path: string): Promise<SafetensorsFile> {
  const refuse = (rule: string): Error => new Error(`openSafetensors: ${path} ${rule}`);
  const { weight_map: weightMap } = parseJson(await readFile(path, 'utf8'), refuse);
  if (!isRecord(weightMap)) throw refuse('must have a weight_map');
  const shards = new Map<string, SafetensorsFile>();
  const tensors = new Map<string, SafetensorsEntry>();
  for (const [name, shard] of Object.entries(weightMap)) {
    if (typeof shard !== 'string' || /[/\\]|^\.\.?$/.test(shard)) {
      throw refuse(`must name a file beside it for tensor ${name}, got ${JSON.stringify(shard)}`);
    }
    const file = shards.get(shard) ?? (await openFile(join(dirname(path), shard)));
    shards.set(shard, file);
    const entry = file.tensors.get(name);
    if (entry === undefined) throw refuse(`says that ${shard} holds tensor ${name}, which it does not`);
    tensors.set(name, entry);
  }
  const metadata = Object.fromEntries([...shards.values()].flatMap((file) => Object.entries(file.metadata)));
  return { path, metadata, tensors };
}

/** Reads one tensor in its own element type; only its bytes are read. Errors: no tensor of that name. */
export async function readTensor(file: SafetensorsFile, name: string): Promise<HostTensor> {
  const entry = file.tensors.get(name);
  if (entry === undefined) throw new Error(`readTensor: ${file.path} has no tensor ${name}; it has ${someNames(file.tensors)}`);
  return tensorFromBytes(entry.dtype, entry.shape, await readBytes(entry.file, entry.offset, entry.bytes));
}

/** Reads all tensors, each in its own element type: for small files such as logits to compare with. */
export async function readSafetensors(path: string): Promise<ReadonlyMap<string, HostTensor>> {
  const file = await openSafetensors(path);
  const tensors = new Map<string, HostTensor>();
  for (const name of file.tensors.keys()) tensors.set(name, await readTensor(file, name));
  return tensors;
}

/** The first few keys, for error messages. */
export function someNames(map: ReadonlyMap<string, unknown>, limit = 6): string {
  const names = [...map.keys()];
  return names.length <= limit ? names.join(', ') : `${names.slice(0, limit).join(', ')}, ... (${names.length} in all)`;
}
