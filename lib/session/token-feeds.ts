import type { Runtime } from '../graph/runtime.ts';
import type { HostTensor } from '../graph/subgraph.ts';
import { ofSequence } from '../models/cache-layout.ts';

const int64 = (values: readonly number[], shape: readonly number[]): HostTensor => ({ dtype: 'int64', shape, data: BigInt64Array.from(values, BigInt) });
const range = (from: number, count: number): number[] => Array.from({ length: count }, (_, i) => from + i);

/** Everything a decoder graph takes beside its cache, for tokens from position `start` on that see `rows` cached rows. */
export function tokenFeeds(graph: Pick<Runtime, 'inputs'>, ids: readonly number[], start: number, rows: number, targets?: readonly number[]): Record<string, HostTensor> {
  return {
    ids: int64(ids, [1, ids.length]),
    positions: int64(range(start, ids.length), [ids.length]),
    ...(graph.inputs.includes('past_positions') ? { past_positions: int64(range(0, rows), [rows]) } : {}),
    ...(targets === undefined ? {} : { targets: int64(targets, [1, targets.length]) }),
  };
}

/** What a graph over several sequences takes beside their caches: one token of each, behind so many cached ones. */
export function batchFeeds(graph: Pick<Runtime, 'inputs'>, ids: readonly number[], lengths: readonly number[]): Record<string, HostTensor> {
  const needed = lengths.map((length, q): [string, HostTensor] => [ofSequence('past_positions', q), int64(range(0, length), [length])]).filter(([name]) => graph.inputs.includes(name));
  return { ids: int64(ids, [1, ids.length]), positions: int64(lengths, [lengths.length]), ...Object.fromEntries(needed) };
}
