/** Subgraphs timed in turn, each with what its products cost at least. */
import { openRuntime, replaceSymbols, type Subgraph } from '../../lib/index.ts';
import type { CaseContext } from './case.ts';
import { floorMs } from './ceiling.ts';
import { randomFeed } from './random-weights.ts';
import type { Row } from './rows.ts';
import { timedRow } from './timed-row.ts';
import { inTurn, type Contender } from './turns.ts';
import { workOf } from './work.ts';

export interface Candidate {
  readonly what: string;
  readonly subgraph: Subgraph;
  readonly cacheBytesPerToken?: number;
}

/** A subgraph with random feeds, ready to run. */
async function contender(subgraph: Subgraph, symbols: Readonly<Record<string, number>>, threads: number): Promise<Contender> {
  const runtime = await openRuntime(subgraph, { threads });
  const feeds = Object.fromEntries(replaceSymbols(subgraph, symbols).inputs.map((port) => [port.name, randomFeed(port)]));
  return { run: () => runtime.run(feeds), close: () => runtime.release() };
}

/** One row per candidate; the first is the source the others are held against. */
export async function graphRows(candidates: readonly Candidate[], symbols: Readonly<Record<string, number>>, { threads, runs, ceiling, now }: CaseContext): Promise<Row[]> {
  const contenders: Contender[] = [];
  for (const { subgraph } of candidates) contenders.push(await contender(subgraph, symbols, threads));
  const times = await inTurn(contenders, { runs, now });
  return candidates.map(({ what, subgraph, cacheBytesPerToken }, i): Row => {
    const { flops, byteFlops, bytes, weightBytes, nodes } = workOf(subgraph, symbols);
    // Products of bytes have a ceiling of their own.
    const least = floorMs(flops - byteFlops + byteFlops * (ceiling.gemm / ceiling.byteGemm), bytes, ceiling);
    return timedRow(
      { what, flops, bytes, times: times[i], floorMs: least, ...(i === 0 ? {} : { source: times[0] }) }, ceiling,
      { nodes, weightBytes, ...(cacheBytesPerToken === undefined ? {} : { cacheBytesPerToken }) },
    );
  });
}
