/** A model with its attention replaced in memory: for measuring a choice before anything is written. */
import { layerConfig, mlaTensors } from './convert-layer.ts';
import type { MlaConfig } from './models/mla-config.ts';
import type { Model } from './models/model.ts';
import { relaidCheckpoint, type Relaid } from './released/relaid-checkpoint.ts';
import type { MlaLayer } from './surgery/build-mla-layer.ts';

/** The source with `layers`, one per layer, in place of its attention; opens and runs as a converted model does. */
export function convertedModel(source: Model, layers: readonly MlaLayer[]): Model {
  if (source.mla !== null) throw new TypeError(`convertedModel: source must be a source model, got ${source.path}, which is converted already`);
  if (layers.length !== source.config.layers) throw new RangeError(`convertedModel: layers must be ${source.config.layers}, got ${layers.length}`);
  const tensors = layers.flatMap((layer) => mlaTensors(layer)).map(([name, tensor]): Relaid => ({
    name, shape: tensor.shape, from: null,
    read: async () => {
      if (tensor.dtype !== 'float32') throw new TypeError(`convertedModel: ${name} must be float32, got ${tensor.dtype}`);
      return tensor;
    },
  }));
  const mla: MlaConfig = {
    version: 1, scale: source.scale, layers: layers.map(layerConfig), plan: { strategy: 'in memory' },
    factor: { strategy: 'in memory', rank: layers[0]?.rank ?? 1, singularValues: 'up' },
    source: { name: 'in memory', architecture: source.config.architecture, fingerprint: 'unknown' },
  };
  return { ...source, mla, checkpoint: relaidCheckpoint(source.checkpoint, tensors, (name) => !name.includes('.self_attn.')) };
}
