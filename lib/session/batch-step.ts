/** One token of each of several sequences in one run of one graph: weights are read once for all of them. */
import { at } from '../../kernels/at.ts';
import type { Runtime } from '../graph/runtime.ts';
import type { HostTensor } from '../graph/subgraph.ts';
import type { Cache } from './cache.ts';
import { floatOutput } from './float-output.ts';
import { batchFeeds } from './token-feeds.ts';
import { tokenRows } from './token-rows.ts';

/** How sequences run: `alone` through a step of one, or through the graph of as many sequences. */
export interface BatchWays {
  alone(cache: Cache, id: number): Promise<Float32Array>;
  together(sequences: number): Promise<Runtime>;
}

/** Runs ids[q] behind the rows of caches[q], of which each has some, and gives each cache its new row: logits [n, vocab]. */
async function runTogether(graph: Runtime, caches: readonly Cache[], ids: readonly number[]): Promise<Float32Array> {
  const past = Object.fromEntries(caches.flatMap((cache, q) => Object.entries(cache.feeds(q))));
  const outputs = await graph.run({ ...batchFeeds(graph, ids, caches.map(({ length }) => length)), ...past });
  const { logits: _, ...rows } = outputs;
  for (const [q, cache] of caches.entries()) cache.append(Object.fromEntries(Object.entries(rows).map(([name, tensor]) => [name, tokenRows(tensor, q, 1)])), 1);
  return floatOutput(outputs, 'logits');
}

/** Logits [n, vocab] behind ids[q] of each sequence. First tokens run alone: the split form needs rows to read. */
export async function batchStep(caches: readonly Cache[], ids: readonly number[], vocab: number, ways: BatchWays): Promise<HostTensor<'float32'>> {
  const data = new Float32Array(ids.length * vocab);
  const filled = [...caches.keys()].filter((q) => at(caches, q).length > 0);
  const together = filled.length > 1 ? filled : [];
  for (const [q, cache] of caches.entries()) if (!together.includes(q)) data.set(await ways.alone(cache, at(ids, q)), q * vocab);
  if (together.length > 0) {
    const logits = await runTogether(await ways.together(together.length), together.map((q) => at(caches, q)), together.map((q) => at(ids, q)));
    for (const [i, q] of together.entries()) data.set(logits.subarray(i * vocab, (i + 1) * vocab), q * vocab);
  }
  return { dtype: 'float32', shape: [ids.length, vocab], data };
}
