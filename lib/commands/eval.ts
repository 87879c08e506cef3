import { openSession } from '../session/session.ts';
import { perplexity } from '../session/perplexity.ts';
import { openTokenizer } from '../text/tokenizer.ts';
import { defineCommand, modelArgument } from './command.ts';
import { openNamedModel } from './model-path.ts';
import { cacheOption, pairTableOption, providerOption, requiredText, threadsOption, wholeNumber } from './options.ts';
import { grouped, listing } from './table.ts';
import { readText } from './text-file.ts';
import { passesFor, weightsOption } from './weights.ts';
import { withProgress } from './with-progress.ts';

/** `eval MODEL --text FILE`: perplexity over windows side by side, without BOS. */
export const evaluate = defineCommand({
  name: 'eval',
  summary: 'measure perplexity on a text',
  argument: modelArgument,
  options: {
    text: requiredText('--text <FILE>', 'text to predict, UTF-8'),
    window: wholeNumber('--window <N>', 'tokens of a window (default 1024, or the context where that is shorter)', { least: 2 }),
    windows: wholeNumber('--windows <N>', 'windows from the start of the text (default: all whole ones)', { least: 1 }),
    weights: weightsOption,
    cache: cacheOption,
    pairTable: pairTableOption,
    threads: threadsOption,
    provider: providerOption,
  },
  async run(name, { text: file, window, windows, threads, weights, provider, cache, pairTable }, io) {
    const text = await readText('eval: --text', file);
    const model = await openNamedModel(name, io, { pairTable });
    // The whole text: a prefix of it does not always give a prefix of its ids.
    const ids = (await openTokenizer(model.path)).encode(text);
    const session = openSession(model, { signal: io.signal, threads, provider, cache, passes: await passesFor(model, weights) });
    try {
      const { tokensPerSecond, ...result } = await withProgress('predicting', 'windows', io, (onProgress) =>
        perplexity(session, ids, { window, windows, clock: io.clock, onProgress }));
      const cacheBytesPerToken = session.createCache(1).bytesPerToken;
      const json = { ...result, cacheBytesPerToken, tokensPerSecond, weights, cache };
      return {
        json,
        text: listing([
          ['perplexity', result.perplexity.toFixed(4)],
          ['nats per token', Math.log(result.perplexity).toFixed(4)],
          ['windows', `${result.windows} of ${result.window} tokens`],
          ['cache bytes per token', grouped(cacheBytesPerToken)],
          ['tokens per second', grouped(tokensPerSecond)],
        ]),
      };
    } finally {
      await session.close();
    }
  },
});
