/** Healing layer after layer, for models larger than memory: one layer of source and conversion is loaded at a time. */
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { writeDirectoryAtomic, writeFileAtomic, type WriteOptions } from '../atomic-write.ts';
import { checkpointSources } from '../checkpoint/checkpoint-sources.ts';
import { tensorSources, writeSafetensors, writeShardedSafetensors } from '../checkpoint/write-safetensors.ts';
import { prune } from '../graph/compose.ts';
import { openRuntime, type Runtime } from '../graph/runtime.ts';
import type { HostTensor, Subgraph } from '../graph/subgraph.ts';
import { attentionShapes, bodyTensorNames, loadLayerWeights } from '../models/decoder-weights.ts';
import type { Model } from '../models/model.ts';
import { seededRandom } from '../random.ts';
import { embedWindows } from '../statistics/embed-windows.ts';
import { fileStores, type WindowStore } from '../statistics/window-store.ts';
import { relativeRates } from './adamw.ts';
import { checkPair, healingRates, healingRecipe } from './heal.ts';
import { learningRateFactor } from './schedule.ts';
import { createTrainer } from './trainer.ts';
import { layerSubgraph } from './training-graph.ts';

export interface HealLayersOptions {
  /** Token ids, all of one length: an update each. */
  readonly windows: readonly (readonly number[])[];
  /** How often each layer sees every window. Default 2. */
  readonly passes?: number;
  /** Peak, relative to the root mean square of each weight. Default 1e-3. */
  readonly learningRate?: number;
  /** Of the order of windows. Default 0. */
  readonly seed?: number;
  /** Files to put beside the weights, by name: the tokenizer's. */
  readonly files?: Readonly<Record<string, string>>;
  readonly threads?: number;
  /** Layers done of all layers. */
  readonly onProgress?: (done: number, total: number) => void;
  /** Stops between updates; nothing is left behind. */
  readonly signal?: AbortSignal;
  readonly writeBytes?: WriteOptions['writeBytes'];
}

export interface HealedLayer {
  readonly layer: number;
  /** `regressionLoss` over the windows before and after: squared error of the attention's output relative to the source's. */
  readonly before: number;
  readonly after: number;
}

/**
 * Heals `converted` into the directory `out`, which appears whole: the attention of each layer learns, on the hidden states
 * that the healed layers before it give, what the source's attention puts out on its own. In memory are one layer's weights,
 * gradients and one window; the hidden states of all windows lie in files beside `out` while it works.
 * Every layer comes nearer to its source; perplexity need not follow (docs/log.md), so measure it, and prefer `heal` where the model fits.
 * Errors: as `heal`; windows of several lengths.
 */
export async function healLayers(source: Model, converted: Model, out: string, options: HealLayersOptions): Promise<readonly HealedLayer[]> {
  const { windows, files = {}, signal, onProgress } = options;
  const sequenceLength = windows[0]?.length ?? 0;
  if (sequenceLength < 2 || windows.some((ids) => ids.length !== sequenceLength)) throw new RangeError(`healLayers: windows must be one or more of one length of 2 or more, got lengths ${[...new Set(windows.map((ids) => ids.length))]}`);
  await checkPair('healLayers', source, converted);
  const { layers, hidden: width } = converted.config;
  const write: WriteOptions = { signal, writeBytes: options.writeBytes };
  const report: HealedLayer[] = [];
  await writeDirectoryAtomic(out, async (directory) => {
    const work = join(directory, '.layers');
    await mkdir(work);
    const [taught, own] = [await fileStores(join(work, 'source'), sequenceLength * width), await fileStores(join(work, 'converted'), sequenceLength * width)];
    let streams = { taught: taught(0), own: own(0) };
    for (const stream of [streams.taught, streams.own]) await embedWindows(converted, windows, stream);
    const healed: string[] = [];
    for (let layer = 0; layer < layers; layer++) {
      const next = { taught: taught(layer + 1), own: own(layer + 1) };
      const targets = (await fileStores(join(work, 'targets'), sequenceLength * width))(layer);
      await teach(source, layer, options, streams.taught, { next: next.taught, attention: targets });
      const { tensors, ...losses } = await learn(converted, layer, options, streams.own, targets, next.own);
      report.push({ layer, ...losses });
      const file = join(work, `${layer}.safetensors`);
      await writeSafetensors(file, tensorSources(tensors), write);
      healed.push(file);
      for (const store of [streams.taught, streams.own, targets]) await store.discard();
      streams = next;
      onProgress?.(layer + 1, layers);
    }
    const body = bodyTensorNames(converted).map((name) => ({ name, dtype: 'float32' as const, shape: converted.checkpoint.tensors.get(name)?.shape ?? [], read: () => converted.checkpoint.read(name) }));
    const attention = await Promise.all(healed.map(checkpointSources));
    await writeShardedSafetensors(directory, [...body, ...attention.flat()], write);
    await rm(work, { recursive: true });
    for (const [name, text] of Object.entries(files)) await writeFileAtomic(join(directory, name), text, write);
    await writeFileAtomic(join(directory, 'config.json'), `${JSON.stringify({ ...converted.config.raw, mla: converted.mla }, null, 1)}\n`, write);
  }, { signal });
  return report;
}

/** Runs a graph on every window: inputs from stores, outputs into stores; the mean of its loss, where it has one. */
async function eachWindow(
  subgraph: Subgraph, { windows, threads, signal }: HealLayersOptions, width: number, from: Readonly<Record<string, WindowStore>>, into: Readonly<Record<string, WindowStore>>,
): Promise<number> {
  const runtime: Runtime = await openRuntime(prune(subgraph, [...Object.keys(into), ...('target' in from ? ['loss'] : [])], { keepInputs: false }), { threads, spinning: false });
  let loss = 0;
  try {
    for (const [at, ids] of windows.entries()) {
      signal?.throwIfAborted();
      const outputs = await runtime.run(await stateFeeds(from, at, [1, ids.length, width]));
      for (const [name, store] of Object.entries(into)) await store.write(at, floats(outputs[name], name));
      if ('target' in from) loss += (floats(outputs.loss, 'loss')[0] ?? NaN) / windows.length;
    }
    for (const store of Object.values(into)) await store.finish();
  } finally {
    await runtime.release();
  }
  return loss;
}

async function stateFeeds(from: Readonly<Record<string, WindowStore>>, at: number, shape: readonly number[]): Promise<Record<string, HostTensor>> {
  const feeds: Record<string, HostTensor> = {};
  for (const [name, store] of Object.entries(from)) feeds[name] = { dtype: 'float32', shape, data: await store.read(at) };
  return feeds;
}

function floats(tensor: HostTensor | undefined, name: string): Float32Array {
  if (tensor?.dtype !== 'float32') throw new TypeError(`healLayers: output ${name} must be float32, got ${tensor?.dtype}`);
  return tensor.data;
}

const shapeOf = ({ windows }: HealLayersOptions, trainable: readonly string[]) => ({ batch: 1, sequenceLength: windows[0]?.length ?? 0, trainable });

/** What the source's layer makes of the windows. */
async function teach(source: Model, layer: number, options: HealLayersOptions, hidden: WindowStore, into: Readonly<Record<'next' | 'attention', WindowStore>>): Promise<void> {
  const subgraph = layerSubgraph(source, await loadLayerWeights(source, layer), layer, shapeOf(options, []));
  await eachWindow(subgraph, options, source.config.hidden, { hidden }, into);
}

/** Trains one layer's attention and runs the layer. */
async function learn(
  converted: Model, layer: number, options: HealLayersOptions, hidden: WindowStore, target: WindowStore, next: WindowStore,
): Promise<{ readonly tensors: Map<string, HostTensor<'float32'>>; readonly before: number; readonly after: number }> {
  const { windows, passes = 2, learningRate = healingRates.attention, seed = 0, threads, signal } = options;
  const width = converted.config.hidden;
  const tensors = new Map<string, HostTensor<'float32'>>();
  for (const name of attentionShapes(converted, layer).keys()) tensors.set(name, await converted.checkpoint.read(name));
  const trainable = [...tensors.keys()];
  const constants = new Map([...await loadLayerWeights(converted, layer), ...tensors]);
  const before = await eachWindow(layerSubgraph(converted, constants, layer, shapeOf(options, [])), options, width, { hidden, target }, {});
  const trainer = await createTrainer({
    subgraph: layerSubgraph(converted, constants, layer, shapeOf(options, trainable)), weights: tensors, trainable,
    optimiser: { ...healingRecipe.optimiser, rateFactors: relativeRates(tensors) }, runtime: { threads, spinning: false },
  });
  try {
    const steps = passes * windows.length, random = seededRandom(seed);
    for (let step = 0, order: number[] = []; step < steps; step++) {
      signal?.throwIfAborted();
      if (order.length === 0) order = [...windows.keys()];
      const [at = 0] = order.splice(random.integer(order.length), 1);
      const feeds = await stateFeeds({ hidden, target }, at, [1, windows[at]?.length ?? 0, width]);
      await trainer.update([feeds], learningRate * learningRateFactor(step, { schedule: healingRecipe.schedule, steps, warmupSteps: Math.min(healingRecipe.warmupSteps, steps) }));
    }
  } finally {
    await trainer.close();
  }
  const after = await eachWindow(layerSubgraph(converted, constants, layer, shapeOf(options, [])), options, width, { hidden, target }, { next });
  return { tensors, before, after };
}
