import type { ModelConfig } from './checkpoint/config.ts';
import { cacheLayout, latentCachedRows, type CacheFormat } from './models/cache-layout.ts';
import { bytesPerElement } from './tensor.ts';

/** What to keep, as a user may say it; what is left out follows from the rest. */
export interface Budget {
  /** Cached elements after over before, 0..1. Default 0.3125, the paper's mildest setting. */
  readonly cacheShare?: number | undefined;
  /** Bytes of one token's rows in all layers, in `cache`'s format; instead of cacheShare. */
  readonly bytesPerToken?: number | undefined;
  /** What bytes are counted in: with 'int8' and 'int4' the step of every row counts too. Default 'f32'. */
  readonly cache?: CacheFormat | undefined;
  /** RoPE pairs kept per KV head, for the strategies that choose pairs. Default headDim / 16, the paper's choice. */
  readonly pairs?: number | undefined;
  /** Rotating components n of a layer, for the strategies that combine pairs. Default by the measured rule, see `ropeShare`. */
  readonly components?: number | undefined;
  /** Width of a layer's latent. Default: what the budget leaves beside the rope key. */
  readonly rank?: number | undefined;
}

export interface ResolvedBudget {
  /** What the plan strategy takes: one of the two is null. */
  readonly pairs: number | null;
  readonly components: number | null;
  readonly rank: number;
  /** One sentence on where the numbers come from. */
  readonly reason: string;
}

type Shape = Pick<ModelConfig, 'layers' | 'kvHeads' | 'headDim'>;

/**
 * Share of a row that rotates, by the row's share of the full cache: a third up to 0.1875, 0.267 at 0.3125, a quarter from
 * 0.5 on, linear between. Measured on SmolLM2-135M with the frequency bank: components n of 24, 16, 12 and 8 were best
 * for rows of 192, 120, 72 and 48 elements out of 384; two more or less cost up to 8 % of perplexity.
 */
export function ropeShare(cacheShare: number): number {
  const points = [[0.1875, 1 / 3], [0.3125, 4 / 15], [0.5, 1 / 4]] as const;
  if (cacheShare <= points[0][0]) return points[0][1];
  for (const [i, [to, high]] of points.slice(1).entries()) {
    const [from, low] = points[i] ?? points[0];
    if (cacheShare <= to) return low + ((high - low) * (cacheShare - from)) / (to - from);
  }
  return 1 / 4;
}

/**
 * Pairs per KV head or components, and rank per layer: rank = elements per layer - rope key (2 kvHeads pairs, or 2 n).
 * `counts` is what the plan strategy counts in. Errors: share or bytes out of range, contradictory wishes, a budget too
 * small for the rope key plus a latent of 1 (the least possible is named).
 */
export function resolveBudget(shape: Shape, budget: Budget, counts: 'pairs' | 'components' = 'pairs'): ResolvedBudget {
  const { kvHeads, headDim } = shape;
  const full = 2 * kvHeads * headDim;
  const { cacheShare, bytesPerToken, rank } = budget;
  if (cacheShare !== undefined && bytesPerToken !== undefined) throw new RangeError('resolveBudget: give cacheShare or bytesPerToken, got both');
  if (counts === 'pairs' && budget.components !== undefined) throw new RangeError(`resolveBudget: a plan that chooses pairs takes pairs per KV head, got components ${budget.components}`);
  if (counts === 'components' && budget.pairs !== undefined) throw new RangeError(`resolveBudget: a plan that combines pairs takes components, got pairs ${budget.pairs}`);
  const whole = (name: string, value: number, most: number, unit: string): void => {
    if (!Number.isInteger(value) || value < 1 || value > most) throw new RangeError(`resolveBudget: ${name} must be 1..${most}${unit}, got ${value}`);
  };
  if (budget.pairs !== undefined) whole('pairs', budget.pairs, headDim / 2, ' per KV head');
  if (budget.components !== undefined) whole('components', budget.components, (kvHeads * headDim) / 2, '');
  const made = (kept: number, width: number, reason: string): ResolvedBudget =>
    ({ pairs: counts === 'pairs' ? kept : null, components: counts === 'components' ? kept : null, rank: width, reason });
  const perKept = counts === 'pairs' ? 2 * kvHeads : 2;
  const unit = counts === 'pairs' ? 'rotating pairs per KV head' : 'rotating components';
  if (rank !== undefined) {
    if (cacheShare !== undefined || bytesPerToken !== undefined) throw new RangeError('resolveBudget: rank fixes the budget by itself, got a cache share or bytes per token as well');
    if (!Number.isInteger(rank) || rank < 1) throw new RangeError(`resolveBudget: rank must be 1 or more, got ${rank}`);
    const kept = budget.pairs ?? budget.components ?? (counts === 'pairs' ? defaultPairs(headDim) : componentsBeside(rank, full));
    return made(kept, rank, `rank ${rank} and ${kept} ${unit} as asked: ${perKept * kept + rank} of ${full} elements per layer`);
  }
  if (cacheShare !== undefined && !(cacheShare > 0 && cacheShare <= 1)) throw new RangeError(`resolveBudget: cacheShare must be above 0 and at most 1, got ${cacheShare}`);
  const elements = bytesPerToken === undefined ? Math.floor((cacheShare ?? 0.3125) * full + 1e-9) : elementsOfBytes(shape, bytesPerToken, budget.cache ?? 'f32', full);
  const kept = budget.pairs ?? budget.components ?? (counts === 'pairs' ? defaultPairs(headDim) : Math.max(1, Math.round((elements * ropeShare(elements / full)) / 2)));
  const rope = perKept * kept;
  if (!(elements > rope)) {
    const least = perKept * (budget.pairs ?? budget.components ?? (counts === 'pairs' ? defaultPairs(headDim) : 1)) + 1;
    const bytes = rowBytes(shape, least - 1, 1, budget.cache ?? 'f32');
    throw new RangeError(`resolveBudget: the budget must leave a latent beside ${(least - 1) / perKept} ${unit}, at least share ${(least / full).toFixed(4)} or ${bytes} bytes per token, got ${elements} elements per layer`);
  }
  const why = budget.pairs ?? budget.components ?? null;
  const rule = why !== null ? 'as asked' : counts === 'pairs' ? 'a sixteenth of the head width' : `${Math.round((100 * rope) / elements)} % of the row, the measured rule`;
  return made(kept, elements - rope, `${elements} of ${full} elements per layer: ${rope} for ${kept} ${unit} (${rule}), ${elements - rope} for the latent`);
}

const defaultPairs = (headDim: number): number => Math.max(1, Math.floor(headDim / 16));

/** n so that 2n keeps its share of a row of 2n + rank. */
function componentsBeside(rank: number, full: number): number {
  let n = 1;
  while (n < full / 4 && 2 * n < ropeShare(Math.min(1, (2 * n + rank) / full)) * (2 * n + rank)) n++;
  return n;
}

/** Bytes of one token in all layers, by the arrays that the cache will be made of. */
function rowBytes({ layers }: Shape, rope: number, rank: number, format: CacheFormat): number {
  const rows = latentCachedRows({ layers: [{ rank, frequencies: Array.from({ length: Math.ceil(rope / 2) }, () => 1), nopeWidth: 1 }] }, format);
  const even = rows.map((row) => ({ ...row, row: row.row.map((width) => (format === 'int4' && width % 2 === 1 ? width + 1 : width)) }));
  return layers * cacheLayout(even, format).reduce((sum, { dtype, row }) => sum + bytesPerElement(dtype) * row.reduce((a, b) => a * b, 1), 0);
}

/** The most elements per layer whose rows fit; a third of them rotate, which int4 keeps at 8 bits. */
function elementsOfBytes(shape: Shape, bytes: number, format: CacheFormat, full: number): number {
  const fits = (elements: number): boolean => {
    const rope = 2 * Math.round((elements * ropeShare(elements / full)) / 2);
    return rowBytes(shape, rope, elements - rope, format) <= bytes;
  };
  let elements = 0;
  while (elements < full && fits(elements + 1)) elements++;
  return elements;
}
