/** What a training run is told, with defaults, and the recipe that a save must agree with. */
import type { RuntimeOptions } from '../graph/runtime.ts';
import { fingerprintOf } from '../models/fingerprint.ts';
import type { Model } from '../models/model.ts';
import type { AdamWOptions } from './adamw.ts';
import { losses, type LossName } from './losses.ts';
import type { Recipe } from './save.ts';
import type { ScheduleName } from './schedule.ts';
import type { WeightedSource } from './sequences.ts';
import type { TrainableName } from './trainable.ts';

export interface TrainOptions {
  readonly data: readonly WeightedSource[];
  /** Updates. */
  readonly steps: number;
  readonly sequenceLength: number;
  /** Sequences per run of the graph. Default 1. */
  readonly batch?: number;
  /** Runs of the graph per update. Default 1. */
  readonly accumulate?: number;
  /** Default 'next-token', or 'teacher' where there is one. */
  readonly loss?: LossName;
  readonly teacher?: Model | null;
  /** Default 'all'; 'attention' for losses that only attention takes part in. */
  readonly train?: TrainableName;
  /** Peak. Default 3e-4, relative 1e-3. */
  readonly learningRate?: number;
  /** Take the learning rate relative to the root mean square of each weight at the start. Default false. */
  readonly relativeRates?: boolean;
  /** Default 'warmup-stable-decay'. */
  readonly schedule?: ScheduleName;
  /** Default a fiftieth of the steps, at least 1. */
  readonly warmupSteps?: number;
  readonly optimiser?: Omit<AdamWOptions, 'rateFactors'>;
  /** Tokens of a text kept aside: its next-token loss is measured at the start, at every save and at the end. */
  readonly evaluation?: WeightedSource['source'] | null;
  /** Sequences of it at most. Default 8. */
  readonly evaluationSequences?: number;
  /** Updates between saves. Default: only at the end. */
  readonly saveEvery?: number;
  /** Go on from the last save in the directory, if there is one. */
  readonly resume?: boolean;
  /** Keep only hidden states and compute layers again on the way back: a third more work, much less memory. Default false. */
  readonly recompute?: boolean;
  /** Default 0. */
  readonly seed?: number;
  /** Idle threads do not spin unless asked to: the operators of a training step are long, and waiting costs others a processor. */
  readonly runtime?: RuntimeOptions;
  /** Files to put beside the weights, by name: the tokenizer's, or a report of the run. */
  readonly files?: TrainedFiles;
  readonly onUpdate?: (progress: TrainProgress) => void;
  readonly signal?: AbortSignal;
  /** Milliseconds; default performance.now. */
  readonly clock?: () => number;
}

export interface TrainResult {
  readonly steps: number;
  readonly tokens: number;
  /** Moving mean at the end. */
  readonly loss: number;
  /** Mean nats of the evaluation text before and after; null without one. */
  readonly evaluation: { readonly before: number; readonly after: number } | null;
  readonly tokensPerSecond: number;
  readonly seconds: number;
}

export type TrainedFiles = Readonly<Record<string, string>> | ((result: TrainResult) => Promise<Readonly<Record<string, string>>>);

export interface TrainProgress {
  readonly step: number;
  readonly steps: number;
  readonly loss: number;
  readonly learningRate: number;
  readonly gradientNorm: number;
  /** Over this process's updates, evaluations and saves included. */
  readonly tokensPerSecond: number;
  readonly secondsLeft: number;
}

/** Every option with its value. */
export interface Settings extends Required<Omit<TrainOptions, 'resume' | 'onUpdate' | 'signal'>>, Pick<TrainOptions, 'onUpdate' | 'signal'> {
  readonly teacher: Model | null;
  readonly evaluation: WeightedSource['source'] | null;
  readonly tokensPerStep: number;
}

/** Errors: a number that is none of the kind asked for, a loss without its teacher. */
export function withDefaults(options: TrainOptions): Settings {
  const { steps, sequenceLength, batch = 1, accumulate = 1, teacher = null, relativeRates: relative = false, seed = 0 } = options;
  for (const [name, value] of Object.entries({ steps, sequenceLength, batch, accumulate, saveEvery: options.saveEvery ?? 1, evaluationSequences: options.evaluationSequences ?? 1 })) {
    if (!Number.isInteger(value) || value < 1) throw new RangeError(`train: ${name} must be a whole number of 1 or more, got ${value}`);
  }
  const loss: LossName = options.loss ?? (teacher === null ? 'next-token' : 'teacher');
  if (losses[loss].needsTeacher && teacher === null) throw new TypeError(`train: loss ${loss} needs a teacher, got none`);
  const learningRate = options.learningRate ?? (relative ? 1e-3 : 3e-4);
  if (!(learningRate > 0 && Number.isFinite(learningRate))) throw new RangeError(`train: learningRate must be positive, got ${learningRate}`);
  return {
    data: options.data, steps, sequenceLength, batch, accumulate, teacher, loss, seed, learningRate, relativeRates: relative, tokensPerStep: batch * accumulate * sequenceLength,
    train: options.train ?? losses[loss].train, schedule: options.schedule ?? 'warmup-stable-decay' as const, warmupSteps: options.warmupSteps ?? Math.max(1, Math.round(steps / 50)),
    optimiser: options.optimiser ?? {}, evaluation: options.evaluation ?? null, evaluationSequences: options.evaluationSequences ?? 8, saveEvery: options.saveEvery ?? steps,
    recompute: options.recompute ?? false, runtime: { spinning: false, ...options.runtime }, files: options.files ?? {}, onUpdate: options.onUpdate, signal: options.signal, clock: options.clock ?? (() => performance.now()),
  };
}

/** Everything that decides the weights. */
export async function recipeOf(model: Model, settings: Settings): Promise<Recipe> {
  const { betas = [0.9, 0.95], epsilon = 1e-8, weightDecay = 0.1, clipNorm = 1 } = settings.optimiser;
  const { steps, sequenceLength, batch, accumulate, loss, train: which, learningRate, relativeRates: relative, schedule, warmupSteps, seed, recompute } = settings;
  return {
    model: await fingerprintOf(model), teacher: settings.teacher === null ? null : await fingerprintOf(settings.teacher),
    data: settings.data.map(({ source, weight }) => `${source.name} (${source.length} tokens, weight ${weight ?? 'by length'})`).join(', '),
    steps, sequenceLength, batch, accumulate, loss, train: which, learningRate, relativeRates: String(relative), schedule, warmupSteps, seed, recompute: String(recompute),
    betas: betas.join(), epsilon, weightDecay, clipNorm,
  };
}
