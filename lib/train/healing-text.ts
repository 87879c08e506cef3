/** Text for healing: most of it to learn from, the end of every text kept aside to measure on. */
import type { CalibrationText } from '../statistics/calibration.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import type { WeightedSource } from './sequences.ts';
import { tokenSource, type TokenSource } from './token-source.ts';

export interface HealingText {
  readonly data: readonly WeightedSource[];
  /** Tokens that nothing learns from; may be none. */
  readonly aside: TokenSource;
}

/** Of every text a tenth is kept aside, but no more tokens than these. */
const ASIDE_SHARE = 0.1, ASIDE_TOKENS = 1024;

/** Cuts texts into tokens. */
export function healingText(tokenizer: Pick<Tokenizer, 'encode'>, texts: readonly CalibrationText[]): HealingText {
  const cut = texts.map(({ name, text }) => {
    const ids = tokenizer.encode(text);
    const end = ids.length - Math.min(ASIDE_TOKENS, Math.floor(ASIDE_SHARE * ids.length));
    return { source: tokenSource(name, Uint32Array.from(ids.slice(0, end))), aside: ids.slice(end) };
  });
  return { data: cut.map(({ source }) => ({ source })), aside: tokenSource('the text kept aside', Uint32Array.from(cut.flatMap(({ aside }) => aside))) };
}
