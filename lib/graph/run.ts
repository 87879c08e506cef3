/** Running a subgraph once, and timing it. */
import type { HostTensor } from '../../kernels/emit.ts';
import { openRuntime } from './runtime.ts';
import type { RuntimeOptions } from './runtime.ts';
import type { Subgraph } from './subgraph.ts';

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
