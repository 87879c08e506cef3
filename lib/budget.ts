import type { ModelConfig } from './checkpoint/config.ts';

/** What to keep, as a user may say it; what is left out follows from the rest. */
export interface Budget {
  /** Cached elements after over before, 0..1. Default 0.3125, the paper's mildest setting. */
  readonly cacheShare?: number;
  /** Bytes of one token's rows in all layers, at four bytes an element; instead of cacheShare. */
  readonly bytesPerToken?: number;
  /** RoPE pairs kept per KV head. Default headDim / 16, the paper's choice. */
  readonly pairs?: number;
  /** Width of a layer's latent. Default: what the budget leaves beside the rope key. */
  readonly rank?: number;
}

export interface ResolvedBudget {
  readonly pairs: number;
  readonly rank: number;
  /** One sentence on where the two numbers come from. */
  readonly reason: string;
}

/**
 * Pairs per KV head and rank per layer for a budget: rank = budget elements per layer - 2 kvHeads pairs.
 * Errors: share or bytes out of range, contradictory wishes, a budget too small for the rope key plus a latent of 1
 * (the least possible is named).
 */
export function resolveBudget({ layers, kvHeads, headDim }: Pick<ModelConfig, 'layers' | 'kvHeads' | 'headDim'>, budget: Budget): ResolvedBudget {
  const full = 2 * kvHeads * headDim;
  const { cacheShare, bytesPerToken, pairs = Math.max(1, Math.floor(headDim / 16)), rank } = budget;
  if (cacheShare !== undefined && bytesPerToken !== undefined) throw new RangeError('resolveBudget: give cacheShare or bytesPerToken, got both');
  if (!Number.isInteger(pairs) || pairs < 1 || pairs > headDim / 2) throw new RangeError(`resolveBudget: pairs must be 1..${headDim / 2} per KV head, got ${pairs}`);
  const rope = 2 * kvHeads * pairs;
  if (rank !== undefined) {
    if (cacheShare !== undefined || bytesPerToken !== undefined) throw new RangeError('resolveBudget: rank fixes the budget by itself, got a cache share or bytes per token as well');
    if (!Number.isInteger(rank) || rank < 1) throw new RangeError(`resolveBudget: rank must be 1 or more, got ${rank}`);
    return { pairs, rank, reason: `rank ${rank} and ${pairs} pairs per KV head as asked: ${rope + rank} of ${full} elements per layer` };
  }
  if (cacheShare !== undefined && !(cacheShare > 0 && cacheShare <= 1)) throw new RangeError(`resolveBudget: cacheShare must be above 0 and at most 1, got ${cacheShare}`);
  const elements = Math.floor(bytesPerToken === undefined ? (cacheShare ?? 0.3125) * full + 1e-9 : bytesPerToken / (4 * layers));
  if (!(elements > rope)) {
    throw new RangeError(`resolveBudget: the budget must leave a latent beside ${pairs} pairs per KV head, at least share ${((rope + 1) / full).toFixed(4)} or ${4 * layers * (rope + 1)} bytes per token, got ${elements} elements per layer`);
  }
  return { pairs, rank: elements - rope, reason: `${elements} of ${full} elements per layer: ${rope} for ${pairs} rotating pairs per KV head, ${elements - rope} for the latent` };
}
