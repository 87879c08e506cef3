/**
 * New rows written by the graph itself, into the memory it reads its cache from. The engine writes a fetched output where
 * the caller says, and does not know that an input lies there too; nothing in its documentation promises when the writing
 * happens. So it is only done where no order of nodes can read too early (lib/passes/appends-are-ordered.ts) and where the
 * open graph has been seen to do it.
 */
import type { Runtime } from '../graph/runtime.ts';
import type { HostTensor } from '../graph/subgraph.ts';
import type { CachePart } from '../models/cache-layout.ts';
import { createCache } from './cache.ts';
import { tokenFeeds } from './token-feeds.ts';

/** Rows in front of the one that is appended, and tokens that are tried. */
const PAST = 2;
const TOKENS = 3;

/**
 * Whether an open graph appends in place. Each token runs twice from the same rows: first with a last row that is no number
 * (NaN, or the highest code) and must come out written, then with the row that was written. Equal logits both times mean
 * that the row was there before anything read it. Costs a few steps over next to no context.
 */
export async function appendsInPlace(graph: Runtime, layout: readonly CachePart[]): Promise<boolean> {
  const cache = createCache(layout, PAST + TOKENS);
  cache.advance(PAST);
  for (let token = 0; token < TOKENS; token++) {
    const { rows: count, feeds, fetches } = cache.appending(1);
    const rows = Object.values(fetches);
    for (const row of rows) spoil(row);
    const spoilt = rows.map(copyOf);
    const step = async (): Promise<HostTensor | undefined> =>
      (await graph.run({ ...tokenFeeds(graph, [token], cache.length, count), ...feeds }, { ...fetches, logits: null })).logits;
    const first = await step(), written = rows.map(copyOf);
    const second = await step();
    const wasWritten = written.every((row, i) => row.join() !== spoilt[i]?.join());
    const isStable = rows.every((row, i) => row.data.join() === written[i]?.join());
    if (first === undefined || second === undefined || !wasWritten || !isStable || !equalNumbers(first, second)) return false;
    cache.advance(1);
  }
  return true;
}

/** Half-width NaN. */
const NAN16 = 0x7e00;

/** Fills a row with what no graph writes: NaN, or the highest code throughout. */
function spoil(row: HostTensor): void {
  switch (row.dtype) {
    case 'float32': row.data.fill(NaN); break;
    case 'float16': row.data.fill(NAN16); break;
    case 'uint8': row.data.fill(255); break;
    default: throw new TypeError(`appendsInPlace: rows must be float32, float16 or uint8, got ${row.dtype}`);
  }
}

const copyOf = ({ data }: HostTensor): (number | bigint)[] => Array.from<number | bigint>(data);

/** Finite and the same, number by number. */
function equalNumbers(a: HostTensor, b: HostTensor): boolean {
  const [left, right] = [copyOf(a), copyOf(b)];
  return left.length === right.length && left.every((value, i) => Number.isFinite(Number(value)) && value === right[i]);
}
