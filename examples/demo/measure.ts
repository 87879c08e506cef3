import { finishGeneration, generate, openModel, openSession, openTokenizer, perplexity, renderChat, type Tokenizer } from '../../lib/index.ts';

export interface Measurements {
  /** Counted on the buffers of a cache. */
  readonly cacheBytesPerToken: number;
  /** Of the weights file. */
  readonly weightBytes: number;
  readonly perplexity: number;
  /** Windows of how many tokens the perplexity is over. */
  readonly windows: number;
  readonly window: number;
  /** By tokens of context: tokens per second, median of a few steps. */
  readonly decodeTokensPerSecond: ReadonlyMap<number, number>;
  /** Up to the longest of those contexts. */
  readonly prefillTokensPerSecond: number;
  readonly sample: string;
}

const STEPS = 24;
const WINDOWS = 4;
const QUESTION = 'Why is the sky blue?';

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN;

/** The contexts a model can hold; a short one gets half of what it can. */
function contextsFor(contextLength: number): readonly number[] {
  const fitting = [128, 4096].filter((context) => context + STEPS <= contextLength);
  return fitting.length > 0 ? fitting : [Math.floor(contextLength / 2)];
}

const promptOf = ({ chatTemplate, bosToken, eosToken }: Tokenizer): string =>
  (chatTemplate === null ? QUESTION : renderChat(chatTemplate, [{ role: 'user', content: QUESTION }], { bosToken, eosToken, addGenerationPrompt: true }));

/** Everything the table shows of one model. Sources and conversions go through the same calls. */
export async function measure(path: string, text: string): Promise<Measurements> {
  const [model, tokenizer] = [await openModel(path), await openTokenizer(path)];
  const ids = tokenizer.encode(text);

  const scoring = openSession(model);
  const window = Math.min(1024, scoring.contextLength);
  const windows = Math.max(1, Math.min(WINDOWS, Math.floor(ids.length / window)));
  const scored = await perplexity(scoring, ids, { window, windows });
  await scoring.close(); // one graph in memory at a time

  const session = openSession(model);
  const contexts = contextsFor(session.contextLength);
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
  const { text: sample } = await finishGeneration(generate(session, tokenizer.encode(promptOf(tokenizer)), { tokenizer, maxTokens: 48 }));
  await session.close();
  const weightBytes = [...model.checkpoint.tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  return { cacheBytesPerToken: cache.bytesPerToken, weightBytes, perplexity: scored.perplexity, windows, window, decodeTokensPerSecond, prefillTokensPerSecond, sample };
}
