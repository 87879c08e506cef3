import type { MlaConfig } from './mla-config.ts';
import type { ModelConfig } from '../checkpoint/config.ts';

/** One array of cached rows: part `name` of layer `layer`, `row` elements per token in the given shape. */
export interface CachePart {
  readonly layer: number;
  readonly name: 'key' | 'value' | 'rope' | 'latent' | 'key_scale';
  readonly row: readonly number[];
}

/** What a source model caches: rotated keys and values of every KV head. */
export function sourceCacheLayout({ layers, kvHeads, headDim }: ModelConfig): CachePart[] {
  return Array.from({ length: layers }, (_, layer) => layer)
    .flatMap((layer): CachePart[] => [{ layer, name: 'key', row: [kvHeads, headDim] }, { layer, name: 'value', row: [kvHeads, headDim] }]);
}

/**
 * What a converted model caches: [rope key 2n | latent R], kept as two arrays so that both are read in place, and one scale
 * per KV head where heads have norms.
 */
export function latentCacheLayout({ layers }: MlaConfig): CachePart[] {
  return layers.flatMap(({ rank, frequencies, headNorm }, layer): CachePart[] => [
    ...(frequencies.length > 0 ? [{ layer, name: 'rope', row: [2 * frequencies.length] } as const] : []),
    { layer, name: 'latent', row: [rank] },
    ...(headNorm === undefined ? [] : [{ layer, name: 'key_scale', row: [headNorm.kvHeads] } as const]),
  ]);
}

/** Input port of a part's old rows, and output port of its new rows. */
export const pastPort = ({ layer, name }: Pick<CachePart, 'layer' | 'name'>): string => `past.${layer}.${name}`;
export const presentPort = ({ layer, name }: Pick<CachePart, 'layer' | 'name'>): string => `present.${layer}.${name}`;

