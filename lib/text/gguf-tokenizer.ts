/**
 * GGUF metadata (tokenizer.ggml.*) to the files Hugging Face keeps beside a model: tokenizer.json and its configuration.
 * Two kinds: byte-level BPE (model "gpt2") and SentencePiece BPE (model "llama").
 */
import { ggufBoolean, ggufNumber, ggufNumbers, ggufString, ggufStrings } from '../checkpoint/gguf.ts';
import type { GgufMetadata } from '../checkpoint/gguf.ts';
import { ggufPreTokenizers } from './gguf-pre-tokenizers.ts';
import type { GgufPreTokenizer } from './gguf-pre-tokenizers.ts';
import type { JsonObject } from './json.ts';
import { sentencePieceMerges } from './sentencepiece-merges.ts';

export interface GgufTokenizerFiles {
  /** tokenizer.json */
  readonly tokenizer: JsonObject;
  /** tokenizer_config.json */
  readonly config: JsonObject;
}

// GGUF token types: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte
const UNKNOWN = 2;
const CONTROL = 3;
const USER_DEFINED = 4;

const bad = (file: string, rule: string, got: string): Error => new Error(`ggufTokenizer: ${rule}, got ${got} in ${file}`);

function strings(metadata: GgufMetadata, key: string, file: string): readonly string[] {
  const values = ggufStrings(metadata, key);
  if (values === null) throw bad(file, `${key} must be there`, 'nothing');
  return values;
}

function numbers(metadata: GgufMetadata, key: string, file: string, length: number): readonly number[] {
  const values = ggufNumbers(metadata, key);
  if (values?.length !== length) throw bad(file, `${key} must have one entry per token (${length})`, String(values?.length ?? 'nothing'));
  return values;
}

function namedToken(metadata: GgufMetadata, name: string, tokens: readonly string[], file: string): string | undefined {
  const key = `tokenizer.ggml.${name}_token_id`;
  const id = ggufNumber(metadata, key);
  if (id === null) return undefined;
  const token = tokens[id];
  if (token === undefined) throw bad(file, `${key} must be below ${tokens.length}`, String(id));
  return token;
}

function byteLevelModel(metadata: GgufMetadata, tokens: readonly string[], cut: GgufPreTokenizer, file: string): JsonObject {
  const merges = strings(metadata, 'tokenizer.ggml.merges', file).map((merge, index) => {
    const pair = merge.split(' ');
    if (pair.length !== 2) throw bad(file, `tokenizer.ggml.merges[${index}] must be two tokens with a space between`, JSON.stringify(merge));
    return pair;
  });
  return {
    normalizer: cut.normalizer,
    pre_tokenizer: cut.rule,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: cut.ignoreMerges,
      vocab: vocabulary(tokens),
      merges,
    },
  };
}

function sentencePieceModel(metadata: GgufMetadata, tokens: readonly string[], unknown: string | undefined, file: string): JsonObject {
  const prefix = ggufBoolean(metadata, 'tokenizer.ggml.add_space_prefix') ?? true;
  const marks = { type: 'Replace', pattern: { String: ' ' }, content: '\u2581' };
  const spaces = [
    { type: 'Replace', pattern: { String: '\u2581' }, content: ' ' },
    { type: 'ByteFallback' },
    { type: 'Fuse' },
    ...(prefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
  ];
  return {
    normalizer: { type: 'Sequence', normalizers: [...(prefix ? [{ type: 'Prepend', prepend: '\u2581' }] : []), marks] },
    pre_tokenizer: null,
    decoder: { type: 'Sequence', decoders: spaces },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: unknown ?? null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab: vocabulary(tokens),
      merges: sentencePieceMerges(tokens, numbers(metadata, 'tokenizer.ggml.scores', file, tokens.length)),
    },
  };
}

// fromEntries and not assignment: a token may be spelled __proto__
const vocabulary = (tokens: readonly string[]): JsonObject => Object.fromEntries(tokens.map((token, id) => [token, id]));

function bosTemplate(bos: string, id: number): JsonObject {
  const start = (typeId: number): JsonObject => ({ SpecialToken: { id: bos, type_id: typeId } });
  const text = (id: 'A' | 'B', typeId: number): JsonObject => ({ Sequence: { id, type_id: typeId } });
  return {
    type: 'TemplateProcessing',
    single: [start(0), text('A', 0)],
    pair: [start(0), text('A', 0), start(1), text('B', 1)],
    special_tokens: { [bos]: { id: bos, ids: [id], tokens: [bos] } },
  };
}

/**
 * The tokenizer of a GGUF file as Hugging Face files. `file` only names the file in errors.
 * Control tokens become special added tokens, user-defined ones added tokens that are not special. Without
 * `add_bos_token` the default of llama.cpp holds: BOS for SentencePiece and for the llama 3 and tekken families.
 * A file without `tokenizer.ggml.pre` gets llama.cpp's `default` rule.
 * Errors: missing or misshapen keys; a model other than gpt2 or llama; an unknown pre-tokenizer, listing the known ones.
 */
export function ggufTokenizer(metadata: GgufMetadata, file: string): GgufTokenizerFiles {
  const kind = ggufString(metadata, 'tokenizer.ggml.model');
  if (kind !== 'gpt2' && kind !== 'llama') throw bad(file, 'tokenizer.ggml.model must be one of gpt2, llama', String(kind));
  const tokens = strings(metadata, 'tokenizer.ggml.tokens', file);
  const types = numbers(metadata, 'tokenizer.ggml.token_type', file, tokens.length);
  const named = (name: string): string | undefined => namedToken(metadata, name, tokens, file);
  const [bos, eos, unknown, padding] = [named('bos'), named('eos'), named('unknown'), named('padding')];

  let parts: JsonObject;
  let bosByDefault: boolean;
  if (kind === 'gpt2') {
    const pre = ggufString(metadata, 'tokenizer.ggml.pre') ?? 'default';
    const cut = Object.hasOwn(ggufPreTokenizers, pre) ? ggufPreTokenizers[pre] : undefined;
    if (cut === undefined) throw bad(file, `tokenizer.ggml.pre must be one of ${Object.keys(ggufPreTokenizers).join(', ')}`, pre);
    parts = byteLevelModel(metadata, tokens, cut, file);
    bosByDefault = cut.addsBos;
  } else {
    parts = sentencePieceModel(metadata, tokens, unknown ?? tokens[types.indexOf(UNKNOWN)], file);
    bosByDefault = true;
  }

  const addsBos = (ggufBoolean(metadata, 'tokenizer.ggml.add_bos_token') ?? bosByDefault) && bos !== undefined;
  const added = tokens.flatMap((content, id) => {
    const type = types[id];
    if (type !== CONTROL && type !== USER_DEFINED && type !== UNKNOWN) return [];
    return [{ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: type !== USER_DEFINED }];
  });
  return {
    tokenizer: {
      version: '1.0',
      truncation: null,
      padding: null,
      added_tokens: added,
      ...parts,
      post_processor: addsBos && bos !== undefined ? bosTemplate(bos, tokens.indexOf(bos)) : null,
    },
    config: {
      tokenizer_class: 'PreTrainedTokenizerFast',
      add_bos_token: addsBos,
      clean_up_tokenization_spaces: false,
      bos_token: bos,
      eos_token: eos,
      unk_token: unknown,
      pad_token: padding,
      chat_template: ggufString(metadata, 'tokenizer.chat_template') ?? undefined,
    },
  };
}
