/** Text generation over a session: prefill once, then one token at a time from the cache. */
import { seededRandom } from '../random.ts';
import { byteLength } from '../tensor.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import type { Cache } from './cache.ts';
import { checkSampling, sampleToken, type SamplingOptions } from './sampler.ts';
import type { Session } from './session.ts';
import { stopStrings } from './stop-strings.ts';

export interface GenerateOptions extends SamplingOptions {
  /** Turns ids into text; without it only ids are given and stop strings are refused. */
  readonly tokenizer?: Pick<Tokenizer, 'stream'> | undefined;
  /** Tokens to generate at most. Default 128. */
  readonly maxTokens?: number | undefined;
  /** Seed of the draws, 0..2^32-1; not used at temperature 0. Default 0. */
  readonly seed?: number | undefined;
  /** Ids that end the text. Default: the model's own end tokens. */
  readonly stopIds?: readonly number[] | undefined;
  /** Texts that end the text; what is given out ends before them. */
  readonly stopStrings?: readonly string[] | undefined;
  /** Generation goes on behind what this cache holds. Default: a new one with room for prompt and new tokens. */
  readonly cache?: Cache | undefined;
  readonly onPrefill?: ((doneTokens: number) => void) | undefined;
  /** Stops between two tokens or chunks of the prompt: the signal's reason is thrown. */
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds; default performance.now. */
  readonly clock?: (() => number) | undefined;
}

/** One token and the text that became certain with it: '' while a character, or what may be a stop string, is incomplete. */
export interface GeneratedToken {
  readonly id: number;
  readonly text: string;
}

export type FinishReason = 'stop-token' | 'stop-string' | 'max-tokens' | 'context-full';

export interface GenerationResult {
  /** All text given out; special tokens have none. '' without a tokenizer. */
  readonly text: string;
  /** All ids generated, the stop token included. */
  readonly ids: readonly number[];
  readonly finishReason: FinishReason;
  readonly promptTokens: number;
  readonly prefillTokensPerSecond: number;
  /** Tokens per second through the decode graph; null when the prompt's own logits were enough. */
  readonly decodeTokensPerSecond: number | null;
  /** Bytes of the cache's buffers that hold rows of tokens. */
  readonly cacheBytes: number;
  /** Bytes of the cache's buffers. */
  readonly cacheBytesAllocated: number;
}

const perSecond = (count: number, milliseconds: number): number => count / (Math.max(milliseconds, 1e-6) / 1000);

/**
 * Generates behind `promptIds` (as they are: no BOS is added). Yields every token as it comes; the generator's return value
 * is the whole result, see `finishGeneration`. The texts yielded, joined, are the result's text. Speeds are measured after
 * the graphs are open.
 * Errors: no prompt, a prompt longer than the context, settings out of range, the signal's reason.
 */
export async function* generate(session: Session, promptIds: readonly number[], options: GenerateOptions = {}): AsyncGenerator<GeneratedToken, GenerationResult, undefined> {
  const { maxTokens = 128, stopIds = session.model.config.eosIds, clock = () => performance.now(), tokenizer, signal } = options;
  checkSampling(options);
  if (!Number.isInteger(maxTokens) || maxTokens < 1) throw new RangeError(`generate: maxTokens must be 1 or more, got ${maxTokens}`);
  if (promptIds.length === 0) throw new RangeError('generate: a prompt must have at least one token, got none');
  if (tokenizer === undefined && (options.stopStrings ?? []).length > 0) throw new TypeError('generate: stop strings need a tokenizer, got none');
  const held = options.cache?.length ?? 0;
  if (held + promptIds.length > session.contextLength) {
    const behind = held === 0 ? '' : ` behind ${held} cached ones`;
    throw new RangeError(`generate: prompt must fit the context of ${session.contextLength} tokens, got ${promptIds.length}${behind}`);
  }
  const cache = options.cache ?? session.createCache(Math.min(session.contextLength, promptIds.length + maxTokens));
  const room = Math.min(session.contextLength, cache.capacity);
  const random = seededRandom(options.seed ?? 0);
  const stop = new Set(stopIds);
  const texts = tokenizer?.stream({ skipSpecial: true }) ?? { push: () => '', end: () => '' };
  const scan = stopStrings(options.stopStrings ?? []);

  await session.open('prefill');
  signal?.throwIfAborted();
  const prefillStart = clock();
  let logits = await session.prefill(cache, promptIds, (done) => {
    options.onPrefill?.(done);
    signal?.throwIfAborted();
  });
  const prefillMs = clock() - prefillStart;

  const ids: number[] = [];
  let text = '';
  let decodeMs = 0;
  let finishReason: FinishReason | null = null;
  while (finishReason === null) {
    const id = sampleToken(logits, options, random);
    ids.push(id);
    let fresh = '';
    if (stop.has(id)) finishReason = 'stop-token';
    else {
      const { text: certain, stopped } = scan.push(texts.push(id));
      fresh = certain;
      if (stopped) finishReason = 'stop-string';
      else if (ids.length === maxTokens) finishReason = 'max-tokens';
      else if (cache.length === room) finishReason = 'context-full';
    }
    if (finishReason !== null && finishReason !== 'stop-string') {
      const last = scan.push(texts.end());
      if (last.stopped) finishReason = 'stop-string';
      fresh += last.stopped ? last.text : last.text + scan.end();
    }
    text += fresh;
    yield { id, text: fresh };
    if (finishReason !== null) break;
    signal?.throwIfAborted();
    await session.open('decode');
    const stepStart = clock();
    logits = await session.step(cache, id);
    decodeMs += clock() - stepStart;
  }
  return {
    text, ids, finishReason: finishReason ?? 'max-tokens', promptTokens: promptIds.length,
    prefillTokensPerSecond: perSecond(promptIds.length, prefillMs),
    decodeTokensPerSecond: ids.length > 1 ? perSecond(ids.length - 1, decodeMs) : null,
    cacheBytes: Object.values(cache.feeds()).reduce((sum, rows) => sum + byteLength(rows), 0),
    cacheBytesAllocated: cache.bytes,
  };
}

/** Runs a generation to its end and returns its result; `onToken` sees every token as it comes. */
export async function finishGeneration(
  generation: AsyncGenerator<GeneratedToken, GenerationResult, undefined>, onToken?: (token: GeneratedToken) => void,
): Promise<GenerationResult> {
  for (;;) {
    const next = await generation.next();
    if (next.done === true) return next.value;
    onToken?.(next.value);
  }
}
