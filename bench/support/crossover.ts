/** Where absorbed attention should beat its source: operations and bytes against what the machine does of each. */
import { costMs, decodeCost, type CacheFormat } from '../../lib/index.ts';
import type { Ceiling } from './ceiling.ts';
import { latentOf, machineRates, shareText } from './latents.ts';
import type { Shape } from './presets.ts';

export const crossoverHead = ['', 'FLOPs of the source', 'bytes of the source', 'x source by the ceilings', 'latents by the cost rule', 'x source with those'];

/** One line: against the source with an f32 cache at `context` tokens; `groups` is what the cost rule chooses. */
export function crossoverCells(shape: Shape, share: number, cache: CacheFormat, context: number, groups: number, ceiling: Ceiling, components: number | null = null): string[] {
  const source = decodeCost(shape, null, context);
  const sourceMs = costMs(source, machineRates(ceiling, 'f32'));
  const cost = (latentGroups: number): ReturnType<typeof decodeCost> => decodeCost(shape, latentOf(shape, share, latentGroups, components), context, cache);
  const gain = (latentGroups: number): string => (sourceMs / costMs(cost(latentGroups), machineRates(ceiling, cache))).toFixed(2);
  const one = cost(1);
  return [
    `${shareText(share)}, ${cache} cache, ${context} tokens`, `${(one.flops / source.flops).toFixed(1)} x`, `${((100 * one.bytes) / source.bytes).toFixed(1)} %`, gain(1), `${groups}`, gain(groups),
  ];
}
