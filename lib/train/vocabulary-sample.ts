/**
 * Part of the vocabulary for one update: most probability lies on few entries, and the logits of all the others cost as
 * much. The tokens of the update and the most frequent of the text stand for themselves; of the rest some are drawn at
 * random, each for as many as were not.
 */
import { seededRandom } from '../random.ts';
import type { WeightedSource } from './sequences.ts';

export interface VocabularySample {
  /** Entries of the vocabulary, each once. */
  readonly ids: BigInt64Array;
  /** The log of how many entries each stands for. */
  readonly logCopies: Float32Array;
  /** Places among `ids` of tokens of the update. Errors: a token that is not in the sample. */
  placesOf(tokens: BigInt64Array): BigInt64Array;
}

/** Share of a sample that is the same in every one. */
const FREQUENT_SHARE = 0.5;
/** Tokens of a source that are counted, from its start. */
const COUNTED_TOKENS = 2 ** 20;

/** Entries of the vocabulary that the sources have, most frequent first. */
async function byFrequency(sources: readonly WeightedSource[], vocab: number): Promise<Uint32Array> {
  const counts = new Uint32Array(vocab);
  for (const { source } of sources) {
    for (const token of await source.read(0, Math.min(source.length, COUNTED_TOKENS))) counts[token] = (counts[token] ?? 0) + 1;
  }
  return Uint32Array.from({ length: vocab }, (_, id) => id).filter((id) => counts[id] !== 0).sort((a, b) => (counts[b] ?? 0) - (counts[a] ?? 0) || a - b);
}

/** FNV-1a over tokens: the same tokens draw the same entries, so that a resumed run sees what an uninterrupted one would. */
const seedOf = (tokens: readonly BigInt64Array[]): number =>
  tokens.reduce((hash, row) => row.reduce((so, token) => Math.imul(so ^ Number(token), 0x01000193), hash), 0x811c9dc5 | 0) >>> 0;

/** Samples of `entries` of `vocab` for the tokens of an update. Errors: more entries than there are, more different tokens than there is room for beside the frequent ones. */
export async function vocabularySampler(sources: readonly WeightedSource[], vocab: number, entries: number): Promise<(tokens: readonly BigInt64Array[]) => VocabularySample> {
  if (!Number.isInteger(entries) || entries < 1 || entries > vocab) throw new RangeError(`vocabularySampler: entries must be a whole number of 1 to ${vocab}, got ${entries}`);
  const frequent = (await byFrequency(sources, vocab)).subarray(0, Math.floor(entries * FREQUENT_SHARE));
  return (tokens) => {
    const chosen = new Set(frequent);
    for (const row of tokens) for (const token of row) chosen.add(Number(token));
    const certain = chosen.size;
    if (certain > entries) throw new RangeError(`vocabularySampler: the tokens of an update and ${frequent.length} frequent ones must be at most ${entries}, got ${certain}`);
    const random = seededRandom(seedOf(tokens));
    while (chosen.size < entries) chosen.add(random.integer(vocab));
    const copies = Math.log((vocab - certain) / (entries - certain));
    const places = new Map([...chosen].map((id, place) => [BigInt(id), BigInt(place)]));
    return {
      ids: BigInt64Array.from(places.keys()), logCopies: Float32Array.from({ length: entries }, (_, place) => (place < certain ? 0 : copies)),
      placesOf: (row) => row.map((token) => {
        const place = places.get(token);
        if (place === undefined) throw new RangeError(`vocabularySampler: tokens must be of the update, got ${token}`);
        return place;
      }),
    };
  };
}
