import { finishGeneration, generate, openModel, openSession, openTokenizer, perplexity, renderChat, type SamplingOptions, type Tokenizer } from '../../lib/index.ts';

/** What a model says. */
export interface Quality {
  readonly perplexity: number;
  /** Windows of how many tokens the perplexity is over. */
  readonly windows: number;
  readonly window: number;
  readonly prompt: string;
  readonly answer: string;
}

/** What a model costs. */
export interface Cost {
  /** Counted on the buffers of a cache. */
  readonly cacheBytesPerToken: number;
  /** Of the weights file. */
  readonly weightBytes: number;
  /** By tokens of context: tokens per second, median of a few steps. */
  readonly decodeTokensPerSecond: ReadonlyMap<number, number>;
  /** Up to the longest of those contexts. */
  readonly prefillTokensPerSecond: number;
}

const STEPS = 24;
const WINDOWS = 4;

/** Chat models answer greedily; the others go on from a beginning, drawing words, since the likeliest words of a small model go round in circles. */
function promptOf({ chatTemplate, bosToken, eosToken }: Tokenizer): { readonly shown: string; readonly prompt: string; readonly sampling: SamplingOptions } {
  const question = 'Why is the sky blue?', beginning = 'It was a fine morning, and';
  if (chatTemplate === null) return { shown: beginning, prompt: beginning, sampling: { temperature: 0.7, topP: 0.9 } };
  return { shown: question, prompt: renderChat(chatTemplate, [{ role: 'user', content: question }], { bosToken, eosToken, addGenerationPrompt: true }), sampling: {} };
}

/** Perplexity of a text and a sample. Sources and conversions go through the same calls. */
export async function quality(path: string, text: string): Promise<Quality> {
  const [model, tokenizer] = [await openModel(path), await openTokenizer(path)];
  const ids = tokenizer.encode(text);
  const scoring = openSession(model);
  const window = Math.min(1024, scoring.contextLength);
  const windows = Math.max(1, Math.min(WINDOWS, Math.floor(ids.length / window)));
  const scored = await perplexity(scoring, ids, { window, windows });
  await scoring.close(); // one graph in memory at a time
  const session = openSession(model);
  const { shown, prompt, sampling } = promptOf(tokenizer);
  const { text: answer } = await finishGeneration(generate(session, tokenizer.encode(prompt), { tokenizer, maxTokens: 48, ...sampling }));
  await session.close();
  return { perplexity: scored.perplexity, windows, window, prompt: shown, answer };
}

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN;

/** Cache, weights and speeds. `contexts`: tokens of context at which steps are timed, ascending, each with room for a few steps. */
export async function cost(path: string, text: string, contexts: readonly number[]): Promise<Cost> {
  const [model, tokenizer] = [await openModel(path), await openTokenizer(path)];
  const ids = tokenizer.encode(text);
  const session = openSession(model);
  const cache = session.createCache(Math.max(...contexts) + STEPS);
  const textIds = (count: number): readonly number[] => Array.from({ length: count }, (_, i) => ids[i % ids.length] ?? 0);
  await session.prefill(cache, textIds(2)); // opens the graphs, which is not to be timed
  await session.step(cache, ids[0] ?? 0);
  cache.truncate(0);
  const decodeTokensPerSecond = new Map<number, number>();
  let prefillTokensPerSecond = NaN;
  for (const context of contexts) {
    const fresh = textIds(context).slice(cache.length);
    const start = performance.now();
    await session.prefill(cache, fresh);
    prefillTokensPerSecond = (1000 * fresh.length) / (performance.now() - start);
    const times: number[] = [];
    for (const id of textIds(STEPS)) {
      const before = performance.now();
      await session.step(cache, id);
      times.push(performance.now() - before);
    }
    decodeTokensPerSecond.set(context, 1000 / median(times));
    cache.truncate(context);
  }
  await session.close();
  const weightBytes = [...model.checkpoint.tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  return { cacheBytesPerToken: cache.bytesPerToken, weightBytes, decodeTokensPerSecond, prefillTokensPerSecond };
}

/** A short context and a long one, as far as the model can hold them. */
export async function contextsOf(path: string): Promise<readonly number[]> {
  const room = (await openModel(path)).config.maxPositions - STEPS;
  return [...new Set([Math.min(128, room), Math.min(4096, room)])];
}
