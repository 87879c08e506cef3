/** Running a subgraph once, and timing it. */
import type { HostTensor } from '../../kernels/emit.ts';
import { normals, seededRandom } from '../random.ts';
import type { Random } from '../random.ts';
import { byteLength, elementCount, tensor, toDType } from '../tensor.ts';
import { allConstants, constantBytes } from './constants.ts';
import { evaluateDim } from './dims.ts';
import { defaultThreads, openRuntime } from './runtime.ts';
import type { RuntimeOptions } from './runtime.ts';
import type { Port, Subgraph } from './subgraph.ts';

export interface RunOptions extends RuntimeOptions {
  /** Names of the outputs wanted. Default: all. */
  readonly fetches?: readonly string[];
}

/** Opens the subgraph, runs it once and releases it. For many runs keep a session with `openRuntime`. */
export async function runSubgraph(subgraph: Subgraph, feeds: Readonly<Record<string, HostTensor>>, options: RunOptions = {}): Promise<Record<string, HostTensor>> {
  const runtime = await openRuntime(subgraph, options);
  try {
    return await runtime.run(feeds, options.fetches);
  } finally {
    await runtime.release();
  }
}

export interface BenchmarkOptions extends RunOptions {
  /** Inputs as they are; the others are drawn at random. */
  readonly feeds?: Readonly<Record<string, HostTensor>>;
  /** Lengths for the symbols of inputs that are drawn, e.g. { b: 1, s: 64 }. */
  readonly symbols?: Readonly<Record<string, number>>;
  /** Whole-number inputs that are drawn need to know their values: [lowest, below]. */
  readonly ranges?: Readonly<Record<string, readonly [from: number, below: number]>>;
  /** Default 0. */
  readonly seed?: number;
  /** Runs before the clock starts. Default 3. */
  readonly warmUp?: number;
  /** Timed runs. Default 20. */
  readonly runs?: number;
  /** Milliseconds on a clock that does not jump. Default performance.now. */
  readonly now?: () => number;
}

export interface Benchmark {
  readonly medianMs: number;
  readonly minMs: number;
  readonly p90Ms: number;
  readonly runs: number;
  readonly nodes: number;
  readonly constantBytes: number;
  readonly inputBytes: number;
  readonly outputBytes: number;
  readonly threads: number;
}

/**
 * Times runs of one session, loading excluded. Float inputs are drawn standard normal, whole numbers from their range,
 * bool from 0 and 1. The time includes onnxruntime-node's copy of every fetched output (see Runtime.run).
 */
export async function benchmarkSubgraph(subgraph: Subgraph, options: BenchmarkOptions = {}): Promise<Benchmark> {
  const { warmUp = 3, runs = 20, now = () => performance.now(), threads = defaultThreads() } = options;
  if (!Number.isInteger(runs) || runs < 1) throw new Error(`benchmarkSubgraph: runs must be 1 or more, got ${runs}`);
  const random = seededRandom(options.seed ?? 0);
  const feeds = { ...options.feeds };
  for (const port of subgraph.inputs) feeds[port.name] ??= draw(port, options, random);
  const runtime = await openRuntime(subgraph, { ...options, threads });
  try {
    let outputs: Record<string, HostTensor> = {};
    for (let i = 0; i < warmUp; i++) await runtime.run(feeds, options.fetches);
    const times: number[] = [];
    for (let i = 0; i < runs; i++) {
      const start = now();
      outputs = await runtime.run(feeds, options.fetches);
      times.push(now() - start);
    }
    times.sort((a, b) => a - b);
    const bytes = (tensors: readonly HostTensor[]): number => tensors.reduce((sum, t) => sum + byteLength(t), 0);
    return {
      medianMs: quantile(times, 0.5), minMs: times[0]!, p90Ms: quantile(times, 0.9), runs, nodes: subgraph.nodes.length,
      constantBytes: allConstants(subgraph).reduce((sum, c) => sum + constantBytes(c), 0),
      inputBytes: bytes(Object.values(feeds)), outputBytes: bytes(Object.values(outputs)), threads,
    };
  } finally {
    await runtime.release();
  }
}

/** Of sorted values, with linear interpolation. */
function quantile(sorted: readonly number[], share: number): number {
  const at = share * (sorted.length - 1), below = sorted[Math.floor(at)]!;
  return below + (sorted[Math.ceil(at)]! - below) * (at - Math.floor(at));
}

function draw(port: Port, { symbols = {}, ranges = {} }: BenchmarkOptions, random: Random): HostTensor {
  const shape = port.shape.map((dim) => evaluateDim(dim, symbols));
  const count = elementCount(shape);
  if (port.dtype.includes('float')) return toDType(tensor('float64', shape, normals(random, count)), port.dtype);
  const range = port.dtype === 'bool' ? [0, 2] as const : ranges[port.name];
  if (range === undefined) throw new Error(`benchmarkSubgraph: input ${port.name} ${port.dtype} needs feeds or a range, got none`);
  const [from, below] = range;
  return toDType(tensor('float64', shape, Float64Array.from({ length: count }, () => from + random.integer(below - from))), port.dtype);
}
