/**
 * The door to GGUF files (versions 2 and 3, little-endian): magic, key-value metadata, tensor table, aligned data.
 * Source: docs/gguf.md of the ggml repository.
 */
import { fileBytes, readBytes } from './read-bytes.ts';

/** Whole numbers beyond 2^53 stay bigint; everything else of a number type is a number. */
export type GgufValue = number | bigint | boolean | string | readonly GgufValue[];
export type GgufMetadata = ReadonlyMap<string, GgufValue>;

/** A tensor under its GGUF name. */
export interface GgufEntry {
  readonly name: string;
  /** ggml's type number, see dequantise.ts. */
  readonly type: number;
  /** Slowest axis first, as everywhere here; the file lists the fastest first. */
  readonly shape: readonly number[];
  /** From the start of the file, in bytes. */
  readonly offset: number;
}

export interface GgufFile {
  readonly path: string;
  readonly fileBytes: number;
  readonly metadata: GgufMetadata;
  readonly tensors: readonly GgufEntry[];
}

/** Bytes read at first; the token list of a large vocabulary fits, and reading grows when it does not. */
const FIRST_READ_BYTES = 2 ** 24;
const MAX_AXES = 4;

/** Thrown when the cursor runs past what was read so far. */
class ShortRead extends Error {}

class Cursor {
  at = 0;
  readonly view: DataView;
  private readonly text: Buffer;

  constructor(bytes: Uint8Array) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  /** Moves past `bytes` bytes and returns where they start. */
  skip(bytes: number): number {
    const start = this.at;
    if (bytes > this.view.byteLength - start) throw new ShortRead();
    this.at = start + bytes;
    return start;
  }

  u32(): number {
    return this.view.getUint32(this.skip(4), true);
  }

  u64(): number | bigint {
    return narrow(this.view.getBigUint64(this.skip(8), true));
  }

  /** A count or length; anything beyond 2^53 cannot be in a file. */
  size(): number {
    const value = this.u64();
    if (typeof value !== 'number') throw new ShortRead();
    return value;
  }

  string(): string {
    const start = this.skip(this.size());
    return this.text.toString('utf8', start, this.at);
  }
}

const narrow = (value: bigint): number | bigint => (Number.isSafeInteger(Number(value)) ? Number(value) : value);

/** Readers by the format's value-type number; 9 is the array. */
const readers: readonly ((c: Cursor) => GgufValue)[] = [
  (c) => c.view.getUint8(c.skip(1)),
  (c) => c.view.getInt8(c.skip(1)),
  (c) => c.view.getUint16(c.skip(2), true),
  (c) => c.view.getInt16(c.skip(2), true),
  (c) => c.u32(),
  (c) => c.view.getInt32(c.skip(4), true),
  (c) => c.view.getFloat32(c.skip(4), true),
  (c) => c.view.getUint8(c.skip(1)) !== 0,
  (c) => c.string(),
  readArray,
  (c) => c.u64(),
  (c) => narrow(c.view.getBigInt64(c.skip(8), true)),
  (c) => c.view.getFloat64(c.skip(8), true),
];

function readValue(c: Cursor, type: number): GgufValue {
  const reader = readers[type];
  if (reader === undefined) throw new Error(`has a value of unknown type ${type}`);
  return reader(c);
}

function readArray(c: Cursor): GgufValue {
  const type = c.u32();
  const count = c.size();
  const values: GgufValue[] = [];
  for (let i = 0; i < count; i++) values.push(readValue(c, type));
  return values;
}

function parse(c: Cursor): { metadata: GgufMetadata; tensors: GgufEntry[] } {
  const magic = c.u32();
  if (magic !== 0x46554747) throw new Error(`must start with the magic GGUF, got 0x${magic.toString(16).padStart(8, '0')}`);
  const version = c.u32();
  if (version !== 2 && version !== 3) {
    throw new Error(`must be GGUF version 2 or 3, little-endian, got ${version > 0xffff ? 'a big-endian file' : version}`);
  }
  const tensorCount = c.size();
  const pairCount = c.size();
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < pairCount; i++) {
    const key = c.string();
    try {
      metadata.set(key, readValue(c, c.u32()));
    } catch (error) {
      throw error instanceof ShortRead || !(error instanceof Error) ? error : new Error(`key ${key} ${error.message}`);
    }
  }
  const tensors: GgufEntry[] = [];
  for (let i = 0; i < tensorCount; i++) {
    const name = c.string();
    const axes = c.u32();
    if (axes > MAX_AXES) throw new Error(`tensor ${name} must have at most ${MAX_AXES} axes, got ${axes}`);
    const shape = Array.from({ length: axes }, () => c.size()).reverse();
    tensors.push({ name, type: c.u32(), shape, offset: c.size() });
  }
  const alignment = metadata.get('general.alignment') ?? 32;
  if (typeof alignment !== 'number' || alignment < 8 || alignment % 8 !== 0) {
    throw new Error(`general.alignment must be a multiple of 8, got ${String(alignment)}`);
  }
  const dataStart = Math.ceil(c.at / alignment) * alignment;
  for (const { name, offset } of tensors) {
    if (offset % alignment !== 0) throw new Error(`tensor ${name} must start at a multiple of ${alignment} bytes, got ${offset}`);
  }
  return { metadata, tensors: tensors.map((tensor) => ({ ...tensor, offset: dataStart + tensor.offset })) };
}

/**
 * Reads metadata and tensor table of a GGUF file, no tensor.
 * Errors, naming the file: wrong magic, version 1 or big-endian, an unknown value type, an end before the table's end.
 */
export async function openGguf(path: string): Promise<GgufFile> {
  const total = await fileBytes(path);
  for (let length = Math.min(FIRST_READ_BYTES, total); ; length = Math.min(2 * length, total)) {
    try {
      return { path, fileBytes: total, ...parse(new Cursor(await readBytes(path, 0, length))) };
    } catch (error) {
      if (!(error instanceof ShortRead)) throw new Error(`openGguf: ${path}: ${error instanceof Error ? error.message : String(error)}`);
      if (length === total) throw new Error(`openGguf: ${path} ends at byte ${total}, inside its header`);
    }
  }
}

/** The metadata of a GGUF file by key, e.g. `tokenizer.ggml.tokens`. Errors: as openGguf. */
export const readGgufMetadata = async (path: string): Promise<GgufMetadata> => (await openGguf(path)).metadata;

/** Reads a metadata value of one kind; null when the key is absent. Errors: a value of another kind, naming the key. */
const reader =
  <T extends GgufValue>(kind: string, is: (value: GgufValue) => value is T) =>
  (metadata: GgufMetadata, key: string): T | null => {
    const value = metadata.get(key);
    if (value === undefined) return null;
    if (!is(value)) throw new Error(`GGUF metadata: ${key} must be ${kind}, got ${Array.isArray(value) ? 'another array' : String(value)}`);
    return value;
  };

const isNumber = (v: GgufValue): v is number => typeof v === 'number';
const isString = (v: GgufValue): v is string => typeof v === 'string';
export const ggufNumber = reader('a number', isNumber);
export const ggufString = reader('a string', isString);
export const ggufBoolean = reader('true or false', (v): v is boolean => typeof v === 'boolean');
export const ggufNumbers = reader('an array of numbers', (v): v is readonly number[] => Array.isArray(v) && v.every(isNumber));
export const ggufStrings = reader('an array of strings', (v): v is readonly string[] => Array.isArray(v) && v.every(isString));
