/** A checkpoint under other names and in another order of rows, made lazily from the one in the file. */
import type { HostTensor } from '../../kernels/emit.ts';
import { elementCount } from '../tensor.ts';
import type { Checkpoint, TensorInfo } from '../checkpoint/checkpoint.ts';

/** One tensor of the new layout. */
export interface Relaid {
  readonly name: string;
  readonly shape: readonly number[];
  /** The tensor of the file that is this one as it lies; null where it has to be put together. */
  readonly from: string | null;
  readonly read: () => Promise<HostTensor<'float32'>>;
}

/** The tensor `from` of the file under a new name. */
export function renamed(base: Checkpoint, name: string, from: string): Relaid {
  const info = base.tensors.get(from);
  if (info === undefined) throw new Error(`openReleased: ${base.path} must have tensor ${from}`);
  return { name, shape: info.shape, from, read: () => base.read(from) };
}

/**
 * Rows of `from`, a weight [rows, columns] or a bias [rows], in a new order.
 * Errors: no such tensor, rows it does not have.
 */
export function takenRows(base: Checkpoint, name: string, from: string, rows: readonly number[]): Relaid {
  const info = base.tensors.get(from);
  if (info === undefined) throw new Error(`openReleased: ${base.path} must have tensor ${from}`);
  const [have = 0, ...inner] = info.shape;
  const most = rows.reduce((largest, row) => Math.max(largest, row), -1);
  if (most >= have) throw new Error(`openReleased: tensor ${from} of ${base.path} must have at least ${most + 1} rows, got ${have}`);
  const width = elementCount(inner);
  return {
    name, shape: [rows.length, ...inner], from: null,
    async read() {
      const { data } = await base.read(from);
      const taken = new Float32Array(rows.length * width);
      rows.forEach((row, i) => taken.set(data.subarray(row * width, (row + 1) * width), i * width));
      return { dtype: 'float32', shape: [rows.length, ...inner], data: taken };
    },
  };
}

/** A tensor computed from others. */
export const computed = (name: string, shape: readonly number[], make: () => Promise<Float32Array>): Relaid =>
  ({ name, shape, from: null, read: async () => ({ dtype: 'float32', shape, data: await make() }) });

/** The relaid tensors, and those of the file that `keep` leaves as they are. */
export function relaidCheckpoint(base: Checkpoint, relaid: readonly Relaid[], keep: (name: string) => boolean): Checkpoint {
  const sources = new Map<string, Relaid>();
  for (const name of base.tensors.keys()) if (keep(name)) sources.set(name, renamed(base, name, name));
  for (const tensor of relaid) sources.set(tensor.name, tensor);
  const find = (caller: string, name: string): Relaid => {
    const source = sources.get(name);
    if (source === undefined) throw new Error(`${caller}: ${base.path} has no tensor ${name}`);
    return source;
  };
  const infoOf = ({ name, shape, from }: Relaid): TensorInfo => {
    const info = from === null ? undefined : base.tensors.get(from);
    return info === undefined ? { name, storage: 'F32', shape, bytes: 4 * elementCount(shape) } : { ...info, name };
  };
  return {
    path: base.path,
    format: base.format,
    tensors: new Map(Array.from(sources, ([name, source]) => [name, infoOf(source)])),
    read: async (name) => find('read', name).read(),
    stored(name) {
      const { from } = find('stored', name);
      return from === null ? null : base.stored(from);
    },
  };
}
