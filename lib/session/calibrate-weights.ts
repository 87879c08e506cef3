import { createCache } from './cache.ts';
import type { HostTensor } from '../graph/subgraph.ts';
import { buildDecoder, cacheLayoutOf } from '../models/decoder.ts';
import { loadDecoderWeights } from '../models/decoder-weights.ts';
import type { Model } from '../models/model.ts';
import { constantMark } from '../passes/constant-weight.ts';
import { calibratedCodes, type CalibratedCodesOptions } from '../passes/calibrated-codes.ts';
import type { Pass } from '../passes/pass.ts';
import { quantiseWeights } from '../passes/quantise-weights.ts';

const int64 = (values: readonly number[], shape: readonly number[]): HostTensor => ({ dtype: 'int64', shape, data: BigInt64Array.from(values, BigInt) });

/**
 * A pass that quantises a model's weights with rounding calibrated on text, for SessionOptions.passes: 4 bits by
 * default, an embedding (and the head tied to it) and what is not calibrated 8 bits. `windows`: token ids, each window
 * from an empty cache; some 6,000 tokens in all are enough. Matrices that hold other numbers when the pass
 * runs (a latent that a cache format rotates) are among those that get 8 bits.
 * Errors: a window that is empty or longer than the context; those of calibratedCodes.
 */
export async function calibrateWeights(model: Model, windows: readonly (readonly number[])[], options: CalibratedCodesOptions = {}): Promise<Pass> {
  const longest = Math.max(0, ...windows.map(({ length }) => length));
  if (windows.some(({ length }) => length === 0) || longest > model.config.maxPositions) {
    throw new RangeError(`calibrateWeights: windows must have 1..${model.config.maxPositions} tokens, got ${windows.map(({ length }) => length).join(', ')}`);
  }
  const constants = await loadDecoderWeights(model);
  const form = model.mla === null ? 'source' : 'expanded';
  const subgraph = buildDecoder(model, constants, { form, join: true, output: 'last', positions: longest });
  const empty = createCache(cacheLayoutOf(model, 'f32', longest), 1).feeds();
  const codes = await calibratedCodes(subgraph, windows.map((ids) => ({
    ids: int64(ids, [1, ids.length]), positions: int64([...ids.keys()], [ids.length]), past_positions: int64([], [0]), ...empty,
  })), options);
  const marks = new Map([...codes.keys()].map((name) => [name, constantMark(constants.get(name)!)]));
  return (graph) => quantiseWeights(graph, {
    bits: 8, codesOf: ({ name }, constant) => (marks.get(name) === constantMark(constant) ? codes.get(name) ?? null : null),
  });
}
