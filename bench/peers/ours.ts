/** Ours, measured as the peers are: a prompt and greedy tokens behind it, by length. One line of JSON. */
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { cacheFormats, openModel, openSession, weightFormats, weightPasses, type CacheFormat, type WeightFormatName } from '../../lib/index.ts';
import { peakMb } from '../support/peak-memory.ts';
import { versions } from '../support/report.ts';
import { median } from '../support/turns.ts';

const string = { type: 'string' } as const;
const { values } = parseArgs({ options: { model: string, tokens: string, contexts: string, threads: string, steps: string, weights: { ...string, default: 'f32' }, cache: { ...string, default: 'f32' } } });

function named<K extends string>(option: string, name: string, table: Readonly<Record<K, unknown>>): K {
  if (!Object.hasOwn(table, name)) throw new RangeError(`ours: --${option} must be one of ${Object.keys(table).join(', ')}, got ${name}`);
  return name as K; // the line above has looked
}

const cacheFormat: CacheFormat = named('cache', values.cache, cacheFormats);
const weights: WeightFormatName = named('weights', values.weights, weightFormats);
const { model: path = '', tokens: tokenFile = '', contexts: lengths = '' } = values;
const contexts = lengths.split(',').map(Number);
const [threads, steps] = [Number(values.threads), Number(values.steps)];
const tokens = JSON.parse(readFileSync(tokenFile, 'utf8')) as readonly number[]; // written by prepare.py

const session = openSession(await openModel(path), { threads, cache: cacheFormat, passes: weightPasses(weights), contextLength: (contexts.at(-1) ?? 0) + steps });
const cache = session.createCache();
await session.open();
await session.prefill(cache, tokens.slice(0, 32));
await session.step(cache, 0);
cache.truncate(0);

const mostLikely = (logits: Float32Array): number => logits.indexOf(logits.reduce((most, logit) => Math.max(most, logit), -Infinity));
const rows = [];
let prefillMs = 0;
for (const length of contexts) {
  let start = performance.now();
  let next = mostLikely(await session.prefill(cache, tokens.slice(cache.length, length)));
  prefillMs += performance.now() - start;
  const times: number[] = [];
  for (let step = 0; step < steps; step++) {
    start = performance.now();
    next = mostLikely(await session.step(cache, next));
    times.push(performance.now() - start);
  }
  cache.truncate(length);
  rows.push({ tokens: length, prefillTokensPerSecond: (1000 * length) / prefillMs, stepMs: median(times) });
}
console.log(JSON.stringify({ versions: versions(), rows, peakMb: peakMb() }));
await session.close();
