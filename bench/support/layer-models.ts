/** The source and its conversions that the cases on one-layer models hold against each other. */
import type { CacheFormat, Model } from '../../lib/index.ts';
import { writeLayerModel, withDirectory } from './layer-model.ts';
import { latentOf, shareText } from './latents.ts';
import type { Shape } from './presets.ts';

export interface LayerModel {
  readonly what: string;
  readonly model: Model;
  readonly cache: CacheFormat;
}

/** Runs `work` with the source (f32 cache) and a conversion for every share and cache, on disk as long as it takes. */
export const withLayerModels = <T>(shape: Shape, shares: readonly number[], caches: readonly CacheFormat[], work: (models: readonly LayerModel[]) => Promise<T>): Promise<T> =>
  withDirectory(async (directory) => {
    const models: LayerModel[] = [{ what: 'source', model: await writeLayerModel(directory, 'source', shape, null), cache: 'f32' }];
    for (const share of shares) {
      const model = await writeLayerModel(directory, `share-${share}`, shape, latentOf(shape, share));
      for (const cache of caches) models.push({ what: caches.length === 1 ? shareText(share) : `${shareText(share)}, ${cache} cache`, model, cache });
    }
    return work(models);
  });
