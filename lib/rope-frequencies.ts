/**
 * Rotation speeds of RoPE, as transformers computes them (modeling_rope_utils.py), in float64.
 * theta_k = base^(-2k / headDim) for pair k; the scaled kinds slow the low frequencies to reach longer contexts.
 */

interface PlainRope {
  readonly type: 'default';
  /** Base of the geometric series (rope_theta). */
  readonly base: number;
}

/** All frequencies divided by `factor`. */
interface LinearRope {
  readonly type: 'linear';
  readonly base: number;
  readonly factor: number;
}

/** Llama 3.1: wavelengths above original / low are divided by `factor`, below original / high kept, blended between. */
interface Llama3Rope {
  readonly type: 'llama3';
  readonly base: number;
  readonly factor: number;
  readonly lowFreqFactor: number;
  readonly highFreqFactor: number;
  readonly originalMaxPositions: number;
}

/** YaRN, arXiv:2309.00071: a ramp over the pair index between kept and divided frequencies, and scaled cos and sin. */
interface YarnRope {
  readonly type: 'yarn';
  readonly base: number;
  readonly factor: number;
  readonly originalMaxPositions: number;
  /** Rotations over the original length above which a pair is kept, and below which it is divided. */
  readonly betaFast: number;
  readonly betaSlow: number;
  /** Multiplies cos and sin; null derives it from factor, mscale and mscaleAllDim. */
  readonly attentionFactor: number | null;
  readonly mscale: number | null;
  readonly mscaleAllDim: number | null;
  /** Whether the ends of the ramp are rounded to whole pair indices. */
  readonly truncate: boolean;
}

export type RopeConfig = PlainRope | LinearRope | Llama3Rope | YarnRope;

export interface RopeFrequencies {
  /** [headDim / 2], radians per position, fastest first; pair k rotates components k and k + headDim / 2. */
  readonly frequencies: Float64Array;
  /** Multiplies cos and sin of queries and of keys, so scores carry its square; 1 except for yarn. */
  readonly attentionFactor: number;
}

/**
 * Frequencies and attention factor for heads of width `headDim`.
 * Errors: an odd or non-positive headDim.
 */
export function ropeFrequencies(rope: RopeConfig, headDim: number): RopeFrequencies {
  if (!Number.isInteger(headDim) || headDim <= 0 || headDim % 2 !== 0) {
    throw new RangeError(`ropeFrequencies: headDim must be even and positive, got ${headDim}`);
  }
  const plain = Float64Array.from({ length: headDim / 2 }, (_, k) => rope.base ** ((-2 * k) / headDim));
  switch (rope.type) {
    case 'default':
      return { frequencies: plain, attentionFactor: 1 };
    case 'linear':
      return { frequencies: plain.map((w) => w / rope.factor), attentionFactor: 1 };
    case 'llama3':
      return { frequencies: plain.map((w) => llama3Frequency(rope, w)), attentionFactor: 1 };
    case 'yarn':
      return { frequencies: yarnFrequencies(rope, plain, headDim), attentionFactor: yarnAttentionFactor(rope) };
  }
}

function llama3Frequency({ factor, lowFreqFactor, highFreqFactor, originalMaxPositions }: Llama3Rope, frequency: number): number {
  const wavelength = (2 * Math.PI) / frequency;
  if (wavelength < originalMaxPositions / highFreqFactor) return frequency;
  if (wavelength > originalMaxPositions / lowFreqFactor) return frequency / factor;
  const kept = (originalMaxPositions / wavelength - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
  return (1 - kept) * (frequency / factor) + kept * frequency;
}

function yarnFrequencies(rope: YarnRope, plain: Float64Array, headDim: number): Float64Array {
  /** Pair index, as a real number, that turns `rotations` times within the original length. */
  const pairTurning = (rotations: number): number =>
    (headDim * Math.log(rope.originalMaxPositions / (rotations * 2 * Math.PI))) / (2 * Math.log(rope.base));
  const [fast, slow] = [pairTurning(rope.betaFast), pairTurning(rope.betaSlow)];
  const low = Math.max(rope.truncate ? Math.floor(fast) : fast, 0);
  // The reference bounds a pair index by the head width, not by its half; followed as it is.
  const bound = Math.min(rope.truncate ? Math.ceil(slow) : slow, headDim - 1);
  const high = bound === low ? low + 0.001 : bound;
  return plain.map((frequency, k) => {
    const divided = Math.min(Math.max((k - low) / (high - low), 0), 1);
    return (frequency / rope.factor) * divided + frequency * (1 - divided);
  });
}

function yarnAttentionFactor({ attentionFactor, factor, mscale, mscaleAllDim }: YarnRope): number {
  if (attentionFactor !== null) return attentionFactor;
  const scaleOf = (weight: number): number => (factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1);
  // A zero counts as absent, as in the reference.
  return mscale && mscaleAllDim ? scaleOf(mscale) / scaleOf(mscaleAllDim) : scaleOf(1);
}
