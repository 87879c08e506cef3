/** The two halves of a converted layer over one whole window: up to o_proj, and from it on, so that o_proj can change between. */
import { decoderLayer, linear, normalEquations, rmsNorm, rowSquares } from '../kernels/index.ts';
import { recorder } from './graph/record.ts';
import type { Constant, Subgraph } from './graph/subgraph.ts';
import { layerBody, weightValues } from './models/decoder-weights.ts';
import type { Model } from './models/model.ts';
import { BLOCK_TOKENS } from './statistics/layer-graph.ts';
import { recordMlaLayer, type MlaParts } from './surgery/build-mla-layer.ts';

/**
 * hidden [1, T, d], target [1, T, d] (the source attention's output) -> attended [1, T, h v], what o_proj reads; lost and
 * whole [1, T, 1], squared norms of target - output and of the target; gram and cross of regressing the former on the
 * attended values, rows weighted by `rowWeights` [T].
 */
export function convertedAttentionSubgraph(model: Model, mla: MlaParts, constants: ReadonlyMap<string, Constant>, rowWeights: Float32Array): Subgraph {
  const window = rowWeights.length;
  const g = recorder(`refit-attention-${mla.layer}`);
  const hidden = g.input({ name: 'hidden', dtype: 'float32', shape: [1, window, mla.hidden] });
  const target = g.input({ name: 'target', dtype: 'float32', shape: [1, window, mla.hidden] });
  const positions = g.constant({ dtype: 'int64', shape: [window], data: BigInt64Array.from({ length: window }, (_, i) => BigInt(i)) });
  const norm = weightValues(g, constants).weight(model.family.layer(mla.layer).attentionNorm);
  const x = rmsNorm(g, hidden, norm, model.config.normEps);
  const mask = g.causalMask(positions, positions, mla.window);
  const { attended, output } = recordMlaLayer(g, { ...mla, maxPositions: window }, x, positions, null, { join: false, masks: [mask], block: BLOCK_TOKENS }, 'expanded');
  const residual = g.sub(target, output);
  const weights = g.constant({ dtype: 'float32', shape: [window, 1], data: rowWeights });
  return g.finish({ attended, lost: rowSquares(g, residual), whole: rowSquares(g, target), ...normalEquations(g, attended, residual, weights) });
}

/** hidden, target, attended, o_weight [d, h v], o_bias [d] -> next [1, T, d], the layer's output; lost [1, T, 1]. */
export function convertedBodySubgraph(model: Model, { layer, hidden: width, heads, valueWidth }: MlaParts, constants: ReadonlyMap<string, Constant>, window: number): Subgraph {
  const g = recorder(`refit-body-${layer}`);
  const input = (name: string, shape: readonly number[]) => g.input({ name, dtype: 'float32', shape });
  const hidden = input('hidden', [1, window, width]);
  const target = input('target', [1, window, width]);
  const attended = input('attended', [1, window, heads * valueWidth]);
  const output = linear(g, attended, { weight: input('o_weight', [width, heads * valueWidth]), bias: input('o_bias', [width]) });
  const weights = weightValues(g, constants);
  const body = layerBody(weights, model.family.layer(layer));
  const { hidden: next } = decoderLayer(g, hidden, body, model.config.normEps, () => ({ output, rows: null }));
  return g.finish({ next, lost: rowSquares(g, g.sub(target, output)) });
}
