/** What one decoded token costs in one layer's attention: operations and bytes, and the latent groups that balance them. */
import { cacheLayout, latentCachedRows, type CachedRows, type CacheFormat } from './models/cache-layout.ts';
import { bytesPerElement } from './tensor.ts';

export interface HeadShape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

/** What a conversion caches. */
export interface LatentShape {
  /** Rotating components of the layer. */
  readonly components: number;
  /** Width R of the layer's latent. */
  readonly rank: number;
  /** Default 1. */
  readonly latentGroups?: number;
}

export interface DecodeCost {
  /** Multiplications and additions. */
  readonly flops: number;
  /** Bytes of the cached rows, each read once. */
  readonly bytes: number;
  readonly cacheBytesPerToken: number;
}

/**
 * Attention of one new token over `context` cached ones, without projections from and to the hidden state.
 * Source (`latent` null): 4 h k FLOPs a cached token for scores and sums. Absorbed: 2 h (2n + 2 R / groups) a cached
 * token, because every head reads the whole latent of its group, and 4 h k R / groups for query and output.
 * Fewer bytes and more operations than the source: whether that is faster depends on the machine (`chooseLatentGroups`).
 */
export function decodeCost({ heads, kvHeads, headDim }: HeadShape, latent: LatentShape | null, context: number, format: CacheFormat = 'f32'): DecodeCost {
  const rows: CachedRows[] = latent === null
    ? (['key', 'value'] as const).map((name) => ({ layer: 0, name, row: [kvHeads, headDim] }))
    : latentCachedRows({ layers: [{ rank: latent.rank, frequencies: Array.from({ length: latent.components }, () => 1), nopeWidth: headDim, latentGroups: latent.latentGroups ?? 1 }] }, format);
  const cacheBytesPerToken = cacheLayout(rows, format).reduce((sum, { dtype, row }) => sum + bytesPerElement(dtype) * row.reduce((a, b) => a * b, 1), 0);
  const bytes = context * cacheBytesPerToken;
  if (latent === null) return { flops: 4 * heads * headDim * context, bytes, cacheBytesPerToken };
  const width = latent.rank / (latent.latentGroups ?? 1);
  return { flops: heads * (2 * (2 * latent.components + 2 * width) * context + 4 * headDim * width), bytes, cacheBytesPerToken };
}

/** What a machine does at most. */
export interface MachineRates {
  readonly flopsPerSecond: number;
  readonly bytesPerSecond: number;
}

/** The longer of computing and reading, in milliseconds. */
export const costMs = ({ flops, bytes }: Pick<DecodeCost, 'flops' | 'bytes'>, { flopsPerSecond, bytesPerSecond }: MachineRates): number =>
  1000 * Math.max(flops / flopsPerSecond, bytes / bytesPerSecond);

/** More groups than needed cost accuracy, so a gain below this is left. */
const WORTH = 1.1;

/**
 * Groups of KV heads that should have a latent of their own: with G groups the same bytes need about G times fewer
 * operations. The fewest whose time by `costMs` is within a tenth of the best that any number gives. Only divisors of
 * kvHeads that divide the rank can be chosen.
 */
export function chooseLatentGroups(shape: HeadShape, latent: Omit<LatentShape, 'latentGroups'>, context: number, format: CacheFormat, machine: MachineRates): number {
  const possible = Array.from({ length: shape.kvHeads }, (_, i) => i + 1).filter((groups) => shape.kvHeads % groups === 0 && latent.rank % groups === 0);
  const times = possible.map((latentGroups) => costMs(decodeCost(shape, { ...latent, latentGroups }, context, format), machine));
  const best = Math.min(...times);
  return possible.find((_, i) => (times[i] ?? Infinity) <= WORTH * best) ?? 1;
}
