/** Statistics on given ids, of source and of converted models: for tests that follow a conversion stage by stage. */
import { momentSums, type HostTensor } from '../../kernels/index.ts';
import { embedding } from '../../kernels/embedding.ts';
import { recorder } from '../../lib/graph/record.ts';
import { openRuntime } from '../../lib/graph/runtime.ts';
import { matrix } from '../../lib/linalg/matrix.ts';
import { recordLayers } from '../../lib/models/decoder.ts';
import { decoderCache } from '../../lib/models/decoder-cache.ts';
import { loadDecoderWeights, weightValues } from '../../lib/models/decoder-weights.ts';
import type { Model } from '../../lib/models/model.ts';
import { collectStatistics } from '../../lib/statistics/collect-statistics.ts';
import type { LayerStatistics } from '../../lib/statistics/layer-statistics.ts';
import { integers } from './readings.ts';

/** int64 [n, tokens] -> one list of ids per row. */
export function windowsOf(ids: HostTensor): number[][] {
  const [rows = 0, tokens = 0] = ids.shape;
  return Array.from({ length: rows }, (_, row) => Array.from({ length: tokens }, (_, i) => Number(ids.data[row * tokens + i])));
}

const identityOf = (windows: readonly (readonly number[])[]): LayerStatistics['identity'] => {
  const window = windows[0]?.length ?? 0;
  return { model: 'test', tokenizer: 'test', texts: [], tokens: windows.length * window, attentionTokens: windows.length * window, window };
};

/** Statistics of a source model on given windows of ids. */
export async function statisticsOn(model: Model, windows: readonly (readonly number[])[]): Promise<LayerStatistics[]> {
  const collected: LayerStatistics[] = [];
  const calibration = { identity: identityOf(windows), window: windows[0]?.length ?? 0, windows, attentionWindows: windows.length };
  for await (const layer of collectStatistics(model, calibration, { threads: 1 })) collected.push(layer);
  return collected;
}

/** E[x x^T] and E[x] of the inputs of every layer's attention in a converted model. */
export async function convertedMoments(model: Model, windows: readonly (readonly number[])[]): Promise<Pick<LayerStatistics, 'secondMoment' | 'mean'>[]> {
  const window = windows[0]?.length ?? 0;
  const constants = await loadDecoderWeights(model);
  const g = recorder('moments');
  const ids = g.input({ name: 'ids', dtype: 'int64', shape: [1, window] });
  const positions = g.input({ name: 'positions', dtype: 'int64', shape: [window] });
  const weights = weightValues(g, constants);
  const { layers } = recordLayers({
    g, model, weights, positions, positionCount: window, cache: decoderCache(g, [], null), segmentation: { join: false, masks: [g.causalMask(positions, positions, null)] },
  }, embedding(g, ids, weights.weight(model.family.embedding)), model.mla === null ? 'source' : 'expanded');
  const outputs = Object.fromEntries(layers.flatMap(({ normed }, layer) => {
    const { second, first } = momentSums(g, normed);
    return [[`second.${layer}`, second], [`first.${layer}`, first]] as const;
  }));
  const runtime = await openRuntime(g.finish(outputs), { threads: 1 });
  const { hidden } = model.config;
  const sums = layers.map(() => ({ second: new Float64Array(hidden ** 2), first: new Float64Array(hidden) }));
  for (const row of windows) {
    const found = await runtime.run({ ids: integers(row, [1, window]), positions: integers(Array.from({ length: window }, (_, i) => i)) });
    sums.forEach(({ second, first }, layer) => {
      for (const [sum, name] of [[second, 'second'], [first, 'first']] as const) {
        const data = found[`${name}.${layer}`]?.data ?? [];
        for (let i = 0; i < sum.length; i++) sum[i] = (sum[i] ?? 0) + Number(data[i]);
      }
    });
  }
  await runtime.release();
  const tokens = windows.length * window;
  return sums.map(({ second, first }) => {
    const mean = second.map((x) => x / tokens);
    return { secondMoment: matrix(hidden, hidden, mean.map((x, at) => (x + (mean[(at % hidden) * hidden + Math.floor(at / hidden)] ?? NaN)) / 2)), mean: first.map((x) => x / tokens) };
  });
}
