/** SmolLM2-135M-Instruct against what transformers computed from the same weights; see test/data/smollm2-135m-golden.json. */
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { z } from 'zod';
import { openModel } from '../lib/models/model.ts';
import { finishGeneration, generate } from '../lib/session/generate.ts';
import { perplexity } from '../lib/session/perplexity.ts';
import { openSession } from '../lib/session/session.ts';
import { renderChat } from '../lib/text/chat.ts';
import { openTokenizer } from '../lib/text/tokenizer.ts';

const local = (path: string): string => fileURLToPath(new URL(`../${path}`, import.meta.url));
const modelPath = local('.models/SmolLM2-135M-Instruct.Q4_1.gguf');
/** The text of the golden perplexity is not part of the repository. */
const wikitext = local('../shared/data/wikitext-2-valid.txt');

const ids = z.array(z.int());
const goldenSchema = z.object({
  tokenizer: z.array(z.object({ text: z.string(), ids, decoded: z.string() })),
  chat: z.object({ messages: z.array(z.object({ role: z.string(), content: z.string() })), rendered: z.string(), ids, greedy: ids, text: z.string() }),
  continuation: z.object({ prompt: z.string(), ids, greedy: ids, text: z.string() }),
  logits: z.object({ ids, top5_ids: z.array(ids), top5_logits: z.array(z.array(z.number())) }),
  perplexity: z.object({ window: z.int(), nll_per_window: z.array(z.number()), perplexity: z.number() }),
});
const golden = goldenSchema.parse(JSON.parse(readFileSync(local('test/data/smollm2-135m-golden.json'), 'utf8')));
const skip = existsSync(modelPath) ? false : `${modelPath} is absent: see README.md on how to get it`;

t.test('SmolLM2-135M-Instruct', { skip }, async (t) => {
  const model = await openModel(modelPath);
  const tokenizer = await openTokenizer(modelPath);
  const session = openSession(model);
  t.teardown(() => session.close());

  t.test('token ids, and the text they give back', async (t) => {
    for (const { text, ids: wanted, decoded } of golden.tokenizer) {
      t.same(tokenizer.encode(text), wanted, JSON.stringify(text));
      t.equal(tokenizer.decode(wanted), decoded);
    }
  });

  t.test('the five largest logits of 64 positions', async (t) => {
    const { data } = await session.logits(session.createCache(64), golden.logits.ids);
    const { vocab } = model.config;
    let largest = 0;
    for (const [position, wantedIds] of golden.logits.top5_ids.entries()) {
      const row = data.subarray(position * vocab, (position + 1) * vocab);
      const ranked = Array.from(row.keys()).sort((a, b) => (row[b] ?? 0) - (row[a] ?? 0) || a - b).slice(0, 5);
      for (const [i, id] of wantedIds.entries()) {
        const logit = golden.logits.top5_logits[position]?.[i] ?? NaN;
        largest = Math.max(largest, Math.abs((row[id] ?? NaN) - logit));
      }
      if (ranked.join() !== wantedIds.join()) t.same(ranked, wantedIds, `position ${position}`);
    }
    // float32 sums of 576 and 1536 products through 30 layers, in another order than the reference
    t.ok(largest < 5e-4, `largest difference ${largest}`);
  });

  t.test('greedy text, and the chat template', async (t) => {
    const { prompt, ids: promptIds, greedy, text } = golden.continuation;
    t.same(tokenizer.encode(prompt), promptIds);
    const told = await finishGeneration(generate(session, promptIds, { tokenizer, maxTokens: greedy.length }));
    t.same(told.ids, greedy);
    t.equal(told.text, text);
    t.equal(told.cacheBytes, (promptIds.length + greedy.length - 1) * 46_080);
    const { messages, rendered, ids: chatIds, greedy: answer, text: answerText } = golden.chat;
    const { chatTemplate, bosToken, eosToken } = tokenizer;
    t.equal(renderChat(chatTemplate, messages, { bosToken, eosToken, addGenerationPrompt: true }), rendered);
    t.same(tokenizer.encode(rendered), chatIds);
    const answered = await finishGeneration(generate(session, chatIds, { tokenizer }));
    t.same(answered.ids, answer);
    t.equal(tokenizer.decode(answered.ids), answerText);
    t.match(answered, { finishReason: 'stop-token', text: answerText.replace('<|im_end|>', '') });
  });

  t.test('perplexity of the first window of WikiText-2', { skip: existsSync(wikitext) ? false : `${wikitext} is absent` }, async (t) => {
    const { window, nll_per_window: wanted } = golden.perplexity;
    // The first window only: all eight take a minute. 8 characters a token are more than enough for one window.
    const all = tokenizer.encode(readFileSync(wikitext, 'utf8').slice(0, 8 * window));
    const { nllPerWindow } = await perplexity(session, all, { window, windows: 1 });
    t.ok(Math.abs((nllPerWindow[0] ?? NaN) - (wanted[0] ?? NaN)) < 1e-4, `${nllPerWindow[0]} against ${wanted[0]}`);
  });
});
