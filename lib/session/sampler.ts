/** From logits to the next token: greedy, or drawn at a temperature from the top k tokens or the nucleus of mass p. */
import type { Random } from '../random.ts';

export interface SamplingOptions {
  /** Divides the logits; 0 (default) takes the likeliest token and draws nothing. */
  readonly temperature?: number | undefined;
  /** Draw among this many likeliest tokens. Default: all. */
  readonly topK?: number | undefined;
  /** Draw among the likeliest tokens that together weigh at least this share of the top k, 0..1. Default 1: all. */
  readonly topP?: number | undefined;
}

/** Tokens that can be drawn, with probabilities that sum to 1: by id, or likeliest first where topK or topP cut the list. */
export interface Candidates {
  readonly ids: readonly number[];
  readonly probabilities: Float64Array;
}

/** Refuses settings out of range, naming the setting. */
export function checkSampling({ temperature = 0, topK, topP = 1 }: SamplingOptions): void {
  if (!(temperature >= 0) || !Number.isFinite(temperature)) throw new RangeError(`sampleToken: temperature must be 0 or more, got ${temperature}`);
  if (topK !== undefined && (!Number.isInteger(topK) || topK < 1)) throw new RangeError(`sampleToken: topK must be 1 or more, got ${topK}`);
  if (!(topP > 0 && topP <= 1)) throw new RangeError(`sampleToken: topP must be above 0 and at most 1, got ${topP}`);
}

/** The id of the largest logit; the lowest id among equals. Errors: NaN, no logits. */
export function likeliestToken(logits: Float32Array): number {
  if (logits.length === 0) throw new RangeError('sampleToken: logits must have at least one entry, got none');
  const top = largest(logits);
  if (Number.isNaN(top)) throw new RangeError(`sampleToken: logits must be numbers, got NaN for token ${logits.findIndex(Number.isNaN)}`);
  return logits.indexOf(top);
}

/** The largest number, NaN where there is one. Four chains: in a single one every comparison waits for the one before. */
function largest(numbers: Float32Array): number {
  let a = -Infinity, b = a, c = a, d = a, i = 0;
  for (const whole = numbers.length - 3; i < whole; i += 4) {
    a = Math.max(a, numbers[i]!);
    b = Math.max(b, numbers[i + 1]!);
    c = Math.max(c, numbers[i + 2]!);
    d = Math.max(d, numbers[i + 3]!);
  }
  for (; i < numbers.length; i++) a = Math.max(a, numbers[i]!);
  return Math.max(a, b, c, d);
}

/**
 * What a draw chooses from: softmax(logits / temperature), cut to the top k, then to the smallest set of likeliest tokens
 * that weighs at least topP of what is left; renormalised. A token of logit -Infinity is never drawn; among equals the
 * lower id is likelier.
 * Source: Fan et al. 2018 (top k), Holtzman et al. 2020 (nucleus); order as in transformers' logits processors.
 */
export function samplingCandidates(logits: Float32Array, options: SamplingOptions): Candidates {
  checkSampling(options);
  const { temperature = 0, topK, topP = 1 } = options;
  const best = likeliestToken(logits);
  const top = logits[best] ?? NaN;
  if (!Number.isFinite(top)) throw new RangeError(`sampleToken: the largest logit must be finite, got ${top} for token ${best}`);
  if (temperature === 0) return { ids: [best], probabilities: Float64Array.of(1) };
  const weights = Float64Array.from(logits, (logit) => Math.exp((logit - top) / temperature));
  const cut = topK !== undefined && topK < logits.length;
  if (!cut && topP === 1) return normalised(atLeast(weights, Number.MIN_VALUE), weights);
  const likelier = (a: number, b: number): number => (logits[b] ?? 0) - (logits[a] ?? 0) || a - b;
  const ranked = (cut ? atLeast(logits, kthLargest(logits, topK)) : nucleusSuperset(weights, topP)).sort(likelier).slice(0, topK);
  const enough = topP === 1 ? Infinity : topP * (cut ? sumAt(ranked, weights) : weights.reduce((sum, weight) => sum + weight, 0));
  let kept = 0;
  let count = 0;
  while (count < ranked.length && (count === 0 || kept < enough)) kept += weights[ranked[count++] ?? 0] ?? 0;
  return normalised(ranked.slice(0, count), weights);
}

/** The next token's id. Draws one number from `random` unless the temperature is 0. */
export function sampleToken(logits: Float32Array, options: SamplingOptions, random: Random): number {
  if ((options.temperature ?? 0) === 0) {
    checkSampling(options);
    return likeliestToken(logits);
  }
  const { ids, probabilities } = samplingCandidates(logits, options);
  let left = random.uniform();
  for (const [i, id] of ids.entries()) {
    left -= probabilities[i] ?? 0;
    if (left < 0) return id;
  }
  return ids.findLast((_, i) => (probabilities[i] ?? 0) > 0) ?? likeliestToken(logits); // rounding left the sum below the draw
}

const sumAt = (ids: readonly number[], weights: Float64Array): number => ids.reduce((sum, id) => sum + (weights[id] ?? 0), 0);

function normalised(ids: readonly number[], weights: Float64Array): Candidates {
  const mass = sumAt(ids, weights);
  return { ids, probabilities: Float64Array.from(ids, (id) => (weights[id] ?? 0) / mass) };
}

const kthLargest = (values: Float32Array, k: number): number => values.toSorted()[values.length - k] ?? -Infinity;

function atLeast(values: ArrayLike<number>, least: number): number[] {
  const ids: number[] = [];
  for (let id = 0; id < values.length; id++) if ((values[id] ?? 0) >= least) ids.push(id);
  return ids;
}

/**
 * A small set that holds the nucleus: tokens below (1 - p) / n of the mass weigh less than 1 - p together, so those above
 * reach p without them. Saves sorting a whole vocabulary.
 */
function nucleusSuperset(weights: Float64Array, topP: number): number[] {
  const mass = weights.reduce((sum, weight) => sum + weight, 0);
  return atLeast(weights, (((1 - topP) * mass) / weights.length) * (1 - 1e-9));
}
