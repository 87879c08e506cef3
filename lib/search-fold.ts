/** TransMLA's choice of a fold: by the perplexity of the whole model with that plan and no factorisation. */
import { convertedModel } from './converted-model.ts';
import { plainGemm } from './linalg/gemm.ts';
import type { Model } from './models/model.ts';
import { roRopeFolds } from './plan/ro-rope.ts';
import { openSession } from './session/session.ts';
import type { LayerStatistics } from './statistics/layer-statistics.ts';
import { readAttentionLayer } from './surgery/attention-layer.ts';
import { buildMlaLayer, type MlaLayer } from './surgery/build-mla-layer.ts';
import { jointKvSvd } from './surgery/joint-kv-svd.ts';
import { rankRopeDims } from './surgery/rank-rope-dims.ts';

export interface SearchFoldOptions {
  /** Rotating components of a layer. */
  readonly components: number;
  /** Token ids to measure on, side by side; at least two tokens each. */
  readonly windows: readonly (readonly number[])[];
  readonly threads?: number | undefined;
  /** Folds tried of all folds there are. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface FoldSearch {
  readonly fold: number;
  readonly tried: readonly { readonly fold: number; readonly perplexity: number }[];
}

/**
 * Doubles the fold of `ro-rope`, from the least possible, while the model's perplexity on `windows` falls; the last fold that
 * made it fall. Only the plan is applied: keys and values stay whole. `statistics` are those of every layer.
 * Errors: as rankRopeDims; no windows; a number of statistics that is not the model's layers.
 * Source: Meng et al. 2025 (TransMLA); transmla/partial_rope.py, freqfold auto.
 */
export async function searchFold(model: Model, statistics: readonly LayerStatistics[], options: SearchFoldOptions): Promise<FoldSearch> {
  const { components, windows, signal, onProgress } = options;
  const { layers } = model.config;
  if (statistics.length !== layers) throw new RangeError(`searchFold: statistics must be those of ${layers} layers, got ${statistics.length}`);
  if (windows.length === 0) throw new RangeError('searchFold: at least one window of tokens is needed, got none');
  const folds = roRopeFolds(model.config, components);
  const tried: { fold: number; perplexity: number }[] = [];
  for (const fold of folds) {
    signal?.throwIfAborted();
    tried.push({ fold, perplexity: await perplexityWithFold(model, statistics, fold, options) });
    onProgress?.(tried.length, folds.length);
    const [before, last] = [tried.at(-2), tried.at(-1)];
    if (before !== undefined && last !== undefined && last.perplexity >= before.perplexity) break;
  }
  const best = tried.reduce((least, one) => (one.perplexity < least.perplexity ? one : least));
  return { fold: best.fold, tried };
}

async function perplexityWithFold(model: Model, statistics: readonly LayerStatistics[], fold: number, { components, windows, threads, signal }: SearchFoldOptions): Promise<number> {
  const layers: MlaLayer[] = [];
  for (const [layer, known] of statistics.entries()) {
    signal?.throwIfAborted();
    const attention = await readAttentionLayer(model, layer);
    const plan = rankRopeDims(attention, { strategy: 'ro-rope', components, fold, statistics: known });
    const { kvHeads, headDim, hidden } = attention;
    const rank = Math.min(plan.nopeElements.flat().length, hidden) + Math.min(kvHeads * headDim, hidden);
    layers.push(buildMlaLayer(attention, plan, await jointKvSvd(attention, plan, { strategy: 'none', rank, gemm: plainGemm })));
  }
  const session = openSession(convertedModel(model, layers), { threads, signal });
  try {
    let mean = 0;
    for (const window of windows) {
      const nats = await session.nll(window);
      mean += nats.reduce((sum, x) => sum + x, 0) / nats.length / windows.length;
    }
    return Math.exp(mean);
  } finally {
    await session.close();
  }
}
