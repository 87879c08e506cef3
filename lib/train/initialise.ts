/** Where training from nothing starts: random weights for a configuration. */
import type { HostTensor } from '../../kernels/emit.ts';
import type { ModelConfig } from '../checkpoint/config.ts';
import { sourceWeightShapes } from '../models/decoder-weights.ts';
import { familyOf } from '../models/index.ts';
import { normals, seededRandom } from '../random.ts';
import { elementCount, tensor } from '../tensor.ts';

export interface InitialiseOptions {
  /** Default 0. */
  readonly seed?: number;
  /** Standard deviation of matrices. Default 0.02. */
  readonly deviation?: number;
}

/**
 * Weights of a source model before any training, by Hugging Face name, float32. Matrices are normal around 0; those that
 * write to the residual stream (o_proj, down_proj) are narrower by sqrt(2 layers), so that the stream's variance does not
 * grow with depth (Radford et al. 2019, GPT-2). Norms are 1, biases 0. The same seed gives the same weights everywhere.
 */
export function initialWeights(config: ModelConfig, { seed = 0, deviation = 0.02 }: InitialiseOptions = {}): Map<string, HostTensor<'float32'>> {
  if (!(deviation > 0 && Number.isFinite(deviation))) throw new RangeError(`initialWeights: deviation must be positive, got ${deviation}`);
  const family = familyOf(config);
  const random = seededRandom(seed);
  const narrow = new Set(Array.from({ length: config.layers }, (_, layer) => family.layer(layer)).flatMap(({ output, down }) => [`${output}.weight`, `${down}.weight`]));
  const values = (name: string, shape: readonly number[]): Float32Array => {
    const count = elementCount(shape);
    if (shape.length === 1) return new Float32Array(count).fill(name.endsWith('.bias') ? 0 : 1);
    const scale = deviation / (narrow.has(name) ? Math.sqrt(2 * config.layers) : 1);
    return Float32Array.from(normals(random, count), (value) => scale * value);
  };
  return new Map(Array.from(sourceWeightShapes({ config, family }), ([name, shape]) => [name, tensor('float32', shape, values(name, shape))]));
}
