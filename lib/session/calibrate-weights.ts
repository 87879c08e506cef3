/** A model's weights in few bits, rounded for what a text sends through them, and the pass that puts them in place. */
import { createCache } from './cache.ts';
import type { HostTensor } from '../graph/subgraph.ts';
import { buildDecoder, cacheLayoutOf } from '../models/decoder.ts';
import { loadDecoderWeights } from '../models/decoder-weights.ts';
import { conversionFingerprint } from '../models/fingerprint.ts';
import type { Model } from '../models/model.ts';
import type { BlockCodes } from '../passes/block-codes.ts';
import { constantMark } from '../passes/constant-weight.ts';
import { calibratedCodes, type CalibratedCodesOptions } from '../passes/calibrated-codes.ts';
import type { Pass } from '../passes/pass.ts';
import { quantiseWeights } from '../passes/quantise-weights.ts';

/** Codes of a model's matrices; `saveWeightCodes` keeps them in a file. */
export interface WeightCodes {
  /** Fingerprint of the model that they are of. */
  readonly model: string;
  /** By the weight's name in the checkpoint. */
  readonly codes: ReadonlyMap<string, BlockCodes>;
}

const int64 = (values: readonly number[], shape: readonly number[]): HostTensor => ({ dtype: 'int64', shape, data: BigInt64Array.from(values, BigInt) });

/**
 * Rounds a model's matrices with rounding calibrated on text: 4 bits in blocks of 32 by default, all but an embedding and the
 * head tied to it. `windows`: token ids, each window from an empty cache; some 6,000 tokens from all over a text are enough.
 * SmolLM2-135M at 31.25 % of the cache: perplexity +4.6 %, where rounding to nearest costs 34 % (docs/log.md).
 * Errors: a window that is empty or longer than the context; those of calibratedCodes.
 * Source: Frantar et al. 2022 (GPTQ).
 */
export async function calibrateWeights(model: Model, windows: readonly (readonly number[])[], options: CalibratedCodesOptions = {}): Promise<WeightCodes> {
  const longest = Math.max(0, ...windows.map(({ length }) => length));
  if (windows.some(({ length }) => length === 0) || longest > model.config.maxPositions) {
    throw new RangeError(`calibrateWeights: windows must have 1..${model.config.maxPositions} tokens, got ${windows.map(({ length }) => length).join(', ')}`);
  }
  const form = model.mla === null ? 'source' : 'expanded';
  const subgraph = buildDecoder(model, await loadDecoderWeights(model), { form, join: true, output: 'last', positions: longest });
  const empty = createCache(cacheLayoutOf(model, 'f32', longest), 1).feeds();
  const codes = await calibratedCodes(subgraph, windows.map((ids) => ({
    ids: int64(ids, [1, ids.length]), positions: int64([...ids.keys()], [ids.length]), past_positions: int64([], [0]), ...empty,
  })), options);
  return { model: await conversionFingerprint(model), codes };
}

/**
 * The pass that holds a model's weights as `codes` say, for SessionOptions.passes; every other matrix becomes 8 bits in
 * blocks of 32: the embedding, and what holds other numbers when the pass runs (up-projections merged into a step's
 * projections, a latent that a cache format rotates). Errors: codes of another model.
 */
export async function weightCodesPass(model: Model, { model: of, codes }: WeightCodes): Promise<Pass> {
  const fingerprint = await conversionFingerprint(model);
  if (of !== fingerprint) throw new TypeError(`weightCodesPass: codes must be those of ${model.path}, got another model's`);
  const constants = await loadDecoderWeights(model);
  const marks = new Map([...codes.keys()].flatMap((name) => {
    const constant = constants.get(name);
    return constant === undefined ? [] : [[name, constantMark(constant)] as const];
  }));
  return (graph) => quantiseWeights(graph, {
    bits: 8, blockSize: 32, codesOf: ({ name }, constant) => (marks.get(name) === constantMark(constant) ? codes.get(name) ?? null : null),
  });
}
