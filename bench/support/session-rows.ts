/** One token through sessions of several models, timed in turn behind prompts of the same length. */
import { openSession, weightPasses, type CacheFormat, type Model, type WeightFormatName } from '../../lib/index.ts';
import type { CaseContext } from './case.ts';
import { someIds, weightBytes } from './layer-model.ts';
import { stepWork } from './model-work.ts';
import type { Row } from './rows.ts';
import { timedRow } from './timed-row.ts';
import { inTurn, type Contender } from './turns.ts';

export interface Contestant {
  readonly what: string;
  readonly model: Model;
  readonly cache: CacheFormat;
  readonly weights: WeightFormatName;
  /** The row that this one is held against, by its `what`; null for none. */
  readonly against: string | null;
}

interface Ready extends Contender {
  readonly cacheBytesPerToken: number;
  readonly prefillMs: number;
}

async function ready({ model, cache: format, weights }: Contestant, tokens: number, { threads, now }: CaseContext): Promise<Ready> {
  const session = openSession(model, { threads, cache: format, passes: weightPasses(weights), contextLength: tokens + 1 });
  const cache = session.createCache(tokens + 1);
  await session.open();
  const start = now();
  await session.prefill(cache, someIds(tokens, model));
  const prefillMs = now() - start;
  return {
    async run() {
      await session.step(cache, 1);
      cache.truncate(tokens);
    },
    close: () => session.close(),
    cacheBytesPerToken: cache.bytesPerToken, prefillMs,
  };
}

/** A row per contestant: a step behind `tokens` cached ones, and the speed of the one prompt before it. */
export async function sessionRows(contestants: readonly Contestant[], tokens: number, context: CaseContext): Promise<Row[]> {
  const opened: Ready[] = [];
  for (const contestant of contestants) opened.push(await ready(contestant, tokens, context));
  const times = await inTurn(opened, context);
  return contestants.map(({ what, model, cache, against }, i): Row => {
    const source = against === null ? undefined : times[contestants.findIndex((other) => other.what === against)];
    const { cacheBytesPerToken, prefillMs } = opened[i] ?? { cacheBytesPerToken: NaN, prefillMs: NaN };
    return timedRow(
      { what: `${what}, ${tokens} tokens`, ...stepWork(model, tokens, cache), times: times[i], ...(source === undefined ? {} : { source }) }, context.ceiling,
      { weightBytes: weightBytes(model), cacheBytesPerToken }, { tokensPerSecond: (1000 * tokens) / prefillMs },
    );
  });
}
