import type { HostTensor } from '../../kernels/emit.ts';
import { loadDecoderWeights } from '../models/decoder-weights.ts';
import type { Model } from '../models/model.ts';

/** All weights of a model as float32 in memory. */
export async function loadWeights(model: Model): Promise<Map<string, HostTensor<'float32'>>> {
  const weights = new Map<string, HostTensor<'float32'>>();
  for (const name of (await loadDecoderWeights(model)).keys()) weights.set(name, await model.checkpoint.read(name));
  return weights;
}
