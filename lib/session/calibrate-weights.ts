/** A model's weights in few bits, rounded for what a text sends through them, and the pass that puts them in place. */
import { createCache } from './cache.ts';
import type { Constant, HostTensor, Subgraph } from '../graph/subgraph.ts';
import { buildDecoder, cacheLayoutOf, type DecoderForm } from '../models/decoder.ts';
import { loadDecoderWeights } from '../models/decoder-weights.ts';
import { conversionFingerprint } from '../models/fingerprint.ts';
import type { Model } from '../models/model.ts';
import type { BlockCodes } from '../passes/block-codes.ts';
import { constantMark } from '../passes/constant-weight.ts';
import { calibratedCodes, calibratedNames, type CalibratedCodesOptions } from '../passes/calibrated-codes.ts';
import type { Pass } from '../passes/pass.ts';
import { quantiseWeights } from '../passes/quantise-weights.ts';
import { QUANTISED_BYTES_PER_WEIGHT, stepWeights } from './step-weights.ts';

/** Codes of a model's matrices; `saveWeightCodes` keeps them in a file. */
export interface WeightCodes {
  /** Fingerprint of the model that they are of. */
  readonly model: string;
  /** By the weight's name in the checkpoint. */
  readonly codes: ReadonlyMap<string, BlockCodes>;
}

const int64 = (values: readonly number[], shape: readonly number[]): HostTensor => ({ dtype: 'int64', shape, data: BigInt64Array.from(values, BigInt) });

/** A graph that a session may run, by the weights it holds. */
interface Reading {
  readonly form: DecoderForm;
  readonly constants: ReadonlyMap<string, Constant>;
  /** Contexts for which it is so. */
  readonly positions: number;
}

/**
 * What a model's graphs hold in float32 caches: prompts its own weights, a converted model's steps merged ones, which are others where the
 * rows of a short context lie in one array. `shortest`: a short context's tokens.
 */
async function* readingsOf(model: Model, shortest: number): AsyncGenerator<Reading> {
  const loaded = await loadDecoderWeights(model);
  yield { form: model.mla === null ? 'source' : 'expanded', constants: loaded, positions: shortest };
  for (const positions of [shortest, model.config.maxPositions]) {
    const constants = await stepWeights(model, loaded, { cache: 'f32', positions, bytesPerWeight: QUANTISED_BYTES_PER_WEIGHT, absorption: 'auto' });
    if (constants !== loaded) yield { form: 'absorbed', constants, positions };
  }
}

/**
 * Rounds a model's matrices with rounding calibrated on text: 4 bits in blocks of 32 by default, all but an embedding and the
 * head tied to it; of a converted model also what a step holds in their place, up-projections merged into queries and output.
 * `windows`: token ids, each window from an empty cache; some 6,000 tokens from all over a text are enough.
 * SmolLM2-135M at 31.25 % of the cache: perplexity +4.6 %, of steps +5.2 %, where rounding to nearest costs 34 % (docs/log.md).
 * Errors: a window that is empty or longer than the context; those of calibratedCodes.
 * Source: Frantar et al. 2022 (GPTQ).
 */
export async function calibrateWeights(model: Model, windows: readonly (readonly number[])[], options: CalibratedCodesOptions = {}): Promise<WeightCodes> {
  const longest = Math.max(0, ...windows.map(({ length }) => length));
  if (windows.some(({ length }) => length === 0) || longest > model.config.maxPositions) {
    throw new RangeError(`calibrateWeights: windows must have 1..${model.config.maxPositions} tokens, got ${windows.map(({ length }) => length).join(', ')}`);
  }
  const { onProgress } = options, wanted = new Set<string>(), codes = new Map<string, BlockCodes>();
  const graphOf = ({ form, constants, positions }: Reading): Subgraph => buildDecoder(model, constants, { form, join: true, output: 'last', positions });
  // Counted beforehand, so that progress knows its end: weights are merged twice for it rather than kept, twice over, beside the moments.
  for await (const reading of readingsOf(model, longest)) for (const name of calibratedNames(graphOf(reading), options)) wanted.add(name);
  for await (const reading of readingsOf(model, longest)) {
    const had = codes.size, empty = createCache(cacheLayoutOf(model, 'f32', reading.positions), 1).feeds();
    const made = await calibratedCodes(graphOf(reading), windows.map((ids) => ({
      ids: int64(ids, [1, ids.length]), positions: int64([...ids.keys()], [ids.length]), past_positions: int64([], [0]), ...empty,
    })), { ...options, select: ({ name }) => wanted.has(name) && !codes.has(name), onProgress: (done) => onProgress?.(had + done, wanted.size) });
    for (const [name, own] of made) codes.set(name, own);
  }
  return { model: await conversionFingerprint(model), codes };
}

/**
 * The pass that holds a model's weights as `codes` say, for SessionOptions.passes; every other matrix becomes 8 bits in
 * blocks of 32: the embedding, and what holds other numbers when the pass runs (a latent that a cache format rotates).
 * Errors: codes of another model.
 */
export async function weightCodesPass(model: Model, { model: of, codes }: WeightCodes): Promise<Pass> {
  const fingerprint = await conversionFingerprint(model);
  if (of !== fingerprint) throw new TypeError(`weightCodesPass: codes must be those of ${model.path}, got another model's`);
  const marks = new Map<string, string>();
  for await (const { constants } of readingsOf(model, 1)) {
    for (const name of codes.keys()) {
      const constant = constants.get(name);
      if (constant !== undefined && !marks.has(name)) marks.set(name, constantMark(constant));
    }
  }
  return (graph) => quantiseWeights(graph, {
    bits: 8, blockSize: 32, codesOf: ({ name }, constant) => (marks.get(name) === constantMark(constant) ? codes.get(name) ?? null : null),
  });
}
