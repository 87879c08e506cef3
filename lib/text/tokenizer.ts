/**
 * Text to token ids and back, as Hugging Face's tokenizers do it. The only importer of @huggingface/tokenizers.
 */
import { createHash } from 'node:crypto';
import { Tokenizer as Package } from '@huggingface/tokenizers';
import type { JsonObject } from './json.ts';
import { canonicalJson, isJsonObject, listField, textField } from './json.ts';
import { exactPreTokenizer } from './pre-tokenizer.ts';
import { decodeTokens, tokenStream, tokenTextRule } from './token-text.ts';
import type { TokenOf, TokenStream } from './token-text.ts';
import { readTokenizerSource } from './tokenizer-source.ts';
import type { TokenizerSource } from './tokenizer-source.ts';

export type { TokenStream } from './token-text.ts';

export interface DecodeOptions {
  /** Leave special tokens out; default false. */
  readonly skipSpecial?: boolean | undefined;
}

export interface Tokenizer {
  /** Ids of a text: no BOS or EOS added, special tokens spelled in the text are recognised. Linear in the text's length. */
  encode(text: string): readonly number[];
  /** The exact text of ids, no spaces cleaned up. Ids outside the vocabulary have no text. */
  decode(ids: readonly number[], options?: DecodeOptions): string;
  /** Decodes token by token, never giving half a character. */
  stream(options?: DecodeOptions): TokenStream;
  /** The id of a token by its spelling in the vocabulary, or null. */
  idOf(token: string): number | null;
  /** Highest id + 1. A model's embedding may have more rows. */
  readonly vocabularySize: number;
  readonly specialIds: ReadonlySet<number>;
  readonly bosToken: string | null;
  readonly eosToken: string | null;
  readonly bosId: number | null;
  readonly eosId: number | null;
  /** Whether the model's own tokenizer puts BOS in front of a text by default; encode() never does. */
  readonly addsBos: boolean;
  /** Jinja source, see renderChat; null when the model brings none. */
  readonly chatTemplate: string | null;
  /** File name to text: write these beside a model and openTokenizer opens the same tokenizer there. */
  readonly files: Readonly<Record<string, string>>;
  /** SHA-256 (hex) of tokenizer.json with sorted keys and no spaces: equal for tokenizers that are written differently only. */
  readonly fingerprint: string;
}

/** What is used of the package, whose own types do not resolve under NodeNext. */
interface Encoder {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] };
  id_to_token(id: number): string | undefined;
  token_to_id(token: string): number | undefined;
  get_vocab(withAdded: boolean): Map<string, number>;
}
const EncoderOf: new (tokenizer: JsonObject, config: JsonObject) => Encoder = Package;

const roles = ['bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token'];

/** A special token in a configuration is a string or an added-token object. */
function tokenText(value: unknown): string | null {
  if (typeof value === 'string') return value;
  return isJsonObject(value) ? textField(value, 'content') : null;
}

/** Whether a post-processor puts this token in front of a single text. */
function putsInFront(processor: unknown, token: string): boolean {
  if (!isJsonObject(processor)) return false;
  const [first] = listField(processor, 'single');
  if (isJsonObject(first)) return isJsonObject(first['SpecialToken']) && first['SpecialToken']['id'] === token;
  const [classToken] = listField(processor, 'cls'); // BERT and RoBERTa: [token, id]
  return classToken === token || listField(processor, 'processors').some((inner) => putsInFront(inner, token));
}

/** The encoder, without the parts we do ourselves (decoder, BOS) and with exact word cutting. */
function makeEncoder({ tokenizer, path }: TokenizerSource): Encoder {
  try {
    const exact = {
      ...tokenizer,
      added_tokens: listField(tokenizer, 'added_tokens'),
      normalizer: tokenizer['normalizer'] ?? null,
      pre_tokenizer: exactPreTokenizer(tokenizer['pre_tokenizer']),
      post_processor: null,
      decoder: null,
    };
    return new EncoderOf(exact, {});
  } catch (error) {
    throw new Error(`openTokenizer: ${path} must be a tokenizer this library can run, got ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  }
}

function makeTokenizer(source: TokenizerSource): Tokenizer {
  const { tokenizer, config, path } = source;
  const encoder = makeEncoder(source);
  const rule = tokenTextRule(tokenizer['decoder']);
  const idOf = (token: string): number | null => encoder.token_to_id(token) ?? null;
  const idOfRole = (token: string | null): number | null => (token === null ? null : idOf(token));

  const special = listField(tokenizer, 'added_tokens').flatMap((token) => (isJsonObject(token) && token['special'] === true ? [Number(token['id'])] : []));
  const named = [...roles.map((role) => config[role]), ...listField(config, 'additional_special_tokens')];
  const specialIds = new Set([...special, ...named.flatMap((token) => idOfRole(tokenText(token)) ?? [])]);

  let vocabularySize = 0;
  for (const id of encoder.get_vocab(true).values()) vocabularySize = Math.max(vocabularySize, id + 1);

  const tokenOf = (options: DecodeOptions | undefined): TokenOf => (id) => {
    if (!Number.isInteger(id) || id < 0) throw new Error(`decode: token ids must be integers from 0, got ${id} (${path})`);
    return options?.skipSpecial === true && specialIds.has(id) ? null : (encoder.id_to_token(id) ?? null);
  };

  const bosToken = tokenText(config['bos_token']);
  const eosToken = tokenText(config['eos_token']);
  const declared = config['add_bos_token'];
  const bosInFront = typeof declared === 'boolean' ? declared : bosToken !== null && putsInFront(tokenizer['post_processor'], bosToken);
  let fingerprint: string | undefined;
  return {
    encode: (text) => encoder.encode(text, { add_special_tokens: false }).ids,
    decode: (ids, options) => decodeTokens(rule, tokenOf(options), ids),
    stream: (options) => tokenStream(rule, tokenOf(options)),
    idOf,
    vocabularySize,
    specialIds,
    bosToken,
    eosToken,
    bosId: idOfRole(bosToken),
    eosId: idOfRole(eosToken),
    addsBos: bosInFront && idOfRole(bosToken) !== null,
    chatTemplate: source.chatTemplate,
    files: source.files,
    get fingerprint() {
      return (fingerprint ??= createHash('sha256').update(canonicalJson(tokenizer)).digest('hex'));
    },
  };
}

/**
 * Opens the tokenizer of a model: a directory with tokenizer.json (and tokenizer_config.json), or a GGUF file.
 * Errors: no tokenizer there; a rule of tokenizer.json that cannot be run exactly, naming the file and the rule.
 */
export async function openTokenizer(path: string): Promise<Tokenizer> {
  return makeTokenizer(await readTokenizerSource(path));
}
