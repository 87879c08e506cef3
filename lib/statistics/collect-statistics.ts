/** Statistics of every layer, streaming: one layer's weights and one window's activations are in memory at a time. */
import { join } from 'node:path';
import type { WriteOptions } from '../atomic-write.ts';
import { freeMemory } from '../free-memory.ts';
import { openForWindows } from '../graph/open-for-windows.ts';
import type { Runtime } from '../graph/runtime.ts';
import type { HostTensor } from '../graph/subgraph.ts';
import { matrix } from '../linalg/matrix.ts';
import { loadLayerWeights } from '../models/decoder-weights.ts';
import type { Model } from '../models/model.ts';
import type { Calibration } from './calibration.ts';
import { embedWindows } from './embed-windows.ts';
import { sourceLayerSubgraph, type LayerOutput } from './layer-graph.ts';
import type { LayerStatistics } from './layer-statistics.ts';
import { createStatistics, hasLayer, hasStatistics, openStatistics, saveLayerStatistics } from './saved-statistics.ts';
import { fileStores, memoryStore, type StoreMaker, type WindowStore } from './window-store.ts';

export interface CollectOptions {
  /** Directory to save in: what is there already and fits is used, a stopped collection goes on. Default: nothing is saved. */
  readonly directory?: string;
  /** Directory for the hidden states of all windows where they take more than 512 MB. Default `directory`, else memory. */
  readonly temporaryDirectory?: string;
  readonly threads?: number;
  /** Takes the source attention's output [1, T, d] of the first `windows` windows of every layer that is run: for a refit. */
  readonly attention?: { readonly windows: number; readonly take: (layer: number, window: number, output: Float32Array) => Promise<void> };
  /** Windows done of all windows of all layers. */
  readonly onProgress?: (done: number, total: number) => void;
  /** Stops between windows. */
  readonly signal?: AbortSignal;
  readonly writeBytes?: WriteOptions['writeBytes'];
}

const MEMORY_BYTES = 512 * 2 ** 20;

/**
 * Yields the statistics of layer 0, 1, ... as they are known; the next layer is computed when asked for.
 * Sums over a window are float32 products, sums over windows float64. Errors: `directory` holds statistics of another
 * model, tokenizer, text or window; a converted model; the signal's reason.
 */
export async function* collectStatistics(model: Model, calibration: Calibration, options: CollectOptions = {}): AsyncGenerator<LayerStatistics, void, undefined> {
  if (model.mla !== null) throw new TypeError(`collectStatistics: model must be a source model, got ${model.path}, which is converted already`);
  const { directory, signal, onProgress } = options;
  const { layers } = model.config;
  const write: WriteOptions = { signal, writeBytes: options.writeBytes };
  let first = 0;
  if (directory !== undefined) {
    if (!hasStatistics(directory)) await createStatistics(directory, calibration.identity, layers, write);
    const saved = await openStatistics(directory, calibration.identity);
    for (; first < layers && hasLayer(directory, first); first++) yield await saved.layer(first);
    if (first === layers) return;
  }
  const stores = await storesFor(model, calibration, options);
  let input = stores(first);
  if (first === 0) await embedWindows(model, calibration.windows, input);
  let done = first * calibration.windows.length;
  for (let layer = first; layer < layers; layer++) {
    const output = layer + 1 < layers ? stores(layer + 1) : null;
    const boundary = input;
    const collected = async (): Promise<LayerStatistics> => {
      const statistics = await layerStatistics(model, calibration, layer, boundary, output, options, () => onProgress?.(++done, layers * calibration.windows.length));
      if (directory !== undefined) await saveLayerStatistics(directory, statistics, write);
      await boundary.discard();
      return statistics;
    };
    if (output !== null) input = output;
    // Nothing here keeps what is yielded: it may be gone before the next layer is asked for.
    yield await collected();
  }
}

async function storesFor(model: Model, { windows, window }: Calibration, { directory, temporaryDirectory = directory }: CollectOptions): Promise<StoreMaker> {
  const elements = window * model.config.hidden;
  const large = windows.length * elements * Float32Array.BYTES_PER_ELEMENT > MEMORY_BYTES;
  // A collection that can be gone on with keeps its hidden states beside what it has saved.
  if (directory !== undefined) return fileStores(join(directory, 'hidden'), elements);
  return large && temporaryDirectory !== undefined ? fileStores(temporaryDirectory, elements) : memoryStore;
}

type Sums = Readonly<Record<Exclude<LayerOutput, 'next' | 'attention'>, Float64Array>>;

async function layerStatistics(
  model: Model, calibration: Calibration, layer: number, input: WindowStore, output: WindowStore | null, { threads, signal, attention }: CollectOptions, step: () => void,
): Promise<LayerStatistics> {
  const { hidden, heads, kvHeads, headDim } = model.config;
  const { window, windows, attentionWindows, identity } = calibration;
  const constants = await loadLayerWeights(model, layer);
  const sums: Sums = {
    second: new Float64Array(hidden * hidden), first: new Float64Array(hidden),
    queryNorms: new Float64Array((heads * headDim) / 2), keyNorms: new Float64Array((kvHeads * headDim) / 2),
    queryMoments: new Float64Array(heads * headDim ** 2), keyMoment: new Float64Array((kvHeads * headDim) ** 2),
    attended: new Float64Array(heads * hidden), distances: new Float64Array(heads * window), sensitivity: new Float64Array(heads),
  };
  const pass = async (outputs: readonly LayerOutput[], count: number, use: (runtime: Runtime, hidden: HostTensor, at: number) => Promise<void>): Promise<void> => {
    const runtime = await openForWindows(sourceLayerSubgraph(model, constants, layer, window, outputs), { threads });
    try {
      for (let at = 0; at < count; at++) {
        signal?.throwIfAborted();
        await use(runtime, { dtype: 'float32', shape: [1, window, hidden], data: await input.read(at) }, at);
      }
    } finally {
      await runtime.release();
    }
  };
  await pass(['attended', 'distances', 'sensitivity'], attentionWindows, async (runtime, feed) => {
    addTo(sums, await runtime.run({ hidden: feed }));
  });
  const wanted: readonly LayerOutput[] = [...(output === null ? [] : ['next'] as const), 'second', 'first', 'queryNorms', 'keyNorms', 'queryMoments', 'keyMoment'];
  await pass(attention === undefined ? wanted : [...wanted, 'attention'], windows.length, async (runtime, feed, at) => {
    const tapped = attention !== undefined && at < attention.windows;
    const { next, attention: seen, ...parts } = await runtime.run({ hidden: feed }, tapped ? [...wanted, 'attention'] : wanted);
    addTo(sums, parts);
    if (tapped && seen?.dtype === 'float32') await attention.take(layer, at, seen.data);
    if (output !== null && next?.dtype === 'float32') await output.write(at, next.data);
    step();
  });
  await output?.finish();
  return meansOf(layer, sums, { identity, hidden, heads, kvHeads, headDim, window, windows: windows.length, attentionWindows });
}

function addTo(sums: Sums, parts: Readonly<Record<string, HostTensor>>): void {
  for (const [name, sum] of Object.entries(sums)) {
    const part = parts[name];
    if (part === undefined) continue;
    if (part.dtype !== 'float32' || part.data.length !== sum.length) throw new TypeError(`collectStatistics: ${name} must be ${sum.length} float32 numbers, got ${part.dtype} [${part.shape}]`);
    const { data } = part;
    for (let i = 0; i < sum.length; i++) sum[i]! += data[i]!;
    freeMemory([data]);
  }
}

interface Counts {
  readonly identity: LayerStatistics['identity'];
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly window: number;
  readonly windows: number;
  readonly attentionWindows: number;
}

function meansOf(layer: number, sums: Sums, { identity, hidden, heads, kvHeads, headDim, window, windows, attentionWindows }: Counts): LayerStatistics {
  const tokens = windows * window;
  const attentionTokens = attentionWindows * window;
  /** In place: the moments of a large layer are not kept twice. */
  const over = (sum: Float64Array, count: number): Float64Array => {
    for (let i = 0; i < sum.length; i++) sum[i]! /= count;
    return sum;
  };
  return {
    layer, identity,
    secondMoment: matrix(hidden, hidden, symmetric(over(sums.second, tokens), hidden)), mean: over(sums.first, tokens),
    queryPairNorms: over(sums.queryNorms, tokens), keyPairNorms: over(sums.keyNorms, tokens),
    queryMoments: matrix(heads * headDim, headDim, over(sums.queryMoments, tokens)), keyMoment: matrix(kvHeads * headDim, kvHeads * headDim, symmetric(over(sums.keyMoment, tokens), kvHeads * headDim)),
    distances: matrix(heads, window, distancesOf(sums.distances, heads, window)),
    // Rounding may leave a head that attends to one token only a little below zero.
    outputSensitivity: over(sums.sensitivity, attentionTokens).map((x) => Math.max(x, 0)), meanAttended: matrix(heads, hidden, over(sums.attended, attentionTokens)),
  };
}

/** Float32 products are symmetric up to rounding; factorisations want it exactly. */
function symmetric(a: Float64Array, n: number): Float64Array {
  for (let r = 0; r < n; r++) {
    for (let c = 0; c < r; c++) a[r * n + c] = a[c * n + r] = (a[r * n + c]! + a[c * n + r]!) / 2;
  }
  return a;
}

/** Columns in the order of kernels' distanceSums -> shares by distance 0, 1, ...; the largest distance never occurs there. */
function distancesOf(sums: Float64Array, heads: number, window: number): Float64Array {
  const shares = new Float64Array(heads * window);
  for (let head = 0; head < heads; head++) {
    const row = sums.subarray(head * window, (head + 1) * window);
    const total = row.reduce((a, b) => a + b, 0);
    for (let distance = 0; distance < window; distance++) shares[head * window + distance] = (row[(window - distance) % window] ?? 0) / total;
  }
  return shares;
}
