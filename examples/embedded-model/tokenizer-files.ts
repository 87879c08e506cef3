import type { Bpe } from './train-bpe.ts';

export const END_OF_TEXT = '<|endoftext|>';

const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };

/** A byte-pair encoding as the files of a Hugging Face model directory, by name. Token 0 ends a text; the pieces follow. */
export function tokenizerFiles({ pieces, merges }: Bpe): Record<'tokenizer.json' | 'tokenizer_config.json', string> {
  const tokenizer = {
    version: '1.0', truncation: null, padding: null,
    added_tokens: [{ id: 0, content: END_OF_TEXT, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true }],
    normalizer: null, pre_tokenizer: byteLevel, post_processor: null, decoder: byteLevel,
    model: {
      type: 'BPE', dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null, fuse_unk: false, byte_fallback: false, ignore_merges: false,
      vocab: Object.fromEntries([END_OF_TEXT, ...pieces].map((piece, id) => [piece, id])), merges,
    },
  };
  const config = { tokenizer_class: 'PreTrainedTokenizerFast', bos_token: null, eos_token: END_OF_TEXT, add_bos_token: false, model_max_length: 1024 };
  return { 'tokenizer.json': `${JSON.stringify(tokenizer)}\n`, 'tokenizer_config.json': `${JSON.stringify(config, null, 1)}\n` };
}
