/**
 * The cached rows of a prompt in a file: a .safetensors file with the token ids and the arrays past.N.PART; its metadata say
 * of which model and in which format. Quantised weights are not part of that: rows made with other passes are taken.
 */
import { openSafetensors, readTensor } from '../checkpoint/safetensors.ts';
import { tensorSources, writeSafetensors } from '../checkpoint/write-safetensors.ts';
import type { HostTensor } from '../graph/subgraph.ts';
import { pastPort, presentPort, type CachePart } from '../models/cache-layout.ts';
import { cacheLayoutOf } from '../models/decoder.ts';
import { conversionFingerprint } from '../models/fingerprint.ts';
import type { Cache } from './cache.ts';
import type { Session } from './session.ts';
import { cutColumns, joinColumns } from './row-columns.ts';
import { tokenRows } from './token-rows.ts';

/** A prompt, and a cache that holds the rows of just its tokens. */
export interface SavedPrompt {
  readonly ids: readonly number[];
  readonly cache: Cache;
}

/** Arrays of a session's cache, side by side, and the arrays of a file that hold the same columns. */
interface SameColumns {
  readonly parts: readonly CachePart[];
  readonly names: readonly string[];
  /** Of the file's arrays. */
  readonly widths: readonly number[];
}

/**
 * A file has rope keys and latents of floats apart, and latents whole, however a session lays them out: prompts pass between
 * contexts of any length. Rows of codes share a step and lie alike at any length: they stay as they are.
 */
function sameColumns({ model, cacheFormat, contextLength }: Session): SameColumns[] {
  const layout = cacheLayoutOf(model, cacheFormat, contextLength);
  return layout.filter(({ piece = 0 }) => piece === 0).map(({ layer, name, dtype, row: [width = 0] }): SameColumns => {
    const parts = layout.filter((part) => part.layer === layer && part.name === name), rope = 2 * (model.mla?.layers[layer]?.frequencies.length ?? 0);
    if (name === 'row' && dtype !== 'uint8') return { parts, names: [pastPort({ layer, name: 'rope' }), pastPort({ layer, name: 'latent' })], widths: [rope, width - rope] };
    return { parts, names: [pastPort({ layer, name })], widths: [width * parts.length] };
  });
}

/** The same columns in arrays of other widths; one array for one, of whatever shape, is itself. */
const inColumns = (arrays: readonly HostTensor[], widths: readonly number[]): readonly HostTensor[] => (arrays.length === 1 && widths.length === 1 ? arrays : cutColumns(joinColumns(arrays), widths));

const KIND = 'attention-surgery prompt';
const VERSION = '3';

/**
 * Writes the rows of the first `ids.length` tokens of a cache, which must be those of `ids`, and the ids. The file appears
 * when it is whole. Errors: no ids, more than the cache holds, a cache of a session that lays it out otherwise, what writeFileAtomic reports.
 */
export async function savePrompt(path: string, cache: Cache, ids: readonly number[], session: Session, options: { readonly signal?: AbortSignal | undefined } = {}): Promise<void> {
  if (ids.length === 0 || ids.length > cache.length) throw new RangeError(`savePrompt: ids must be 1..${cache.length}, as many as the cache holds, got ${ids.length}`);
  const list: HostTensor = { dtype: 'int64', shape: [ids.length], data: BigInt64Array.from(ids, BigInt) };
  const feeds = cache.feeds();
  const rows = sameColumns(session).flatMap(({ parts, names, widths }) => {
    const own = parts.map((part) => {
      const cached = feeds[pastPort(part)];
      if (cached === undefined) throw new TypeError(`savePrompt: the cache must be laid out as this session's, with ${pastPort(part)}, got ${Object.keys(feeds).join(', ')}`);
      return tokenRows(cached, 0, ids.length);
    });
    return inColumns(own, widths).map((values, i): [string, HostTensor] => [names[i]!, values]);
  });
  const metadata = { kind: KIND, version: VERSION, model: await conversionFingerprint(session.model), cache: session.cacheFormat };
  await writeSafetensors(path, tensorSources([['ids', list], ...rows]), { ...options, metadata });
}

/**
 * Reads a prompt into a new cache with room for `capacityTokens` (default: the context) or for the prompt, whichever is more.
 * Errors: a truncated file, one of another kind, version, model or cache format, or longer than the context; each named.
 */
export async function loadPrompt(path: string, session: Session, capacityTokens: number = session.contextLength): Promise<SavedPrompt> {
  const file = await openSafetensors(path);
  const expected = { kind: KIND, version: VERSION, model: await conversionFingerprint(session.model), cache: session.cacheFormat };
  for (const [field, wanted] of Object.entries(expected)) {
    if (file.metadata[field] !== wanted) throw new TypeError(`loadPrompt: ${field} of ${path} must be ${wanted}, got ${file.metadata[field] ?? 'none'}`);
  }
  const list = await readTensor(file, 'ids');
  const ids = Array.from<number | bigint, number>(list.data, Number);
  if (ids.length === 0 || ids.length > session.contextLength) throw new RangeError(`loadPrompt: ids of ${path} must be 1..${session.contextLength}, the context, got ${ids.length}`);
  const cache = session.createCache(Math.max(capacityTokens, ids.length));
  const rows: Record<string, HostTensor> = {};
  for (const { parts, names } of sameColumns(session)) {
    const read = await Promise.all(names.map((name) => readTensor(file, name)));
    for (const [i, values] of inColumns(read, parts.map(({ row: [width = 0] }) => width)).entries()) rows[presentPort(parts[i]!)] = values;
  }
  cache.append(rows, ids.length);
  return { ids, cache };
}
