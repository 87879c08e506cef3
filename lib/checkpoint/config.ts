/** The configuration of a model, from config.json or from GGUF metadata, whichever holds its weights. */
import { dirname } from 'node:path';
import { findWeights, readGgufTensor } from './checkpoint.ts';
import { readConfigJson } from './config-json.ts';
import type { ModelConfig } from './config-json.ts';
import { configFromGguf } from './gguf-config.ts';
import { ROPE_FACTORS } from './gguf-names.ts';
import { openGguf } from './gguf.ts';

export { parseConfig, readConfigJson, readRawConfig } from './config-json.ts';
export type { ModelConfig } from './config-json.ts';
export { configFromGguf } from './gguf-config.ts';

/**
 * The configuration of what openCheckpoint opens at `path`: config.json beside .safetensors files, the metadata of a
 * .gguf file. Errors: as openCheckpoint, parseConfig and configFromGguf.
 */
export async function readConfig(path: string): Promise<ModelConfig> {
  const { file, format } = await findWeights(path);
  if (format === 'safetensors') return readConfigJson(dirname(file));
  const gguf = await openGguf(file);
  const factors = gguf.tensors.find((tensor) => tensor.name === ROPE_FACTORS);
  return configFromGguf(gguf, factors === undefined ? null : await readGgufTensor(gguf, factors));
}
