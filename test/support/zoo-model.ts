/** Zoo models (random weights, 97 tokens) as whole model directories, with a tokenizer of one token per character. */
import { cpSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const zoo = join(dirname(fileURLToPath(import.meta.url)), '..', 'data', 'zoo');

export const zooPath = (name: string): string => join(zoo, name);

/** Ids 0..2 are special (2 ends a text), 3..96 are the characters from ! to ~ but for the last one, and space. */
export const zooCharacters = [' ', ...Array.from({ length: 93 }, (_, i) => String.fromCharCode(0x21 + i))];

const special = ['<unk>', '<s>', '</s>'].map((content, id) =>
  ({ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true }));

function tokenizerJson(): string {
  // Byte-level BPE without merges; a space is spelled as the byte table has it.
  const spelled = zooCharacters.map((character) => (character === ' ' ? '\u0120' : character));
  const vocab = Object.fromEntries([...special.map(({ content }) => content), ...spelled].map((token, id) => [token, id]));
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
  return JSON.stringify({
    version: '1.0', truncation: null, padding: null, added_tokens: special, normalizer: null, pre_tokenizer: byteLevel, post_processor: null, decoder: byteLevel,
    model: { type: 'BPE', dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null, fuse_unk: false, byte_fallback: false, vocab, merges: [] },
  });
}

const chatTemplate = "{% for m in messages %}{{ bos_token }}{{ m['role'] }}:{{ m['content'] }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ bos_token }}{% endif %}";

/** A temporary directory, removed by `teardown`. */
export function temporaryDirectory(teardown: (clean: () => void) => void): string {
  const directory = mkdtempSync(join(tmpdir(), 'attention-surgery-test-'));
  teardown(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** Copies a zoo model to `directory` and gives it the tokenizer. */
export function zooModelWithTokenizer(name: string, directory: string): string {
  cpSync(zooPath(name), directory, { recursive: true });
  writeFileSync(join(directory, 'tokenizer.json'), tokenizerJson());
  writeFileSync(join(directory, 'tokenizer_config.json'), JSON.stringify({ bos_token: '<s>', eos_token: '</s>', unk_token: '<unk>', chat_template: chatTemplate }));
  return directory;
}
