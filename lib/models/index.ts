import type { ModelConfig } from '../checkpoint/config.ts';
import type { ModelFamily } from './family.ts';
import { llama } from './llama.ts';
import { qwen2 } from './qwen2.ts';
import { qwen3 } from './qwen3.ts';

/** Architectures by config.json's `model_type`. */
export const families: Readonly<Record<string, ModelFamily>> = { llama, mistral: llama, qwen2, qwen3 };

export function familyOf(config: ModelConfig): ModelFamily {
  const family = families[config.modelType];
  if (family === undefined) {
    throw new RangeError(`familyOf: model_type must be one of ${Object.keys(families).join(', ')}, got ${config.modelType}`);
  }
  return family;
}
