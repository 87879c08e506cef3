/**
 * What `tokenizer.ggml.pre` names: how byte-level BPE models cut text into words before merging.
 * Each row is the `pre_tokenizer` of the Hugging Face tokenizer.json that the name stands for; `default` is llama.cpp's own
 * rule for models nobody recognised. Source: llama.cpp src/llama-vocab.cpp, and the tokenizer.json of each family.
 */
import type { JsonObject } from './json.ts';
import { byteCharacters, gpt2Words, isolate } from './pre-tokenizer.ts';

export interface GgufPreTokenizer {
  readonly rule: JsonObject;
  readonly normalizer: JsonObject | null;
  /** A word that is itself a token is taken whole, without merging. */
  readonly ignoreMerges: boolean;
  /** BOS in front when the file does not say. */
  readonly addsBos: boolean;
}

const contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const wordsAfter = '[^\\r\\n\\p{L}\\p{N}]?\\p{L}+';
const spaces = '\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';
const upper = '[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]';
const lower = '[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]';

const sequence = (...pretokenizers: JsonObject[]): JsonObject => ({ type: 'Sequence', pretokenizers });
const byteLevel: JsonObject = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
const plain = (rule: JsonObject): GgufPreTokenizer => ({ rule, normalizer: null, ignoreMerges: false, addsBos: false });

const singleDigits = plain(sequence({ type: 'Digits', individual_digits: true }, byteLevel));

const llama3: GgufPreTokenizer = {
  rule: sequence(
    isolate(`${contractions}|${wordsAfter}|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|${spaces}`),
    byteCharacters,
  ),
  normalizer: null,
  ignoreMerges: true,
  addsBos: true,
};

const qwen2: GgufPreTokenizer = {
  rule: sequence(isolate(`${contractions}|${wordsAfter}|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|${spaces}`), byteCharacters),
  normalizer: { type: 'NFC' },
  ignoreMerges: false,
  addsBos: false,
};

const tekken: GgufPreTokenizer = {
  rule: sequence(
    isolate(
      `[^\\r\\n\\p{L}\\p{N}]?${upper}*${lower}+|[^\\r\\n\\p{L}\\p{N}]?${upper}+${lower}*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|${spaces}`,
    ),
    byteCharacters,
  ),
  normalizer: null,
  ignoreMerges: true,
  addsBos: true,
};

export const ggufPreTokenizers: Readonly<Record<string, GgufPreTokenizer>> = {
  default: plain(
    sequence(isolate('[\\p{P}\\$\\+<=>\\^~\\|]+'), isolate(gpt2Words), isolate('\\p{N}+'), isolate('[0-9][0-9][0-9]'), byteCharacters),
  ),
  'gpt-2': plain(byteLevel),
  smollm: singleDigits,
  starcoder: singleDigits,
  refact: singleDigits,
  'llama-bpe': llama3,
  llama3,
  'llama-v3': llama3,
  qwen2,
  tekken,
};
