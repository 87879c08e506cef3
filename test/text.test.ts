import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import type { Test } from 'tap';
import { paragraphs } from '../examples/embedded-model/texts.ts';
import { tokenizerFiles } from '../examples/embedded-model/tokenizer-files.ts';
import { byteCharacters, countWords, trainBpe } from '../examples/embedded-model/train-bpe.ts';
import { readGgufMetadata } from '../lib/checkpoint/gguf.ts';
import { renderChat } from '../lib/text/chat.ts';
import { ggufTokenizer } from '../lib/text/gguf-tokenizer.ts';
import { openTokenizer } from '../lib/text/tokenizer.ts';
import type { Tokenizer } from '../lib/text/tokenizer.ts';

interface Golden {
  readonly ids: number[][];
  readonly decoded: string[];
  readonly skipped: string[];
}
interface Broken {
  readonly ids: number[];
  readonly decoded: string;
}
interface Fixture {
  readonly texts: string[];
  readonly bytes: { families: Record<string, Golden>; rules: Record<string, Golden & { rule: object }>; broken: Broken[] };
  readonly pieces: { merges: [string, string][]; llama: Golden; variants: Record<string, Golden & { parts: object }>; broken: Broken[] };
}

const data = join(import.meta.dirname, 'data', 'text');
const read = (path: string): string => readFileSync(path, 'utf8');
const fixture: Fixture = JSON.parse(read(join(data, 'golden.json')));
const bytesJson: Record<string, unknown> = JSON.parse(read(join(data, 'bytes.json')));

/** Opens a tokenizer.json written into a fresh directory. */
async function openJson(t: Test, tokenizer: object, more: Record<string, string> = {}): Promise<Tokenizer> {
  return openTokenizer(t.testdir({ 'tokenizer.json': JSON.stringify(tokenizer), ...more }));
}

/** Every text of the fixture: ids, text, text without special tokens, and the text again token by token. */
function checkGolden(t: Test, tokenizer: Tokenizer, golden: Golden): void {
  fixture.texts.forEach((text, row) => {
    const shown = JSON.stringify(text);
    const ids = golden.ids[row] ?? [];
    t.same(tokenizer.encode(text), ids, `ids of ${shown}`);
    t.equal(tokenizer.decode(ids), golden.decoded[row], `text of ${shown}`);
    t.equal(tokenizer.decode(ids, { skipSpecial: true }), golden.skipped[row], `text without special tokens of ${shown}`);
    t.equal(streamed(tokenizer, ids).join(''), golden.decoded[row], `stream of ${shown}`);
  });
}

function streamed(tokenizer: Tokenizer, ids: readonly number[]): string[] {
  const stream = tokenizer.stream();
  return [...ids.map((id) => stream.push(id)), stream.end()];
}

t.test('a byte-level GGUF and the tokenizer.json of the same model are one tokenizer', async (t) => {
  const fromGguf = await openTokenizer(join(data, 'bytes.gguf'));
  const fromJson = await openJson(t, bytesJson);
  const golden = fixture.bytes.families['smollm'];
  if (golden === undefined) throw new Error('fixture lacks smollm');
  checkGolden(t, fromGguf, golden);
  checkGolden(t, fromJson, golden);
  t.equal(fromGguf.fingerprint, fromJson.fingerprint);
  t.same([fromGguf.bosToken, fromGguf.eosToken, fromGguf.bosId, fromGguf.eosId], ['<|im_start|>', '<|im_end|>', 1, 2]);
  t.same([...fromGguf.specialIds].sort(), [0, 1, 2]);
  t.equal(fromGguf.idOf('<|tool|>'), 3);
  t.equal(fromGguf.idOf('nonsense'), null);
  t.equal(fromGguf.addsBos, false);

  const again = await openTokenizer(t.testdir(fromGguf.files));
  t.equal(again.fingerprint, fromGguf.fingerprint, 'the files open as the same tokenizer');
  t.same([again.chatTemplate, again.bosToken, again.eosToken, again.addsBos], [fromGguf.chatTemplate, '<|im_start|>', '<|im_end|>', false]);
});

for (const [name, golden] of Object.entries(fixture.bytes.families)) {
  t.test(`GGUF pre-tokenizer ${name}`, async (t) => {
    const metadata = new Map([...(await readGgufMetadata(join(data, 'bytes.gguf'))), ['tokenizer.ggml.pre', name]]);
    const { tokenizer, config } = ggufTokenizer(metadata, 'bytes.gguf');
    const opened = await openJson(t, tokenizer, { 'tokenizer_config.json': JSON.stringify(config) });
    checkGolden(t, opened, golden);
    t.equal(opened.addsBos, name === 'llama-bpe' || name === 'tekken');
  });
}

for (const [name, golden] of Object.entries(fixture.bytes.rules)) {
  t.test(`pre-tokenizer of tokenizer.json: ${name}`, async (t) => {
    checkGolden(t, await openJson(t, { ...bytesJson, pre_tokenizer: golden.rule }), golden);
  });
}

t.test('SentencePiece from GGUF: merges from scores, bytes for unknown characters', async (t) => {
  const { tokenizer } = ggufTokenizer(await readGgufMetadata(join(data, 'pieces.gguf')), 'pieces.gguf');
  t.match(tokenizer, { model: { merges: fixture.pieces.merges } });
  const opened = await openTokenizer(join(data, 'pieces.gguf'));
  checkGolden(t, opened, fixture.pieces.llama);
  t.equal(opened.addsBos, true, 'llama.cpp puts BOS in front unless the file says otherwise');
  for (const [name, golden] of Object.entries(fixture.pieces.variants)) {
    t.comment(name);
    const variant = await openJson(t, { ...tokenizer, ...golden.parts }, { 'special_tokens_map.json': '{"bos_token":{"content":"<s>"}}' });
    checkGolden(t, variant, golden);
    t.equal(variant.addsBos, name === 'first', 'BOS by the template of the post-processor');
  }
});

t.test('broken bytes show as U+FFFD, and a stream never gives half a character', async (t) => {
  const bytes = await openTokenizer(join(data, 'bytes.gguf'));
  const pieces = await openTokenizer(join(data, 'pieces.gguf'));
  for (const { ids, decoded } of fixture.bytes.broken) t.equal(bytes.decode(ids), decoded);
  for (const { ids, decoded } of fixture.pieces.broken) t.equal(pieces.decode(ids), decoded);
  const smile = bytes.encode('🙂');
  t.same(streamed(bytes, smile), [...smile.slice(1).map(() => ''), '🙂', '']);
  const accent = pieces.encode('é').filter((id) => id > 2 && id < 259);
  t.same(streamed(pieces, accent), ['', 'é', '']);

  const anyText = fc.string({ unit: 'binary', maxLength: 60 });
  fc.assert(
    fc.property(anyText, (text) => {
      const ids = bytes.encode(text);
      const parts = streamed(bytes, ids);
      return bytes.decode(ids) === text && parts.join('') === text && (text.includes('\ufffd') || !parts.some((part) => part.includes('\ufffd')));
    }),
  );
  fc.assert(fc.property(anyText, (text) => pieces.decode(pieces.encode(text)) === text && streamed(pieces, pieces.encode(text)).join('') === text));
  const anyIds = fc.array(fc.nat(bytes.vocabularySize + 3), { maxLength: 40 });
  fc.assert(fc.property(anyIds, (ids) => streamed(bytes, ids).join('') === bytes.decode(ids)));
});

t.test('encoding is linear in the length of the text', async (t) => {
  const { encode } = await openTokenizer(join(data, 'bytes.gguf'));
  const milliseconds = (copies: number): number => {
    const text = fixture.texts.join('').repeat(copies);
    const start = performance.now();
    encode(text);
    return performance.now() - start;
  };
  milliseconds(100);
  const [short, long] = [Math.min(milliseconds(100), milliseconds(100)), milliseconds(1600)];
  t.ok(long < 16 * 4 * short, `16 times the text in ${(long / short).toFixed(1)} times the time; quadratic would be 256`);
});

t.test('where the chat template comes from', async (t) => {
  const config = (template: unknown): Record<string, string> => ({ 'tokenizer_config.json': JSON.stringify({ chat_template: template }) });
  const named = [{ name: 'rag', template: 'R' }, { name: 'default', template: 'D' }];
  const template = async (files: Record<string, string>): Promise<string | null> => (await openJson(t, bytesJson, files)).chatTemplate;
  t.equal(await template({}), null);
  t.equal(await template(config('S')), 'S');
  t.equal(await template(config(named)), 'D');
  t.equal(await template({ ...config('S'), 'chat_template.jinja': 'J' }), 'J');
  t.equal(await template({ 'chat_template.json': '{"chat_template":"O"}' }), 'O');
});

t.test('chat templates', async (t) => {
  const { chatTemplate } = await openTokenizer(join(data, 'bytes.gguf'));
  const messages = [{ role: 'user', content: 'Hi' }, { role: 'assistant', content: 'Yes?' }];
  t.equal(renderChat(chatTemplate, messages), '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n');
  t.equal(renderChat(chatTemplate, [], { addGenerationPrompt: true }), '<|im_start|>assistant\n');
  const variables = '{{ bos_token }}{% for i in range(3, 0, -1) %}{{ i }}{% endfor %}{{ tools[0] }}{{ eos_token }}';
  t.equal(renderChat(variables, [], { bosToken: '<s>', eosToken: '</s>', variables: { tools: ['t'] } }), '<s>321t</s>');
  const clock = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024{% endif %}";
  t.equal(renderChat(clock, []), '26 Jul 2024', 'no clock unless one is given');
  t.equal(renderChat(clock, [], { now: new Date('2026-11-04T23:59:00Z') }), '04 Nov 2026');
  t.equal(renderChat('{% if true %}\n  a\n  {% endif %}\nb', []), '  a\nb', 'blocks take their line with them');

  t.throws(() => renderChat(null, []), /must bring a chat template, got none/);
  t.throws(() => renderChat('{% if %}', []), /must be valid Jinja/);
  t.throws(() => renderChat("{{ raise_exception('roles must alternate') }}", messages), /accept the messages \(user, assistant\), got roles must alternate/);
});

t.test('what cannot be run exactly is refused by name', async (t) => {
  const split = { type: 'Split', pattern: { String: ' ' }, behavior: 'MergedWithPrevious', invert: false };
  await t.rejects(openJson(t, { ...bytesJson, pre_tokenizer: split }), /tokenizer\.json must be .*Split behaviour must be Isolated or Removed, got MergedWithPrevious/);
  await t.rejects(openJson(t, { ...bytesJson, pre_tokenizer: { type: 'UnicodeScripts' } }), /type must be one of Sequence, .*got UnicodeScripts/);
  await t.rejects(openJson(t, { ...bytesJson, decoder: { type: 'WordPiece' } }), /decoder must be ByteLevel, .*got WordPiece/);
  await t.rejects(openTokenizer(t.testdir({ 'tokenizer.json': '{' })), /tokenizer\.json must be valid JSON/);
  await t.rejects(openTokenizer(t.testdir({ 'vocab.json': '{}', 'merges.txt': '' })), /must hold tokenizer\.json or exactly one \.gguf file, .* holds merges\.txt, vocab\.json/);
  await t.rejects(openTokenizer(join(data, 'none')), /path must exist, got .*none/);
  await t.rejects(openTokenizer(join(data, 'make.py')), /must be a directory or a \.gguf file/);

  const metadata = await readGgufMetadata(join(data, 'bytes.gguf'));
  const changed = (key: string, value: string | number): (() => unknown) => () => ggufTokenizer(new Map([...metadata, [`tokenizer.ggml.${key}`, value]]), 'x.gguf');
  t.throws(changed('pre', 'mystery'), /pre must be one of default, gpt-2, smollm, .*got mystery in x\.gguf/);
  t.throws(changed('model', 'bert'), /model must be one of gpt2, llama, got bert in x\.gguf/);
  t.throws(changed('eos_token_id', 99999), /eos_token_id must be below \d+, got 99999/);
  const without = new Map(metadata);
  without.delete('tokenizer.ggml.merges');
  t.throws(() => ggufTokenizer(without, 'x.gguf'), /merges must be there, got nothing in x\.gguf/);
  const tokenizer = await openTokenizer(join(data, 'bytes.gguf'));
  t.throws(() => tokenizer.decode([0.5]), /decode: token ids must be integers from 0, got 0\.5/);
});

interface ModelGolden {
  readonly tokenizer: { text: string; ids: number[]; decoded: string }[];
  readonly chat: { messages: { role: string; content: string }[]; rendered: string; ids: number[]; greedy: number[]; text: string };
  readonly continuation: { prompt: string; ids: number[]; greedy: number[]; text: string };
}

const model = join(import.meta.dirname, '..', '.models', 'SmolLM2-135M-Instruct.Q4_1.gguf');
const skip = existsSync(model) ? false : '.models/SmolLM2-135M-Instruct.Q4_1.gguf is not there';

t.test('SmolLM2-135M-Instruct: difficult strings, chat and continuation as transformers has them', { skip }, async (t) => {
  const golden: ModelGolden = JSON.parse(read(join(import.meta.dirname, 'data', 'smollm2-135m-golden.json')));
  const tokenizer = await openTokenizer(model);
  t.equal(tokenizer.vocabularySize, 49152);
  for (const { text, ids, decoded } of golden.tokenizer) {
    t.same(tokenizer.encode(text), ids, JSON.stringify(text));
    t.equal(tokenizer.decode(ids), decoded);
  }
  const { chat, continuation } = golden;
  const { bosToken, eosToken } = tokenizer;
  const rendered = renderChat(tokenizer.chatTemplate, chat.messages, { bosToken, eosToken, addGenerationPrompt: true });
  t.equal(rendered, chat.rendered);
  t.same(tokenizer.encode(rendered), chat.ids);
  t.equal(tokenizer.decode(chat.greedy), chat.text);
  t.same(tokenizer.encode(continuation.prompt), continuation.ids);
  t.equal(tokenizer.decode(continuation.greedy), continuation.text);
});

t.test('byte-pair encoding: merges made by hand', (t) => {
  const words = new Map([['low', 5], ['lower', 2], ['newest', 6], ['widest', 3]]);
  const { pieces, merges } = trainBpe(words, 256 + 6);
  // es and st occur 9 times, then lo and ow 7, then ne, ew and w+est 6: of equals the earliest pieces
  t.same(merges, [['e', 's'], ['es', 't'], ['l', 'o'], ['lo', 'w'], ['e', 'w'], ['n', 'ew']]);
  t.same(pieces.slice(256), ['es', 'est', 'lo', 'low', 'ew', 'new']);
  t.same(trainBpe(new Map([['aaaa', 1]]), 300).merges, [['a', 'a']], 'of aa, aa there is one pair, and one is not enough');
  t.throws(() => trainBpe(words, 255), { message: 'trainBpe: size must be a whole number from 256 to 1048575, got 255' });
  t.end();
});

t.test('byte-pair encoding: words, bytes and the tokenizer that opens them', async (t) => {
  t.equal(new Set(byteCharacters).size, 256);
  t.same([byteCharacters[32], byteCharacters[65], byteCharacters[10]], ['\u0120', 'A', '\u010a'], 'as GPT-2 spells space, A and newline');
  const text = "It's the cat, the éclair and the 12 men.\n\nThe end";
  t.same([...countWords(['the the'])], [['the', 1], ['\u0120the', 1]]);
  const directory = t.testdir(tokenizerFiles(trainBpe(countWords(Array.from({ length: 3 }, () => text)), 280)));
  const tokenizer = await openTokenizer(directory);
  const ids = tokenizer.encode(text);
  t.equal(tokenizer.decode(ids), text);
  t.ok(ids.length < 0.6 * text.length, 'the merges are used');
  t.equal(tokenizer.eosId, 0);
  t.equal(tokenizer.vocabularySize, 281);
});

t.test('paragraphs: joined lines, ASCII quotes', (t) => {
  t.equal(paragraphs('\n  One\n  line.\n\n \n“Two” — it’s\n'), 'One line.\n\n"Two" -- it\'s');
  t.end();
});
