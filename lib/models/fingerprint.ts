import { createHash } from 'node:crypto';
import { tensorBytes } from '../tensor.ts';
import { mlaTensorName } from './mla-config.ts';
import type { Model } from './model.ts';

/**
 * Identity of a model's weights without reading them all: sha256 over config.json, the list of tensors, and the final
 * norm's numbers (which differ between any two trainings).
 */
export async function fingerprintOf({ config, checkpoint, family }: Model): Promise<string> {
  const hash = createHash('sha256').update(JSON.stringify(config.raw));
  for (const name of [...checkpoint.tensors.keys()].sort()) {
    const info = checkpoint.tensors.get(name);
    hash.update(`${name} ${info?.storage} ${info?.shape.join()}\n`);
  }
  const norm = await checkpoint.read(`${family.finalNorm}.weight`);
  return hash.update(new Uint8Array(norm.data.buffer, norm.data.byteOffset, norm.data.byteLength)).digest('hex');
}

/**
 * `fingerprintOf`, with the numbers of the last layer's row projection too: what else a fingerprint sees may be the same in two conversions of one model.
 */
export async function conversionFingerprint(model: Model): Promise<string> {
  const last = model.config.layers - 1;
  const name = model.mla === null ? model.family.layer(last).key : mlaTensorName(last, 'down');
  return createHash('sha256').update(await fingerprintOf(model)).update(tensorBytes(await model.checkpoint.read(`${name}.weight`))).digest('hex');
}
