import type { ModelConfig } from '../checkpoint/config.ts';
import type { ModelFamily } from './family.ts';
import { llama } from './llama.ts';

/** Architectures by config.json's `model_type`. */
export const families: Readonly<Record<string, ModelFamily>> = { llama, mistral: llama };

export function familyOf(config: ModelConfig): ModelFamily {
  const family = families[config.modelType];
  if (family === undefined) {
    throw new RangeError(`familyOf: model_type must be one of ${Object.keys(families).join(', ')}, got ${config.modelType}`);
  }
  return family;
}
