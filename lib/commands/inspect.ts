import type { ModelConfig } from '../checkpoint/config.ts';
import { absorptions, type LayerAbsorption } from '../models/absorption.ts';
import { cacheLayoutOf } from '../models/decoder.ts';
import type { MlaConfig } from '../models/mla-config.ts';
import type { Model } from '../models/model.ts';
import { createCache } from '../session/cache.ts';
import { elementCount } from '../tensor.ts';
import { defineCommand, modelArgument } from './command.ts';
import { openNamedModel } from './model-path.ts';
import { pairTableOption } from './options.ts';
import { grouped, listing } from './table.ts';

/** What an `mla` block says, without its lists of frequencies. */
function mlaSummary({ version, scale, plan, factor, source, layers }: MlaConfig): Record<string, unknown> {
  return {
    version, scale, plan, factor, source,
    layers: layers.map(({ rank, frequencies, nopeWidth, latentGroups }) => ({ rank, components: frequencies.length, nopeWidth, ...(latentGroups === undefined ? {} : { latentGroups }) })),
  };
}

/** How layers decode by the cost rule (models/absorption.ts), in how many layers, and what each way reads of their weights for a token. */
function absorptionSummary(config: ModelConfig, mla: MlaConfig): Record<string, unknown> {
  const chosen = (bytesPerWeight: number): Record<string, number> => {
    const counts: Record<string, number> = {};
    for (const layer of absorptions(config, mla, bytesPerWeight)) counts[layer.chosen] = (counts[layer.chosen] ?? 0) + 1;
    return counts;
  };
  const layers = absorptions(config, mla, 1);
  const weights = (of: (layer: LayerAbsorption) => number): number => layers.reduce((sum, layer) => sum + of(layer), 0);
  return {
    float32: chosen(4), quantised: chosen(1),
    weightsPerToken: { separate: weights(({ separate }) => separate.weights), merged: layers.some(({ merged }) => merged === null) ? null : weights(({ merged }) => merged?.weights ?? 0) },
  };
}

/** What can be said of a model without reading a weight. */
export function describeModel(model: Model): Record<string, unknown> {
  const { config, checkpoint, mla } = model;
  const tensors = [...checkpoint.tensors.values()];
  const storage: Record<string, number> = {};
  for (const { storage: type, bytes } of tensors) storage[type] = (storage[type] ?? 0) + bytes;
  return {
    architecture: config.architecture,
    layers: config.layers,
    heads: config.heads,
    kvHeads: config.kvHeads,
    headDim: config.headDim,
    hidden: config.hidden,
    ffn: config.ffn,
    parameters: tensors.reduce((sum, { shape }) => sum + elementCount(shape), 0),
    cacheBytesPerToken: createCache(cacheLayoutOf(model), 1).bytesPerToken,
    vocabulary: config.vocab,
    context: config.maxPositions,
    window: config.window,
    rope: config.rope,
    ropePairsPerHead: config.headDim / 2,
    tied: config.tieEmbeddings,
    converted: mla === null ? null : mlaSummary(mla),
    absorption: mla === null ? null : absorptionSummary(config, mla),
    released: model.released,
    format: checkpoint.format,
    weightBytes: tensors.reduce((sum, { bytes }) => sum + bytes, 0),
    weightBytesByType: storage,
  };
}

function show(value: unknown): string {
  if (value === null) return '-';
  if (typeof value === 'number') return grouped(value);
  return typeof value === 'string' ? value : JSON.stringify(value);
}

/** `inspect MODEL`: headers and configuration only; no weight is read. */
export const inspect = defineCommand({
  name: 'inspect',
  summary: 'show what a model is and what its cache costs',
  argument: modelArgument,
  options: { pairTable: pairTableOption },
  async run(name, values, io) {
    const json = describeModel(await openNamedModel(name, io, values));
    return { json, text: listing(Object.entries(json).map(([key, value]) => [key, show(value)])) };
  },
});
