import type { RowFormat } from '../../kernels/stored-rows.ts';
import type { ModelConfig } from '../checkpoint/config.ts';
import { ROW_BLOCKS } from '../passes/block-single-rows.ts';
import type { MlaLayerConfig } from './mla-config.ts';

/** One kind of rows that a layer caches: `row` numbers per token in the given shape. */
export interface CachedRows {
  readonly layer: number;
  readonly name: 'key' | 'value' | 'row' | 'rope' | 'latent' | 'key_scale';
  /** Which piece of a latent that lies in several arrays. */
  readonly piece?: number;
  /** A graph that appends reads them in multiples of so many: see `rowMultiple`. Default 1. */
  readonly multiple?: number;
  readonly row: readonly number[];
}

/** One array in memory: cached rows in their format, or the steps of quantised ones. */
export interface CachePart {
  readonly layer: number;
  readonly name: CachedRows['name'] | `${CachedRows['name']}_step`;
  readonly piece?: number;
  readonly multiple?: number;
  readonly dtype: 'float32' | 'float16' | 'uint8';
  readonly row: readonly number[];
}

/** What a source model caches: rotated keys and values of every KV head. */
export function sourceCachedRows({ layers, kvHeads, headDim }: ModelConfig): CachedRows[] {
  return Array.from({ length: layers }, (_, layer) => layer)
    .flatMap((layer): CachedRows[] => [{ layer, name: 'key', row: [kvHeads, headDim] }, { layer, name: 'value', row: [kvHeads, headDim] }]);
}

/** What the layout of a converted layer's cache depends on. */
export type CachedLayer = Pick<MlaLayerConfig, 'rank' | 'frequencies' | 'nopeWidth' | 'headNorm' | 'latentGroups' | 'latentNormEps'>;

/**
 * Rows in one array save operators, but sums by weights read rope keys too: so many elements of those, context times width,
 * cost as much as is saved (docs/log.md).
 */
const ONE_ROW_ELEMENTS = 2 ** 17;

/**
 * Whether rope key and latent lie side by side in one array, so that one product scores both: where there are both parts,
 * every head reads the whole latent, and no norm scales its scores apart. Floats for short contexts only; int8 codes at every
 * length, where both parts can be made of one size (level-rope-keys.ts) and share a step, which saves runs over scores as long
 * as the cache; int4 never, since its rope keys have 8 bits.
 */
export function isOneRow({ frequencies, nopeWidth, headNorm, latentGroups = 1, latentNormEps }: CachedLayer, format: CacheFormat, contextTokens: number): boolean {
  if (frequencies.length === 0 || nopeWidth === 0 || headNorm !== undefined || latentGroups !== 1) return false;
  switch (format) {
    case 'int4': return false;
    case 'int8': return latentNormEps === undefined;
    default: return contextTokens * 2 * frequencies.length <= ONE_ROW_ELEMENTS;
  }
}

/** From so many elements on, a group's latents are read faster from an array of their own than it costs to have one more (docs/log.md). */
const PIECE_ELEMENTS = 3 * 2 ** 16;

/**
 * In how many arrays the latent of a layer lies: one for each latent group, floats of long contexts; else one. A group's part
 * of a row is a small part of it, and a processor that reads every such part of many rows fetches far more than it needs.
 */
export function latentPieces({ rank, headNorm, latentGroups = 1 }: CachedLayer, format: CacheFormat, contextTokens: number): number {
  return headNorm === undefined && !hasSteps(format) && (contextTokens * rank) / latentGroups > PIECE_ELEMENTS ? latentGroups : 1;
}

/** Rows of all arrays that a graph which appends reads come in multiples of so many: blocks of them where a query has a latent to itself (blockSingleRows). */
export const rowMultiple = (rows: readonly Pick<CachedRows, 'multiple'>[]): number => Math.max(1, ...rows.map(({ multiple = 1 }) => multiple));

/**
 * What a converted model caches: [rope key 2n | latent R] in one array, two (default) or, with latent groups, more, and one scale
 * per KV head where heads have norms. `heads` are those of queries.
 */
export function latentCachedRows({ layers, heads }: { readonly layers: readonly CachedLayer[]; readonly heads?: number }, format: CacheFormat, contextTokens = Infinity): CachedRows[] {
  return layers.flatMap((config, layer): CachedRows[] => {
    const { rank, frequencies, headNorm } = config, rope = 2 * frequencies.length;
    return [
      ...(isOneRow(config, format, contextTokens) ? [{ layer, name: 'row', row: [rope + rank] } as const] : [
        ...(rope > 0 ? [{ layer, name: 'rope', row: [rope] } as const] : []),
        ...piecesOf({ layer, name: 'latent', row: [rank] }, latentPieces(config, format, contextTokens), heads),
      ]),
      ...(headNorm === undefined ? [] : [{ layer, name: 'key_scale', row: [headNorm.kvHeads] } as const]),
    ];
  });
}

/** Rows in `pieces` equal arrays. */
const piecesOf = (rows: CachedRows, pieces: number, heads: number | undefined): CachedRows[] => (pieces === 1 ? [rows]
  : Array.from({ length: pieces }, (_, piece) => ({ ...rows, piece, ...(heads === pieces ? { multiple: ROW_BLOCKS } : {}), row: rows.row.map((width) => width / pieces) })));

type RowFormats = Readonly<Record<CachedRows['name'], RowFormat>>;

/** Cache types by name. Keys that rotate stay at 8 bits when the latent has 4: their errors weigh more. */
export const cacheFormats = {
  f32: { key: 'float32', value: 'float32', row: 'float32', rope: 'float32', latent: 'float32', key_scale: 'float32' },
  f16: { key: 'float16', value: 'float16', row: 'float16', rope: 'float16', latent: 'float16', key_scale: 'float32' },
  int8: { key: 'int8', value: 'int8', row: 'int8', rope: 'int8', latent: 'int8', key_scale: 'float32' },
  int4: { key: 'int8', value: 'int4', row: 'int8', rope: 'int8', latent: 'int4', key_scale: 'float32' },
} as const satisfies Record<string, RowFormats>;
export type CacheFormat = keyof typeof cacheFormats;

export const isCacheFormat = (name: string): name is CacheFormat => Object.hasOwn(cacheFormats, name);

/**
 * Whether rows are rounded to codes with one step for all their elements, which should then be of even size: latents are
 * rotated (rotate-latent.ts) and rope keys levelled to them (level-rope-keys.ts) before they are stored.
 */
export const hasSteps = (format: CacheFormat): boolean => format === 'int8' || format === 'int4';

/** The arrays that hold some rows: the rows, and for quantised ones a step per token. */
export function partsOf({ row, ...rows }: CachedRows, format: CacheFormat): readonly [rows: CachePart] | readonly [bytes: CachePart, step: CachePart] {
  const lead = row.slice(0, -1);
  const width = row.at(-1) ?? 1;
  const step = { ...rows, name: `${rows.name}_step`, dtype: 'float32', row: [...lead, 1] } as const;
  switch (cacheFormats[format][rows.name]) {
    case 'float32': return [{ ...rows, dtype: 'float32', row }];
    case 'float16': return [{ ...rows, dtype: 'float16', row }];
    case 'int8': return [{ ...rows, dtype: 'uint8', row }, step];
    case 'int4':
      if (width % 2 !== 0) throw new RangeError(`cache: an int4 cache needs rows of even length, got ${width} for ${rows.name} of layer ${rows.layer}`);
      return [{ ...rows, dtype: 'uint8', row: [...lead, width / 2] }, step];
  }
}

/** Name of a port or length that each sequence of a step has for itself: past_positions.2; the bare name where there is one. */
export const ofSequence = (name: string, sequence?: number): string => (sequence === undefined ? name : `${name}.${sequence}`);

/** The numbers of a step's sequences; one without a number where a graph has but one. */
export const eachSequence = (sequences?: number): readonly (number | undefined)[] => (sequences === undefined ? [undefined] : Array.from({ length: sequences }, (_, i) => i));

/** All arrays of a model's cache. */
export const cacheLayout = (rows: readonly CachedRows[], format: CacheFormat): CachePart[] => rows.flatMap((some) => [...partsOf(some, format)]);

/** Input port of a part's old rows, and output port of its new rows; where a step has several sequences, of one of them. */
export const pastPort = (part: PartName, sequence?: number): string => ofSequence(`past.${partName(part)}`, sequence);
export const presentPort = (part: PartName): string => `present.${partName(part)}`;

type PartName = Pick<CachePart, 'layer' | 'name' | 'piece'>;
const partName = ({ layer, name, piece }: PartName): string => `${layer}.${name}${piece === undefined ? '' : `_${piece}`}`;
