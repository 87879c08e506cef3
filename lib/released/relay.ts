/** A released checkpoint written as one directory of our own layout, which needs no side table. */
import { basename, join } from 'node:path';
import { refuseOccupied, writeDirectoryAtomic, writeFileAtomic, type WriteOptions } from '../atomic-write.ts';
import { writeSafetensors, type TensorSource } from '../checkpoint/write-safetensors.ts';
import { bodyTensorNames, mlaAttentionShapes } from '../models/decoder-weights.ts';
import { rowElements } from '../models/mla-config.ts';
import type { Model } from '../models/model.ts';

export interface RelayOptions {
  /** Files to put beside the weights: the tokenizer's, by name. */
  readonly files?: Readonly<Record<string, string>>;
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

export interface RelayReport {
  readonly source: string;
  /** Whose format it was. */
  readonly released: string;
  readonly cacheElementsPerToken: { readonly before: number; readonly after: number };
  /** 1 - after / before; before is the cache of ordinary attention with the same heads. */
  readonly reduction: number;
  readonly layers: readonly { readonly layer: number; readonly rank: number; readonly components: number }[];
}

/**
 * Writes a released model into `out` without changing its function: rows in another order, latents behind each other, a
 * value bias in the output's. config.json (with the `mla` block), model.safetensors in float32, `files`, conversion.json.
 * One tensor is in memory at a time; the directory appears only when it is whole.
 * Errors: a model in our layout already, a source model, an occupied `out`, a failed write.
 */
export async function relayModel(model: Model, out: string, { files = {}, onProgress, signal }: RelayOptions = {}): Promise<RelayReport> {
  const { mla, released, config, checkpoint } = model;
  if (mla === null || released === null) throw new TypeError(`relayModel: MODEL must be a checkpoint of another format, got ${model.path}, which is ${mla === null ? 'a source model' : 'in our layout already'}`);
  await refuseOccupied(out);
  const names = [...bodyTensorNames(model), ...mla.layers.flatMap((layer, i) => [...mlaAttentionShapes(model, i, layer).keys()])];
  let done = 0;
  const sources = names.map((name): TensorSource => ({
    name, dtype: 'float32', shape: checkpoint.tensors.get(name)?.shape ?? [],
    async read() {
      const tensor = await checkpoint.read(name);
      onProgress?.(++done, names.length);
      return tensor;
    },
  }));
  const before = 2 * config.kvHeads * config.headDim * config.layers;
  const after = mla.layers.reduce((sum, layer) => sum + rowElements(layer), 0);
  const report: RelayReport = {
    source: basename(model.path), released, cacheElementsPerToken: { before, after }, reduction: 1 - after / before,
    layers: mla.layers.map(({ rank, frequencies }, layer) => ({ layer, rank, components: frequencies.length })),
  };
  const write: WriteOptions = { signal };
  await writeDirectoryAtomic(out, async (directory) => {
    await writeSafetensors(join(directory, 'model.safetensors'), sources, write);
    for (const [name, text] of Object.entries(files)) await writeFileAtomic(join(directory, name), text, write);
    await writeFileAtomic(join(directory, 'conversion.json'), `${JSON.stringify(report, null, 1)}\n`, write);
    await writeFileAtomic(join(directory, 'config.json'), `${JSON.stringify(config.raw, null, 1)}\n`, write);
  }, { signal });
  return report;
}
