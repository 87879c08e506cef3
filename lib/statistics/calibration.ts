/** Calibration text as windows of tokens, with the identity that tells one set of statistics from another. */
import { createHash } from 'node:crypto';
import { fingerprintOf } from '../models/fingerprint.ts';
import type { Model } from '../models/model.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import type { StatisticsIdentity } from './layer-statistics.ts';

export interface CalibrationText {
  /** Told in reports; not a path of this machine. */
  readonly name: string;
  readonly text: string;
}

export interface CalibrationOptions {
  /** Tokens of a window. Default 1024, or the model's context where that is shorter. */
  readonly window?: number;
  /** Windows for moments and pair norms; as many as the texts have when they are shorter. Default 32. */
  readonly windows?: number;
  /** The first of them, for the statistics of attention. Default 4. */
  readonly attentionWindows?: number;
}

export interface Calibration {
  readonly identity: StatisticsIdentity;
  readonly window: number;
  /** Token ids, `window` each; texts take turns, so that the first few hold something of every text. */
  readonly windows: readonly (readonly number[])[];
  readonly attentionWindows: number;
  /** Windows behind those, which nothing is fitted to: for perplexity before and after. None where the texts are used up. */
  readonly heldOut?: readonly (readonly number[])[];
}

/** Windows kept aside for perplexity. */
const HELD_OUT = 2;

/** More characters than a token has on average in any text we know; only so many are tokenised at first. */
const CHARACTERS_PER_TOKEN = 12;

/**
 * Cuts texts into windows that lie side by side. Errors: a text of fewer tokens than one window, windows out of range.
 */
export async function calibrationOf(model: Model, tokenizer: Pick<Tokenizer, 'encode' | 'fingerprint'>, texts: readonly CalibrationText[], options: CalibrationOptions = {}): Promise<Calibration> {
  const { window = Math.min(1024, model.config.maxPositions), windows = 32, attentionWindows = 4 } = options;
  if (texts.length === 0) throw new RangeError('calibrationOf: at least one calibration text is needed, got none');
  if (!Number.isInteger(window) || window < 2 || window > model.config.maxPositions) throw new RangeError(`calibrationOf: window must be 2..${model.config.maxPositions} tokens, got ${window}`);
  for (const [name, count] of [['windows', windows], ['attentionWindows', attentionWindows]] as const) {
    if (!Number.isInteger(count) || count < 1) throw new RangeError(`calibrationOf: ${name} must be 1 or more, got ${count}`);
  }
  const wanted = windows + HELD_OUT;
  const share = Math.ceil(wanted / texts.length);
  const cut = texts.map(({ name, text }) => {
    const ids = firstTokens(tokenizer, text, wanted * window);
    if (ids.length < window) throw new RangeError(`calibrationOf: calibration text ${name} must have at least one window of ${window} tokens, got ${ids.length}`);
    return Array.from({ length: Math.floor(ids.length / window) }, (_, i) => ids.slice(i * window, (i + 1) * window));
  });
  const rounds = Math.max(share, ...cut.map((list) => list.length));
  const all = Array.from({ length: rounds }, (_, round) => cut.flatMap((list) => list.slice(round, round + 1))).flat();
  const mixed = all.slice(0, windows);
  const used = Math.min(attentionWindows, mixed.length);
  return {
    window, windows: mixed, attentionWindows: used, heldOut: all.slice(windows, wanted),
    identity: {
      model: await fingerprintOf(model), tokenizer: tokenizer.fingerprint,
      texts: texts.map(({ name, text }) => ({ name, sha256: createHash('sha256').update(text).digest('hex') })),
      tokens: mixed.length * window, attentionTokens: used * window, window,
    },
  };
}

/** At least `count` tokens where the text has them; a long text is not tokenised to its end for that. */
function firstTokens(tokenizer: Pick<Tokenizer, 'encode'>, text: string, count: number): readonly number[] {
  const limit = count * CHARACTERS_PER_TOKEN;
  if (text.length <= limit) return tokenizer.encode(text);
  const line = text.lastIndexOf('\n', limit);
  const ids = tokenizer.encode(text.slice(0, line > 0 ? line : limit));
  return ids.length >= count ? ids : tokenizer.encode(text);
}
