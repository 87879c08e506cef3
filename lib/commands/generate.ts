import type { Model } from '../models/model.ts';
import { finishGeneration, generate } from '../session/generate.ts';
import { savePrompt } from '../session/prompt-cache.ts';
import { openSession } from '../session/session.ts';
import { renderChat } from '../text/chat.ts';
import { openTokenizer, type Tokenizer } from '../text/tokenizer.ts';
import { defineCommand, modelArgument, UsageError } from './command.ts';
import { openNamedModel } from './model-path.ts';
import { cacheOption, flag, pairTableOption, providerOption, realNumber, refuseTogether, text, texts, threadsOption, wholeNumber } from './options.ts';
import { startPrompt } from './prompt-cache.ts';
import { grouped } from './table.ts';
import { readText } from './text-file.ts';
import { passesFor, weightsOption } from './weights.ts';
import { longWork } from './with-progress.ts';

/** Prompt text to ids: as a chat message, or with BOS where the model's own tokenizer puts one. */
function encodePrompt(tokenizer: Tokenizer, prompt: string, chat: boolean): readonly number[] {
  if (chat) {
    const { bosToken, eosToken, chatTemplate } = tokenizer;
    return tokenizer.encode(renderChat(chatTemplate, [{ role: 'user', content: prompt }], { bosToken, eosToken, addGenerationPrompt: true }));
  }
  const ids = tokenizer.encode(prompt);
  return tokenizer.addsBos && tokenizer.bosId !== null ? [tokenizer.bosId, ...ids] : ids;
}

/** Exactly `count` ids: cut, or repeated from the start. */
function fitTokens(ids: readonly number[], count: number): readonly number[] {
  if (ids.length === 0) throw new Error(`generate: --prompt-tokens ${count} must have a prompt to repeat, got an empty one`);
  return Array.from({ length: count }, (_, i) => ids[i % ids.length] ?? 0);
}

/** The model's end tokens and the tokenizer's, which a converted chat model may name in one place only. */
const stopIdsOf = ({ config }: Model, { eosId }: Tokenizer): number[] => [...new Set([...config.eosIds, ...(eosId === null ? [] : [eosId])])];

/** `generate MODEL`: text from the cache; streamed, or one JSON object at the end. */
export const generateText = defineCommand({
  name: 'generate',
  summary: 'generate text from a prompt',
  decodes: true,
  argument: modelArgument,
  options: {
    prompt: text('--prompt <TEXT>', 'the prompt'),
    promptFile: text('--prompt-file <FILE>', 'a file with the prompt, UTF-8'),
    promptTokens: wholeNumber('--prompt-tokens <N>', 'bring the prompt to exactly N tokens: cut, or repeated from its start when shorter (to measure long contexts)', { least: 1 }),
    chat: flag('--chat', 'send the prompt as a user message through the chat template of the model'),
    maxTokens: wholeNumber('--max-tokens <N>', 'tokens to generate at most (default 128)', { least: 1 }),
    temperature: realNumber('--temperature <T>', 'randomness; 0 takes the likeliest token (default 0)', { least: 0 }),
    topK: wholeNumber('--top-k <K>', 'draw among the K likeliest tokens', { least: 1 }),
    topP: realNumber('--top-p <P>', 'draw among the likeliest tokens of mass P', { least: 0, most: 1, above: true }),
    seed: wholeNumber('--seed <S>', 'seed of the draws (default 0)', { least: 0, most: 2 ** 32 - 1 }),
    promptCache: text('--prompt-cache <FILE>', 'start from the rows of this file when the prompt starts with the tokens it holds; otherwise write those of the prompt there'),
    stop: texts('--stop <TEXT...>', 'texts that end the generation'),
    weights: weightsOption,
    cache: cacheOption,
    pairTable: pairTableOption,
    threads: threadsOption,
    provider: providerOption,
  },
  async run(name, values, io) {
    const { prompt, promptFile, promptTokens, chat, threads, weights, provider, cache, pairTable, temperature, topK, topP, seed, maxTokens = 128, promptCache } = values;
    refuseTogether(values, 'prompt', 'promptFile');
    refuseTogether(values, 'chat', 'promptTokens');
    if (temperature === undefined || temperature === 0) {
      if (topK !== undefined || topP !== undefined || seed !== undefined) throw new UsageError('--top-k, --top-p and --seed need a --temperature above 0, got none');
    }
    if (values.stop.includes('')) throw new UsageError('--stop must be a text of at least one character, got an empty one');
    if (prompt === undefined && promptFile === undefined) throw new UsageError('--prompt TEXT or --prompt-file FILE must be given');
    const given = prompt ?? await readText('generate: --prompt-file', promptFile ?? '');
    const model = await openNamedModel(name, io, { pairTable });
    const tokenizer = await openTokenizer(model.path);
    const encoded = encodePrompt(tokenizer, given, chat);
    const ids = promptTokens === undefined ? encoded : fitTokens(encoded, promptTokens);
    const capacity = Math.min(model.config.maxPositions, ids.length + maxTokens);
    // No longer than needed: short contexts are faster. A file of rows may hold a longer prompt than this one.
    const contextLength = promptCache === undefined ? capacity : model.config.maxPositions;
    const session = openSession(model, { signal: io.signal, threads, provider, cache, contextLength, oneGraph: true, passes: await passesFor(model, weights) });
    const { cache: rows, cachedTokens, fromFile } = await startPrompt(promptCache, ids, capacity, session);
    const prefill = longWork('reading the prompt', ids.length - cachedTokens, 'tokens', io);
    try {
      const result = await finishGeneration(generate(session, ids.slice(cachedTokens), {
        tokenizer, cache: rows, temperature, topK, topP, seed, maxTokens,
        stopIds: stopIdsOf(model, tokenizer), stopStrings: values.stop, signal: io.signal, clock: io.clock, onPrefill: prefill.update,
      }), (token) => {
        if (!io.json) io.out(token.text);
      });
      const { prefillTokensPerSecond, decodeTokensPerSecond } = result;
      if (!io.json) {
        io.out('\n');
        io.stderr.write(`${result.finishReason}; prefill ${grouped(prefillTokensPerSecond)} tokens/s, decode ${decodeTokensPerSecond === null ? '-' : grouped(decodeTokensPerSecond)} tokens/s, cache ${grouped(result.cacheBytes)} bytes\n`);
      }
      if (promptCache !== undefined && !fromFile) await savePrompt(promptCache, rows, ids, session, { signal: io.signal });
      return { json: { ...result, promptTokens: ids.length, promptTokensFromCache: cachedTokens, weights, cache }, text: '' };
    } finally {
      prefill.stop();
      await session.close();
    }
  },
});
