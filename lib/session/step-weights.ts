/** The weights of a converted model's step: up-projections merged into queries and output, and rows of one array made by one product. */
import type { Constant } from '../graph/subgraph.ts';
import { withGemm } from '../linalg/onnx-gemm.ts';
import { absorptions, type Absorption } from '../models/absorption.ts';
import { isOneRow, type CacheFormat } from '../models/cache-layout.ts';
import { mergeUpProjections } from '../models/merge-up-projections.ts';
import type { Model } from '../models/model.ts';
import { oneRowProjections } from '../models/one-row-projection.ts';

/** What a quantised weight is taken to be, whatever the pass. */
export const QUANTISED_BYTES_PER_WEIGHT = 1;

export interface StepWeightsOptions {
  readonly cache: CacheFormat;
  /** The context that decides whether rows lie in one array. */
  readonly positions: number;
  /** For the cost rule of lib/models/absorption.ts. */
  readonly bytesPerWeight: number;
  readonly absorption: Absorption | 'auto';
}

/** `loaded` (loadDecoderWeights) as the absorbed form takes it; as it is where nothing is merged. */
export async function stepWeights(
  model: Model, loaded: ReadonlyMap<string, Constant>, { cache, positions, bytesPerWeight, absorption }: StepWeightsOptions,
): Promise<ReadonlyMap<string, Constant>> {
  if (model.mla === null) return loaded;
  const merged = absorptions(model.config, model.mla, bytesPerWeight, absorption).flatMap(({ chosen }, layer) => (chosen === 'merged' ? [layer] : []));
  if (merged.length === 0) return loaded;
  const { layers } = model.mla, oneRow = merged.filter((layer) => isOneRow(layers[layer]!, cache, positions));
  return oneRowProjections(model, await withGemm((gemm) => mergeUpProjections(model, loaded, merged, gemm)), oneRow);
}
