/** Healing: a converted model learns from its source what the conversion has lost, with the recipe that did best. */
import type { RuntimeOptions } from '../graph/runtime.ts';
import { fingerprintOf } from '../models/fingerprint.ts';
import type { Model } from '../models/model.ts';
import { textLoss } from './evaluation.ts';
import type { HealingText } from './healing-text.ts';
import type { TrainProgress, TrainResult } from './settings.ts';
import { train } from './train.ts';
import type { TrainableName } from './trainable.ts';

/**
 * What lowered perplexity most for the time it takes on two cores (docs/log.md): the source's next-token distribution at
 * every position is the target, over a sample of a large vocabulary; every weight learns, each at a rate relative to its own size.
 */
export const healingRecipe = {
  loss: 'teacher-sampled', train: 'all', relativeRates: true, schedule: 'linear', warmupSteps: 8,
  optimiser: { betas: [0.9, 0.98], weightDecay: 0, clipNorm: null },
} as const;

/** Peak rates by what learns: where all weights do, half of what attention alone bears. */
export const healingRates: Readonly<Record<TrainableName, number>> = { all: 5e-4, layers: 5e-4, attention: 1e-3, 'attention-and-norms': 1e-3, factors: 1e-3 };

/** Updates between saves: a killed run loses at most so many. */
const SAVE_EVERY = 128;
/** Tokens of an update: twice as many updates as with 512 do better for the same tokens, in less time, at windows of 4,096 tokens too (docs/log.md). */
const SEQUENCE_LENGTH = 256;
/** Sequences of the text kept aside that are measured, at most. */
const EVALUATED = 8;
/** What stands in a model's `mla.source` where its source is known. */
const FINGERPRINT = /^[0-9a-f]{64}$/;

export interface HealOptions {
  /** Tokens to learn from; rounded up to whole sequences. */
  readonly tokens: number;
  /** What it learns from, as often as it takes, and what is measured on before and after; see `healingText`. */
  readonly text: HealingText;
  /** Default 256, or the context where that is shorter. */
  readonly sequenceLength?: number | undefined;
  /** Which weights learn. Default all, which healed most for its time (docs/log.md); 'attention-and-norms' takes seven tenths of the time for the same tokens, and gradients and moments of a fifth of a small model's weights. */
  readonly train?: TrainableName | undefined;
  /** Peak, relative to the root mean square of each weight. Default 5e-4 where all weights learn, otherwise 1e-3. */
  readonly learningRate?: number | undefined;
  /** Of the order of sequences. Default 0. */
  readonly seed?: number | undefined;
  /** Go on from the last save in the directory, if there is one. Default false. */
  readonly resume?: boolean | undefined;
  /** Files to put beside the weights, by name: the tokenizer's, a report. Default none. */
  readonly files?: ((healing: Healing) => Promise<Readonly<Record<string, string>>>) | undefined;
  readonly runtime?: RuntimeOptions | undefined;
  readonly onUpdate?: ((progress: TrainProgress) => void) | undefined;
  /** Stops between updates, after a save. */
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds; default performance.now. */
  readonly clock?: (() => number) | undefined;
}

/** What healing did, as reports say it. */
export interface Healing {
  readonly tokens: number;
  readonly steps: number;
  readonly sequenceLength: number;
  /** What was made small, and which weights learnt. */
  readonly loss: string;
  readonly train: string;
  readonly learningRate: number;
  readonly seed: number;
  readonly texts: readonly string[];
  /** KL to the source in nats at the end: moving mean. */
  readonly finalLoss: number;
  /** Perplexity of the text kept aside, in windows of `sequenceLength`; null where there is none. */
  readonly perplexity: { readonly source: number; readonly before: number; readonly after: number } | null;
  /** Of this call; a run that went on from a save does not count what came before it. */
  readonly seconds: number;
}

/** Errors: a model that is not converted, or was converted from another source. `caller` begins the message. */
export async function checkPair(caller: string, source: Model, converted: Model): Promise<void> {
  if (converted.mla === null) throw new TypeError(`${caller}: the model must be a converted one, got ${converted.path}`);
  const { fingerprint, name } = converted.mla.source;
  if (FINGERPRINT.test(fingerprint) && fingerprint !== await fingerprintOf(source)) throw new Error(`${caller}: the source must be ${name}, which ${converted.path} was converted from, got ${source.path}`);
}

/**
 * Heals `converted` with its `source` as teacher into the directory `out`: a model directory as `train` makes it, still
 * latent attention with the same cache, expanded and absorbed forms equal as before. With `resume` a stopped or killed
 * run goes on, and ends with the weights of a run that was not.
 * Errors: a model that is not converted, one that was converted from another source, and all of `train`.
 */
export async function heal(source: Model, converted: Model, out: string, options: HealOptions): Promise<Healing> {
  const { tokens, text, sequenceLength = Math.min(SEQUENCE_LENGTH, source.config.maxPositions), train: which = healingRecipe.train, learningRate = healingRates[which], seed = 0, resume = false, runtime = {}, files, onUpdate, signal, clock } = options;
  await checkPair('heal', source, converted);
  if (!Number.isInteger(tokens) || tokens < 1) throw new RangeError(`heal: tokens must be a whole number of 1 or more, got ${tokens}`);
  const steps = Math.ceil(tokens / sequenceLength);
  const aside = text.aside.length > sequenceLength ? text.aside : null;
  const told = async (result: TrainResult): Promise<Healing> => ({
    tokens: result.tokens, steps, sequenceLength, loss: healingRecipe.loss, train: which, learningRate, seed,
    texts: text.data.map((one) => one.source.name), finalLoss: result.loss, seconds: result.seconds,
    perplexity: aside === null || result.evaluation === null ? null
      : { source: Math.exp(await textLoss(source, aside, { sequenceLength, sequences: EVALUATED, runtime })), before: Math.exp(result.evaluation.before), after: Math.exp(result.evaluation.after) },
  });
  let healing: Healing | null = null;
  await train(converted, out, {
    ...healingRecipe, teacher: source, data: text.data, train: which, steps, sequenceLength, learningRate, seed, resume, runtime, evaluation: aside, evaluationSequences: EVALUATED,
    warmupSteps: Math.min(healingRecipe.warmupSteps, steps), saveEvery: Math.min(SAVE_EVERY, steps),
    files: async (result) => {
      healing = await told(result);
      return (await files?.(healing)) ?? {};
    },
    ...(onUpdate === undefined ? {} : { onUpdate }), ...(signal === undefined ? {} : { signal }), ...(clock === undefined ? {} : { clock }),
  });
  if (healing === null) throw new Error('heal: the report must have been made');
  return healing;
}
