/** Where a conversion's statistics come from. */
import { at } from '../kernels/at.ts';
import type { WriteOptions } from './atomic-write.ts';
import type { Model } from './models/model.ts';
import { REFIT_WINDOWS } from './refit.ts';
import type { Calibration } from './statistics/calibration.ts';
import { collectStatistics } from './statistics/collect-statistics.ts';
import type { LayerStatistics } from './statistics/layer-statistics.ts';
import type { ModelStatistics } from './statistics/saved-statistics.ts';
import { memoryStore, type WindowStore } from './statistics/window-store.ts';

export interface StatisticsWish {
  readonly statistics?: ModelStatistics | readonly LayerStatistics[] | undefined;
  readonly calibration?: Calibration | undefined;
  readonly statisticsDirectory?: string | undefined;
  readonly threads?: number | undefined;
  readonly signal?: AbortSignal;
  readonly writeBytes?: WriteOptions['writeBytes'];
}

/**
 * Statistics layer after layer: those given, or collected from text as they are asked for; null where there is neither. What
 * the source's attention gives on the refit's windows is left in `targets` by layer, where it was run and a map is given.
 * Errors: statistics or calibration of another model.
 */
export function statisticsSource(
  model: Model, fingerprint: string, { statistics, calibration, statisticsDirectory, threads, signal, writeBytes }: StatisticsWish, targets: Map<number, WindowStore> | null,
): ((layer: number) => Promise<LayerStatistics>) | null {
  if (statistics !== undefined) {
    const list = 'layer' in statistics ? statistics : { layer: async (layer: number) => at(statistics, layer) };
    return async (layer) => {
      const given = await list.layer(layer);
      if (given.identity.model !== fingerprint) throw new Error(`convert: statistics must be of this model, ${fingerprint}, got those of ${given.identity.model}`);
      return given;
    };
  }
  if (calibration === undefined) return null;
  const { identity } = calibration;
  if (identity.model !== fingerprint) throw new Error(`convert: calibration must be made for this model, ${fingerprint}, got one for ${identity.model}`);
  const take = async (layer: number, window: number, output: Float32Array): Promise<void> => {
    const store = targets?.get(layer) ?? memoryStore();
    targets?.set(layer, store);
    await store.write(window, output);
  };
  const stream = collectStatistics(model, calibration, {
    directory: statisticsDirectory, threads, signal, writeBytes, ...(targets === null ? {} : { attention: { windows: REFIT_WINDOWS, take } }),
  });
  return async (layer) => {
    const { value } = await stream.next();
    if (value?.layer !== layer) throw new Error(`convert: statistics of layer ${layer} must come next, got ${value === undefined ? 'none' : `layer ${value.layer}`}`);
    return value;
  };
}
