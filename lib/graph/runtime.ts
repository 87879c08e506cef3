/** The door to onnxruntime: a subgraph opened as a session. The only importer of onnxruntime-node. */
import { availableParallelism, tmpdir } from 'node:os';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { tensorFromBytes } from '../tensor.ts';
import { toModel } from './onnx.ts';
import { placeConstants } from './placement.ts';
import { portChecker } from './ports.ts';
import type { HostTensor, Port, Subgraph } from './subgraph.ts';
import { isUncopied, outputsStay, UNCOPIED } from './uncopied-outputs.ts';

export interface RuntimeOptions {
  /** Threads inside one operator. Default: the cores this process may use, at most 8: single layers do not fill more. */
  readonly threads?: number;
  /** Execution provider; operators 'cuda' lacks run on the CPU. Default 'cpu'. */
  readonly provider?: 'cpu' | 'cuda';
  /**
   * Repack constant weights for fast matrix products. Default true: many rows run up to 5 times faster, but loading
   * takes about a second per GB and one more copy of the weights in memory. With false, stored constants stay mapped.
   */
  readonly prepack?: boolean;
  /** Let idle threads spin for the next operator: fastest alone, wasteful beside other work. Default true. */
  readonly spinning?: boolean;
  /** Graph rewrites at load. Default 'all'. */
  readonly optimisation?: 'disabled' | 'basic' | 'extended' | 'all';
  /**
   * Plan all tensors of a run as one block of memory, from the second run with the same shapes on. Default true. That
   * block comes on top of what the first run took, so a training step, whose tensors are large, does without.
   */
  readonly memoryPattern?: boolean;
  /**
   * Keep memory between runs instead of giving it back to the system. Default true; a graph that takes gigabytes a run, with
   * other work between, may do without.
   */
  readonly memoryArena?: boolean;
  /**
   * Copy nothing after a run in which every output has its memory (see Fetches). Default false. Rests on behaviour of
   * the engine that nobody promises; where a test at the first opening does not see it, and on any provider but the CPU's,
   * which that test does not look at, outputs are copied as ever.
   */
  readonly uncopied?: boolean;
  /** Where large host constants pass through a file when a subgraph mixes them with stored ones. Default: the system's. */
  readonly temporaryDirectory?: string;
}

/** Outputs wanted by name, with the memory they go to. */
export type Fetches = Readonly<Record<string, HostTensor | null>>;

export interface Runtime {
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  /**
   * Runs once. Feeds are read in place, subviews included. `fetches`: names of the outputs wanted (default all), or
   * tensors that receive them in place, null for one that the engine makes. onnxruntime-node copies every fetched output once more even so, about 0.1 ms
   * per MB (0.5 ms from 32 MB on): do not fetch a large cache each step, or see RuntimeOptions.uncopied. Blocks the event loop while it computes.
   */
  run(feeds: Readonly<Record<string, HostTensor>>, fetches?: readonly string[] | Fetches): Promise<Record<string, HostTensor>>;
  /** Frees the session; later runs are refused. Calling it twice is harmless. */
  release(): Promise<void>;
}

/** Only what kills the process is logged: every error is thrown with the same text. */
const SILENT = 4;
const QUIET = { logSeverityLevel: SILENT } as const;

/** Threads used when none are asked for: see RuntimeOptions.threads. */
export const defaultThreads = (): number => Math.min(availableParallelism(), 8);

/**
 * Opens a subgraph. Host constants are handed over from memory; stored constants are mapped from their files by
 * onnxruntime, any files at any offset. Errors name the subgraph.
 */
export async function openRuntime(subgraph: Subgraph, options: RuntimeOptions = {}): Promise<Runtime> {
  return open(subgraph, options, options.uncopied === true && (options.provider ?? 'cpu') === 'cpu' && await stays());
}

const stays = (): Promise<boolean> => (staying ??= outputsStay((subgraph) => open(subgraph, { threads: 1 }, true)));
let staying: Promise<boolean> | null = null;

async function open(subgraph: Subgraph, options: RuntimeOptions, uncopied: boolean): Promise<Runtime> {
  const { provider = 'cpu', prepack = true, spinning = true, optimisation = 'all', memoryPattern = true, memoryArena = true, threads = defaultThreads() } = options;
  if (!Number.isInteger(threads) || threads < 1) throw new Error(`openRuntime: threads must be 1 or more, got ${threads}`);
  for (const port of [...subgraph.inputs, ...subgraph.outputs]) {
    if (port.dtype === 'bfloat16') throw new Error(`openRuntime: ports of ${subgraph.name} cannot be bfloat16, got ${port.name}; cast inside`);
  }
  const placed = placeConstants(subgraph, options.temporaryDirectory ?? tmpdir());
  try {
    const session = await InferenceSession.create(toModel(subgraph, { place: placed.place, ...(uncopied ? { emptySequence: UNCOPIED } : {}) }), {
      executionProviders: [provider], intraOpNumThreads: threads, interOpNumThreads: 1, graphOptimizationLevel: optimisation, logSeverityLevel: SILENT, enableMemPattern: memoryPattern, enableCpuMemArena: memoryArena,
      externalData: placed.memory,
      extra: { session: {
        disable_prepacking: prepack ? '0' : '1', intra_op: { allow_spinning: spinning ? '1' : '0' },
        ...(placed.root === null ? {} : { model_external_initializers_file_folder_path: placed.root }),
      } },
    });
    return runtimeOf(session, subgraph, uncopied);
  } catch (error) {
    throw failed('openRuntime', subgraph.name, error);
  } finally {
    placed.done();
  }
}

/** Keeps the ports and not the subgraph: a runtime that outlives it must not keep its constants in memory. */
function runtimeOf(opened: InferenceSession, { name: subgraph, inputs: inputPorts, outputs: outputPorts }: Subgraph, uncopied: boolean): Runtime {
  let session: InferenceSession | null = opened;
  const checkFeeds = portChecker('runSubgraph', 'input', inputPorts);
  const checkFetches = portChecker('runSubgraph', 'output', outputPorts);
  const outputs = new Map(outputPorts.map((port) => [port.name, port]));
  const every = [...outputs.keys()];
  // Plain loops: a step of a large model has a hundred tensors and a few milliseconds.
  const run: Runtime['run'] = async (feeds, fetches = every) => {
    if (session === null) throw new Error(`runSubgraph: ${subgraph} must be open, got a released one`);
    const bindings = checkFeeds(feeds);
    const given: Record<string, HostTensor> = {}, fed: Record<string, Tensor> = {}, wanted: Record<string, Tensor | null> = {};
    for (const name of Object.keys(feeds)) fed[name] = engineTensor(feeds[name]!);
    const named = isNames(fetches) ? null : fetches;
    for (const name of isNames(fetches) ? fetches : Object.keys(fetches)) {
      if (!outputs.has(name)) throw new Error(`runSubgraph: output of ${subgraph} must be one of ${every.join(', ')}, got ${name}`);
      const tensor = named?.[name] ?? null;
      wanted[name] = tensor === null ? null : engineTensor(tensor);
      if (tensor !== null) given[name] = tensor;
    }
    checkFetches(given, bindings);
    const names = Object.keys(wanted);
    if (names.length === 0) throw new Error(`runSubgraph: at least one output of ${subgraph} must be fetched, got none`);
    const isUncopiedRun = uncopied && names.every((name) => given[name] !== undefined);
    if (isUncopiedRun) wanted[UNCOPIED] = null;
    try {
      const result = await session.run(fed, wanted, QUIET), taken: Record<string, HostTensor> = {};
      for (const name of names) taken[name] = given[name] ?? hostTensor(outputs.get(name)!, result[name]!);
      return taken;
    } catch (error) {
      if (isUncopiedRun && isUncopied(error)) return given;
      throw failed('runSubgraph', subgraph, error);
    }
  };
  return {
    inputs: inputPorts.map((port) => port.name),
    outputs: [...outputs.keys()],
    run,
    async release() {
      const closing = session;
      session = null;
      await closing?.release();
    },
  };
}

const isNames = (fetches: readonly string[] | Fetches): fetches is readonly string[] => Array.isArray(fetches);

const failed = (caller: string, subgraph: string, error: unknown): Error =>
  new Error(`${caller}: ${subgraph}: ${(error instanceof Error ? error.message : String(error)).trim()}`, { cause: error });

/** The same memory under the engine's name. */
function engineTensor({ dtype, data, shape }: HostTensor): Tensor {
  if (dtype === 'bfloat16') throw new Error('runSubgraph: a port cannot be bfloat16');
  return new Tensor(dtype, data, shape);
}

/** The engine's memory as a host tensor of the declared type; float16 comes back as raw bits on every Node version. */
function hostTensor(port: Port, tensor: Tensor): HostTensor {
  const { type, dims, data } = tensor;
  if (type !== port.dtype || !ArrayBuffer.isView(data)) throw new Error(`output ${port.name} must be ${port.dtype}, got ${type}`);
  return tensorFromBytes(port.dtype, dims, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
}
