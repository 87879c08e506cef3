/**
 * A checkpoint is a record of where every weight lies, by Hugging Face name, whatever the file format. Weights are read
 * one at a time as float32; the record holds no open file.
 */
import { readdir, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import type { DType, HostTensor } from '../../kernels/emit.ts';
import type { StoredTensor } from '../graph/subgraph.ts';
import { elementCount, tensor, toFloat32 } from '../tensor.ts';
import { dequantise, ggmlFormats, ggmlTypeName } from './dequantise.ts';
import { deinterleaveRows, ggufTensorMeaning } from './gguf-names.ts';
import { openGguf } from './gguf.ts';
import type { GgufEntry, GgufFile } from './gguf.ts';
import { readBytes } from './read-bytes.ts';
import { openSafetensors, readTensor, someNames } from './safetensors.ts';

export interface TensorInfo {
  readonly name: string;
  /** The file's type name: F32, BF16, Q4_1, ... */
  readonly storage: string;
  readonly shape: readonly number[];
  /** Bytes in the file. */
  readonly bytes: number;
}

export interface Checkpoint {
  readonly path: string;
  readonly format: 'safetensors' | 'gguf';
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /**
   * A weight as float32: widened, dequantised or (F64) rounded; only its own bytes are read.
   * Errors: no such tensor, whole numbers where weights are expected, NaN or infinity with its index.
   * Made anew by every call: the caller's own, to change or to give back.
   */
  read(name: string): Promise<HostTensor<'float32'>>;
  /**
   * Where the file holds a weight in a form onnxruntime can map as it is: F32, F16 or BF16 with rows in place; else null.
   * Errors: no such tensor.
   */
  stored(name: string): StoredTensor | null;
}

/** One format's way to read a weight. */
interface Source {
  readonly info: TensorInfo;
  readonly stored: StoredTensor | null;
  load(): Promise<Float32Array>;
}

const floatTypes: Readonly<Record<string, DType>> = { F32: 'float32', F16: 'float16', BF16: 'bfloat16' };

function storedTensor(info: TensorInfo, path: string, offset: number): StoredTensor | null {
  const dtype = floatTypes[info.storage];
  return dtype === undefined ? null : { dtype, shape: info.shape, file: { path: resolve(path), offset, bytes: info.bytes } };
}

function checkpoint(path: string, format: Checkpoint['format'], sources: ReadonlyMap<string, Source>): Checkpoint {
  const find = (caller: string, name: string): Source => {
    const source = sources.get(name);
    if (source === undefined) throw new Error(`${caller}: ${path} has no tensor ${name}; it has ${someNames(sources)}`);
    return source;
  };
  return {
    path,
    format,
    tensors: new Map(Array.from(sources, ([name, { info }]) => [name, info])),
    async read(name) {
      const { info, load } = find('read', name);
      const weight = tensor('float32', info.shape, await load());
      refuseNonFinite(path, name, weight);
      return weight;
    },
    stored: (name) => find('stored', name).stored,
  };
}

/** NaN and infinities have all exponent bits set. */
function refuseNonFinite(path: string, name: string, { shape, data }: HostTensor<'float32'>): void {
  const bits = new Uint32Array(data.buffer, data.byteOffset, data.length);
  for (let i = 0; i < bits.length; i++) {
    if ((bits[i]! & 0x7f800000) === 0x7f800000) {
      throw new Error(`read: weights must be finite, tensor ${name} of ${path} has ${data[i]} at [${coordinates(i, shape).join(', ')}]`);
    }
  }
}

function coordinates(index: number, shape: readonly number[]): number[] {
  const at: number[] = [];
  for (const length of shape.toReversed()) {
    at.unshift(index % length);
    index = Math.floor(index / length);
  }
  return at;
}

async function openSafetensorsCheckpoint(path: string, file: string): Promise<Checkpoint> {
  const opened = await openSafetensors(file);
  const sources = new Map<string, Source>();
  for (const [name, entry] of opened.tensors) {
    const info = { name, storage: entry.storage, shape: entry.shape, bytes: entry.bytes };
    const load = async (): Promise<Float32Array> => {
      if (!/^B?F\d+$/.test(entry.storage)) {
        throw new Error(`read: weights must be F64, F32, F16 or BF16, tensor ${name} of ${path} is ${entry.storage}`);
      }
      return toFloat32(await readTensor(opened, name)).data;
    };
    sources.set(name, { info, load, stored: storedTensor(info, entry.file, entry.offset) });
  }
  return checkpoint(path, 'safetensors', sources);
}

async function openGgufCheckpoint(path: string, file: string): Promise<Checkpoint> {
  const opened = await openGguf(file);
  const sources = new Map<string, Source>();
  let end = 0;
  for (const entry of opened.tensors.toSorted((a, b) => a.offset - b.offset)) {
    const extent = ggufExtent(opened, entry);
    if (entry.offset < end) throw new Error(`openCheckpoint: tensor ${entry.name} of ${file} overlaps the tensor before it at ${entry.offset}..${end}`);
    end = entry.offset + extent.bytes;
    const meaning = ggufTensorMeaning(file, opened.metadata, entry.name);
    if (meaning === null) continue;
    const { name, interleavedHeads: heads } = meaning;
    if (sources.has(name)) throw new Error(`openCheckpoint: ${file} must hold tensor ${entry.name} once, got it twice`);
    const info = { name, ...extent };
    const load = async (): Promise<Float32Array> => {
      const values = await readGgufTensor(opened, entry);
      return heads === null ? values : deinterleaveRows(values, entry.shape[0] ?? 0, heads);
    };
    sources.set(name, { info, load, stored: heads === null ? storedTensor(info, file, entry.offset) : null });
  }
  return checkpoint(path, 'gguf', sources);
}

/** Type, shape and length of a GGUF tensor. Errors: a type that is not decoded here, rows of part blocks, a truncated file. */
function ggufExtent({ path, fileBytes }: GgufFile, { name, type, shape, offset }: GgufEntry): Omit<TensorInfo, 'name'> {
  const format = ggmlFormats.get(type);
  if (format === undefined) {
    const known = [...ggmlFormats.values()].map((row) => row.name).join(', ');
    throw new Error(`openCheckpoint: tensor ${name} of ${path} must be of type ${known}, got ${ggmlTypeName(type)}`);
  }
  const width = shape.at(-1) ?? 1;
  if (width % format.elements !== 0) {
    throw new Error(`openCheckpoint: rows of ${name} of ${path} must be whole ${format.name} blocks of ${format.elements}, got ${width}`);
  }
  const bytes = (elementCount(shape) / format.elements) * format.bytes;
  if (offset + bytes > fileBytes) {
    throw new Error(`openCheckpoint: tensor ${name} of ${path} lies at ${offset}..${offset + bytes} but the file has ${fileBytes} bytes`);
  }
  return { storage: format.name, shape, bytes };
}

/** One GGUF tensor as float32, rows as the file has them. Errors: as openCheckpoint. */
export async function readGgufTensor(file: GgufFile, entry: GgufEntry): Promise<Float32Array> {
  const { bytes } = ggufExtent(file, entry); // refuses a type without a row in ggmlFormats
  const stored = await readBytes(file.path, entry.offset, bytes);
  return dequantise(ggmlFormats.get(entry.type)!, stored, new Float32Array(elementCount(entry.shape)));
}

/** The one weight file a model path stands for, and its format. */
export async function findWeights(path: string): Promise<{ readonly file: string; readonly format: Checkpoint['format'] }> {
  if (!(await stat(path)).isDirectory()) {
    if (path.endsWith('.gguf')) return { file: path, format: 'gguf' };
    if (/\.safetensors(\.index\.json)?$/.test(path)) return { file: path, format: 'safetensors' };
    throw new Error(`openCheckpoint: a model must be a directory, a .safetensors or a .gguf file, got ${path}`);
  }
  const names = await readdir(path);
  for (const name of ['model.safetensors', 'model.safetensors.index.json']) {
    if (names.includes(name)) return { file: join(path, name), format: 'safetensors' };
  }
  const ggufs = names.filter((name) => name.endsWith('.gguf'));
  if (ggufs.length === 1) return { file: join(path, ggufs[0]!), format: 'gguf' };
  throw new Error(
    `openCheckpoint: ${path} must hold model.safetensors, model.safetensors.index.json or exactly one .gguf file, ` +
      `got ${names.length === 0 ? 'an empty directory' : names.slice(0, 8).join(', ')}`,
  );
}

/**
 * Opens a directory with model.safetensors, model.safetensors.index.json or exactly one .gguf file, or such a file
 * itself. Names are Hugging Face's for both formats, and q and k rows are in the half-split order of its RoPE.
 * Errors: what openSafetensors and openGguf refuse; GGUF tensors of an unknown architecture, name or type.
 */
export async function openCheckpoint(path: string): Promise<Checkpoint> {
  const { file, format } = await findWeights(path);
  return format === 'gguf' ? openGgufCheckpoint(path, file) : openSafetensorsCheckpoint(path, file);
}
