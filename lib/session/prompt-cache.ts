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

/** A file has rope keys and latents of floats apart, however a session lays them out: prompts pass between contexts of any length. */
const partNames = ({ layer }: Pick<CachePart, 'layer'>): string[] => [pastPort({ layer, name: 'rope' }), pastPort({ layer, name: 'latent' })];

const KIND = 'attention-surgery prompt';
const VERSION = '3';

/** Whether a part lies in a file as those two. Rows of codes share a step and lie alike at any length: they stay whole. */
const isCut = (part: CachePart): boolean => part.name === 'row' && part.dtype !== 'uint8';

/**
 * Writes the rows of the first `ids.length` tokens of a cache, which must be those of `ids`, and the ids. The file appears
 * when it is whole. Errors: no ids, more than the cache holds, a cache of a session that lays it out otherwise, what writeFileAtomic reports.
 */
export async function savePrompt(path: string, cache: Cache, ids: readonly number[], session: Session, options: { readonly signal?: AbortSignal | undefined } = {}): Promise<void> {
  if (ids.length === 0 || ids.length > cache.length) throw new RangeError(`savePrompt: ids must be 1..${cache.length}, as many as the cache holds, got ${ids.length}`);
  const list: HostTensor = { dtype: 'int64', shape: [ids.length], data: BigInt64Array.from(ids, BigInt) };
  const feeds = cache.feeds();
  const rows = cacheLayoutOf(session.model, session.cacheFormat, session.contextLength).flatMap((part): [string, HostTensor][] => {
    const cached = feeds[pastPort(part)];
    if (cached === undefined) throw new TypeError(`savePrompt: the cache must be laid out as this session's, with ${pastPort(part)}, got ${Object.keys(feeds).join(', ')}`);
    const own = tokenRows(cached, 0, ids.length);
    if (!isCut(part)) return [[pastPort(part), own]];
    const names = partNames(part), rope = 2 * (session.model.mla?.layers[part.layer]?.frequencies.length ?? 0);
    return cutColumns(own, [rope, (own.shape[2] ?? 0) - rope]).map((values, i) => [names[i]!, values]);
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
  for (const part of cacheLayoutOf(session.model, session.cacheFormat, session.contextLength)) {
    const read = await Promise.all((isCut(part) ? partNames(part) : [pastPort(part)]).map((name) => readTensor(file, name)));
    rows[presentPort(part)] = read.length === 1 ? read[0]! : joinColumns(read);
  }
  cache.append(rows, ids.length);
  return { ids, cache };
}
