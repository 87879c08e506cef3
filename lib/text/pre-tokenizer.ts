/**
 * Pre-tokenizer rules of tokenizer.json in the spelling that our encoder runs exactly.
 *
 * @huggingface/tokenizers 0.2.0 reads some rules differently from the Rust library that trained the models: Digits and
 * ByteLevel use JavaScript's \d and \s (no ½, no U+0085, but U+FEFF), Punctuation joins what Rust isolates, Metaspace never
 * splits. Split with a regular expression is exact, so the others are spelled with it. Source: tokenizers 0.23,
 * src/pre_tokenizers/*.rs.
 */
import type { JsonObject } from './json.ts';
import { isJsonObject, listField, textField } from './json.ts';

/** GPT-2's words (also what ByteLevel does by default): contractions, then letters, digits, the rest, each with one space before. */
export const gpt2Words = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

const punctuation = '[\\p{P}!-/:-@\\[-`{-~]'; // Unicode P and all of ASCII's, as char::is_punctuation of the Rust library

/** A rule that cuts at every match of a regular expression and keeps matches and gaps as pieces of their own. */
export const isolate = (regex: string): JsonObject => ({ type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false });

/** A rule that keeps the matches and drops the gaps. */
const keepMatches = (regex: string): JsonObject => ({ type: 'Split', pattern: { Regex: regex }, behavior: 'Removed', invert: true });

/** Bytes to GPT-2's 256 printable characters, without cutting. */
export const byteCharacters: JsonObject = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false };

// $& is the match: replacing an empty one at \A would also hit the middle of a surrogate pair
const spaceInFront: JsonObject = { type: 'Replace', pattern: { Regex: '\\A[^ ]' }, content: ' $&' };

// \w of Rust's regex: with the two joiners that Oniguruma leaves out
const word = '\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\u200c\u200d';

function split(rule: JsonObject): JsonObject[] {
  const behaviour = textField(rule, 'behavior') ?? 'Isolated';
  if (behaviour === 'Isolated') return [{ ...rule, invert: false }]; // matches and gaps are both kept: inverting changes nothing
  if (behaviour === 'Removed') return [rule];
  throw new Error(`exactPreTokenizer: Split behaviour must be Isolated or Removed, got ${behaviour}`);
}

function punctuationMarks(rule: JsonObject): JsonObject[] {
  const behaviour = textField(rule, 'behavior') ?? 'Isolated';
  if (behaviour === 'Isolated') return [isolate(punctuation)];
  if (behaviour === 'Contiguous') return [isolate(`${punctuation}+`)];
  throw new Error(`exactPreTokenizer: Punctuation behaviour must be Isolated or Contiguous, got ${behaviour}`);
}

function metaspace(rule: JsonObject): JsonObject[] {
  const mark = textField(rule, 'replacement') ?? '\u2581';
  return rule['split'] === false ? [rule] : [rule, isolate(`${mark}[^${mark}]*`)];
}

const rules: Readonly<Record<string, (rule: JsonObject) => JsonObject[]>> = {
  Sequence: (rule) => listField(rule, 'pretokenizers').flatMap(exactRules),
  ByteLevel: (rule) => [
    ...(rule['add_prefix_space'] === true ? [spaceInFront] : []),
    ...(rule['use_regex'] === false ? [] : [isolate(gpt2Words)]),
    byteCharacters,
  ],
  Digits: (rule) => [isolate(rule['individual_digits'] === true ? '\\p{N}' : '\\p{N}+')],
  Split: split,
  Punctuation: punctuationMarks,
  Metaspace: metaspace,
  Whitespace: () => [keepMatches(`[${word}]+|[^${word}\\s]+`)],
  WhitespaceSplit: () => [keepMatches('\\S+')],
};

function exactRules(rule: unknown): JsonObject[] {
  const type = isJsonObject(rule) ? textField(rule, 'type') : null;
  const spell = type === null ? undefined : rules[type];
  if (!isJsonObject(rule) || spell === undefined) {
    throw new Error(`exactPreTokenizer: type must be one of ${Object.keys(rules).join(', ')}, got ${String(type)}`);
  }
  return spell(rule);
}

/**
 * The `pre_tokenizer` of a tokenizer.json, spelled so that the encoder cuts as the Rust library does; null stays null.
 * Errors: a type or behaviour that cannot be spelled exactly.
 */
export function exactPreTokenizer(rule: unknown): JsonObject | null {
  if (rule === null || rule === undefined) return null;
  return { type: 'Sequence', pretokenizers: exactRules(rule) };
}
