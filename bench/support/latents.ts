import { cacheFormats, chooseLatentGroups, resolveBudget, type CacheFormat, type MachineRates } from '../../lib/index.ts';
import type { Ceiling } from './ceiling.ts';
import type { Latent, Shape } from './presets.ts';

/** What a conversion keeps of a shape at a share of its cache, with the rank brought down to a multiple of the groups; `kept` components, or the default. */
export function latentOf(shape: Shape, cacheShare: number, latentGroups = 1, kept: number | null = null): Latent {
  const { components, rank } = resolveBudget(shape, { cacheShare, ...(kept === null ? {} : { components: kept }) }, 'components');
  if (components === null) throw new Error('latentOf: a budget in components must give components');
  // An int4 row holds two codes a byte, so groups are of even width.
  const unit = 2 * latentGroups;
  return { components, rank: Math.max(unit, rank - (rank % unit)), latentGroups };
}

/** What this machine does in a second, for the cost rule: products with codes are products of bytes. */
export const machineRates = ({ gemm, byteGemm, read }: Ceiling, cache: CacheFormat): MachineRates =>
  ({ flopsPerSecond: 1e9 * (cacheFormats[cache].latent.startsWith('int') ? byteGemm : gemm), bytesPerSecond: 1e9 * read });

/** Groups asked for; 'auto' is the choice of the cost rule for this machine. */
export function groupsOf(shape: Shape, cacheShare: number, asked: number | 'auto', context: number, cache: CacheFormat, ceiling: Ceiling, kept: number | null = null): number {
  if (asked !== 'auto') {
    if (shape.kvHeads % asked !== 0) throw new RangeError(`bench: --groups must divide the ${shape.kvHeads} KV heads, got ${asked}`);
    return asked;
  }
  // A rank that every number of groups divides, so that the rule is free to choose.
  const { components, rank } = latentOf(shape, cacheShare, shape.kvHeads, kept);
  return chooseLatentGroups(shape, { components, rank }, context, cache, machineRates(ceiling, cache));
}

export const shareText = (share: number): string => `${+(100 * share).toFixed(2)} %`;
export const groupsText = ({ latentGroups }: Pick<Latent, 'latentGroups'>): string => (latentGroups === 1 ? '1 latent' : `${latentGroups} latents`);
export const latentText = ({ components, rank }: Latent): string => `${components} components, rank ${rank}`;
