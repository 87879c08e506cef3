/** Writing .safetensors files tensor by tensor, whole or not at all; sharded with an index when large. */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { DType, HostTensor } from '../../kernels/emit.ts';
import { writeFileAtomic } from '../atomic-write.ts';
import type { WriteOptions } from '../atomic-write.ts';
import { bytesPerElement, elementCount, tensorBytes } from '../tensor.ts';
import { safetensorsTypes } from './safetensors.ts';

/** A tensor announced before it exists: read when its turn comes, so that a model larger than memory can be written. */
export interface TensorSource {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  read(): HostTensor | Promise<HostTensor>;
}

export interface SafetensorsWriteOptions extends WriteOptions {
  /** Free text pairs in the header. Default {format: 'pt'}, which transformers asks for. */
  readonly metadata?: Readonly<Record<string, string>>;
}

export interface ShardedWriteOptions extends SafetensorsWriteOptions {
  /** Bytes of tensor data per file; a single larger tensor gets a file of its own. Default 5e9. */
  readonly maxShardBytes?: number;
}

const ALIGNMENT = 64;
const typeNames = new Map(Object.entries(safetensorsTypes).map(([name, dtype]) => [dtype, name]));

/** Tensors in memory as sources. */
export const tensorSources = (tensors: Iterable<readonly [string, HostTensor]>): TensorSource[] =>
  Array.from(tensors, ([name, tensor]) => ({ name, dtype: tensor.dtype, shape: tensor.shape, read: () => tensor }));

const sourceBytes = ({ dtype, shape }: TensorSource): number => elementCount(shape) * bytesPerElement(dtype);

/** Wide elements first (the format allows no padding between tensors, so this keeps each on a multiple of its width). */
const widestFirst = (sources: readonly TensorSource[]): TensorSource[] =>
  [...sources].sort((a, b) => bytesPerElement(b.dtype) - bytesPerElement(a.dtype));

/** The length field and the JSON header, padded with spaces so that the data start at a multiple of 64 bytes. */
function encodeHeader(sources: readonly TensorSource[], metadata: Readonly<Record<string, string>>): Uint8Array {
  const entries: [string, unknown][] = [];
  let offset = 0;
  for (const source of sources) {
    const end = offset + sourceBytes(source);
    entries.push([source.name, { dtype: typeNames.get(source.dtype), shape: source.shape, data_offsets: [offset, end] }]);
    offset = end;
  }
  const json = JSON.stringify(Object.fromEntries([['__metadata__', metadata], ...entries]));
  const text = new TextEncoder().encode(json);
  const start = Math.ceil((8 + text.length) / ALIGNMENT) * ALIGNMENT;
  const header = new Uint8Array(start).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(start - 8), true);
  header.set(text, 8);
  return header;
}

function checkNames(path: string, sources: readonly TensorSource[]): void {
  const names = new Set<string>();
  for (const { name } of sources) {
    if (name === '__metadata__' || names.has(name)) {
      throw new Error(`writeSafetensors: tensor names of ${path} must be unique and not __metadata__, got ${name} twice or reserved`);
    }
    names.add(name);
  }
}

async function readAnnounced(path: string, source: TensorSource): Promise<HostTensor> {
  const tensor = await source.read();
  const announced = `${source.dtype} [${source.shape.join(', ')}]`;
  const got = `${tensor.dtype} [${tensor.shape.join(', ')}]`;
  if (got !== announced) throw new Error(`writeSafetensors: tensor ${source.name} of ${path} was announced as ${announced}, got ${got}`);
  return tensor;
}

/**
 * Writes one .safetensors file, one tensor in memory at a time, in order of falling element width. Data start at a
 * multiple of 64 bytes, so onnxruntime can map them. The file appears only when complete.
 * Errors: a name given twice, a tensor that is not what was announced; what writeFileAtomic reports.
 */
export async function writeSafetensors(
  path: string,
  sources: readonly TensorSource[],
  options: SafetensorsWriteOptions = {},
): Promise<void> {
  checkNames(path, sources);
  const ordered = widestFirst(sources);
  await writeFileAtomic(
    path,
    async (sink) => {
      await sink.write(encodeHeader(ordered, options.metadata ?? { format: 'pt' }));
      for (const source of ordered) await sink.write(tensorBytes(await readAnnounced(path, source)));
    },
    options,
  );
}

/**
 * Writes model.safetensors into `directory`, or model-0000K-of-0000N.safetensors and, last, model.safetensors.index.json
 * when the data exceed `maxShardBytes`. Returns the names of the files written.
 * Each file is atomic; put the directory under writeDirectoryAtomic to make them appear together.
 */
export async function writeShardedSafetensors(
  directory: string,
  sources: readonly TensorSource[],
  options: ShardedWriteOptions = {},
): Promise<string[]> {
  const { maxShardBytes = 5e9 } = options;
  if (!(maxShardBytes > 0)) throw new RangeError(`writeShardedSafetensors: maxShardBytes must be positive, got ${maxShardBytes}`);
  checkNames(directory, sources);
  await mkdir(directory, { recursive: true });
  const shards = splitShards(sources, maxShardBytes);
  const digits = (n: number): string => String(n).padStart(5, '0');
  const names = shards.map((_, i) =>
    shards.length === 1 ? 'model.safetensors' : `model-${digits(i + 1)}-of-${digits(shards.length)}.safetensors`,
  );
  for (const [i, shard] of shards.entries()) await writeSafetensors(join(directory, names[i]!), shard, options);
  if (shards.length === 1) return names;
  const weightMap = Object.fromEntries(shards.flatMap((shard, i) => shard.map(({ name }) => [name, names[i]!] as const)));
  const totalSize = sources.reduce((sum, source) => sum + sourceBytes(source), 0);
  const index = { metadata: { total_size: totalSize }, weight_map: weightMap };
  await writeFileAtomic(join(directory, 'model.safetensors.index.json'), `${JSON.stringify(index, null, 2)}\n`, options);
  return [...names, 'model.safetensors.index.json'];
}

/** Consecutive runs of sources; at least one run, so that an empty model still gives a file. */
function splitShards(sources: readonly TensorSource[], maxShardBytes: number): TensorSource[][] {
  const shards: TensorSource[][] = [[]];
  let bytes = 0;
  for (const source of sources) {
    const size = sourceBytes(source);
    if (bytes > 0 && bytes + size > maxShardBytes) {
      shards.push([]);
      bytes = 0;
    }
    shards.at(-1)!.push(source);
    bytes += size;
  }
  return shards;
}
