/** Runs one program through the float64 reading and through onnxruntime, for tests that hold the two against each other. */
import type { Emit, HostTensor } from '../../kernels/index.ts';
import { eager, toEager, type EagerTensor } from '../../lib/eager.ts';
import { mapValues } from '../../lib/map-values.ts';
import { record } from '../../lib/graph/record.ts';
import { runSubgraph } from '../../lib/graph/run.ts';
import type { Dim, Port, Subgraph } from '../../lib/graph/subgraph.ts';

export type Program = <V>(g: Emit<V>, x: Readonly<Record<string, V>>) => Readonly<Record<string, V>>;

/** A small deterministic generator: tests name their seed. */
export function generator(seed: number): () => number {
  let state = seed >>> 0 || 1;
  return () => {
    state = Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9;
    state ^= state >>> 13;
    return (state >>> 0) / 2 ** 32;
  };
}

/** Standard normal numbers as float32. */
export function normal(shape: readonly number[], random: () => number, spread = 1): HostTensor<'float32'> {
  const count = shape.reduce((a, b) => a * b, 1);
  const data = Float32Array.from({ length: count }, () => spread * Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random()));
  return { dtype: 'float32', shape, data };
}

export const integers = (values: readonly number[], shape: readonly number[] = [values.length]): HostTensor<'int64'> =>
  ({ dtype: 'int64', shape, data: BigInt64Array.from(values, BigInt) });

/** The program as a subgraph whose inputs are the feeds; `symbols` renames axes: { hidden: ['b', 's', 5] }. */
export function recordProgram(program: Program, feeds: Readonly<Record<string, HostTensor>>, symbols: Readonly<Record<string, readonly Dim[]>> = {}): Subgraph {
  const ports = mapValues(feeds, (tensor, name): Omit<Port, 'name'> => ({ dtype: tensor.dtype, shape: symbols[name] ?? tensor.shape }));
  return record('test', ports, (g, x) => program(g, x));
}

export async function bothReadings(
  program: Program, feeds: Readonly<Record<string, HostTensor>>, symbols: Readonly<Record<string, readonly Dim[]>> = {},
): Promise<{ reference: Readonly<Record<string, EagerTensor>>; onnx: Readonly<Record<string, HostTensor>> }> {
  const reference = program(eager, Object.fromEntries(Object.entries(feeds).map(([name, tensor]) => [name, toEager(tensor)])));
  const onnx = await runSubgraph(recordProgram(program, feeds, symbols), feeds, { threads: 1 });
  return { reference, onnx };
}

/** Largest difference, relative to the largest magnitude of the reference (or 1 when that is smaller). */
export function difference(reference: ArrayLike<number>, other: ArrayLike<number>): number {
  if (reference.length !== other.length) return Infinity;
  let [worst, top] = [0, 1];
  for (let i = 0; i < reference.length; i++) {
    const [a, b] = [reference[i] ?? NaN, other[i] ?? NaN];
    if (!(a === b)) worst = Math.max(worst, Number.isNaN(a - b) ? Infinity : Math.abs(a - b));
    top = Math.max(top, Math.abs(a));
  }
  return worst / top;
}

/** Plain numbers of a host tensor. */
export const numbers = (tensor: HostTensor | undefined): Float64Array => {
  if (tensor === undefined) throw new RangeError('numbers: the output must exist');
  return Float64Array.from<number | bigint>(tensor.data, Number);
};

/** A bound for float32 sums of `terms` products: machine epsilon times the terms' root, with room for a few operators. */
export const float32Tolerance = (terms: number): number => 8 * 2 ** -23 * Math.sqrt(terms);
