/** The cached rows of one recording: old ones as attention reads them, new ones as the outputs that the cache takes. */
import { storedOfEachSequence, storedRows, storeRows, widenRows, type RowStore, type StoredRows } from '../../kernels/index.ts';
import { mulDims, productOfDims } from '../graph/dims.ts';
import type { Recorder, Value } from '../graph/record.ts';
import { cacheFormats, eachSequence, ofSequence, partsOf, pastPort, presentPort, type CachedRows, type CacheFormat, type CachePart } from './cache-layout.ts';

/** Rows of a layer: by their name, and where they lie in pieces the number of one. */
type RowsOfLayer = Pick<CachedRows, 'name' | 'piece'>;

/** Cached rows of one layer, taken part by part. */
export interface LayerCache {
  /** Whether such rows are cached. */
  holds(rows: RowsOfLayer): boolean;
  /** Rows that attention may read in their own format. */
  store(rows: RowsOfLayer): RowStore<Value>;
  /** Old rows of each sequence in float32; none where nothing is cached. */
  past(rows: RowsOfLayer): readonly Value[];
  /** Takes new rows and gives them back in float32, as they will be read from the cache. */
  keep(rows: RowsOfLayer, values: Value): Value;
  /** The new rows taken so far, by port name. */
  readonly outputs: Readonly<Record<string, Value>>;
}

export interface DecoderCache {
  layer(layer: number): LayerCache;
}

export interface DecoderCacheOptions {
  /**
   * The inputs hold the current tokens' rows too (kernels/segments.ts). They come without a batch axis then, and new rows
   * leave as [1, s, width]: as operators make and take them, so that nothing stands between those and the memory.
   */
  readonly appended?: boolean;
  /** Rows of the inputs come in multiples of so many; whoever asks for that masks those behind the last token. Default 1. */
  readonly multiple?: number;
  /** Sequences of one token each with cached rows of their own (kernels/sequences.ts): new rows leave as [1, n, ...row]. Default: one sequence. */
  readonly sequences?: number | undefined;
}

/** Declares the inputs of all rows; with `format` null nothing is cached, and new rows are dropped. */
export function decoderCache(g: Recorder, rows: readonly CachedRows[], format: CacheFormat | null, { appended = false, multiple = 1, sequences }: DecoderCacheOptions = {}): DecoderCache {
  const input = (part: CachePart, sequence: number | undefined): Value => {
    const shape = [1, mulDims(multiple, ofSequence('p', sequence)), ...part.row], port = { name: pastPort(part, sequence), dtype: part.dtype };
    return appended ? g.reshape(g.input({ ...port, shape: shape.slice(1) }), shape) : g.input({ ...port, shape });
  };
  const output = (values: Value): Value => (appended ? g.reshape(values, [...values.shape.slice(0, 2), productOfDims(values.shape.slice(2))]) : values);
  const past = new Map<string, readonly StoredRows<Value>[]>();
  for (const some of format === null ? [] : rows) {
    const kind = cacheFormats[format ?? 'f32'][some.name];
    past.set(pastPort(some), eachSequence(sequences).map((sequence) => {
      const [first, step] = partsOf(some, format ?? 'f32').map((part) => input(part, sequence));
      if (first === undefined) throw new RangeError(`decoderCache: rows ${some.name} of layer ${some.layer} must have a part, got none`);
      return (kind === 'int8' || kind === 'int4') && step !== undefined ? { format: kind, bytes: first, step } : { format: kind === 'float16' ? kind : 'float32', values: first };
    }));
  }
  return {
    layer(layer) {
      const outputs: Record<string, Value> = {};
      const old = (rows: RowsOfLayer): readonly StoredRows<Value>[] => past.get(pastPort({ layer, ...rows })) ?? [];
      const take = (rows: RowsOfLayer, values: Value): StoredRows<Value> => {
        if (format === null) return { format: 'float32', values };
        const stored = storeRows(g, values, cacheFormats[format][rows.name]);
        outputs[presentPort({ layer, ...rows })] = output('values' in stored ? stored.values : stored.bytes);
        if ('step' in stored) outputs[presentPort({ layer, ...rows, name: `${rows.name}_step` })] = output(stored.step);
        return stored;
      };
      return {
        outputs,
        holds: (some) => past.has(pastPort({ layer, ...some })),
        past: (some) => old(some).map((stored) => widenRows(g, stored)),
        keep: (some, values) => widenRows(g, take(some, values)),
        store: (some) => ({
          past: old(some).map((stored) => storedRows(g, stored)),
          keep: (values) => storedOfEachSequence(g, take(some, values), sequences ?? 1).map((stored) => storedRows(g, stored)),
        }),
      };
    },
  };
}
