/** Ours, measured as the peers are: a prompt and greedy tokens behind it, by length, each in a session for that length. One line of JSON. */
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { cacheFormats, loadWeightCodes, openModel, openSession, sampleToken, seededRandom, weightCodesPass, weightFormats, weightPasses, type CacheFormat } from '../../lib/index.ts';
import { peakMb } from '../support/peak-memory.ts';
import { versions } from '../support/report.ts';
import { median } from '../support/turns.ts';

const string = { type: 'string' } as const;
const { values } = parseArgs({ options: { model: string, tokens: string, contexts: string, threads: string, steps: string, weights: { ...string, default: 'f32' }, codes: string, cache: { ...string, default: 'f32' } } });

function named<K extends string>(option: string, name: string, table: Readonly<Record<K, unknown>>): K {
  if (!Object.hasOwn(table, name)) throw new RangeError(`ours: --${option} must be one of ${Object.keys(table).join(', ')}, got ${name}`);
  return name as K; // the line above has looked
}

const cacheFormat: CacheFormat = named('cache', values.cache, cacheFormats);
const { model: path = '', tokens: tokenFile = '', contexts: lengths = '' } = values;
const contexts = lengths.split(',').map(Number);
const [threads, steps] = [Number(values.threads), Number(values.steps)];
const tokens = JSON.parse(readFileSync(tokenFile, 'utf8')) as readonly number[]; // written by prepare.py

const model = await openModel(path);
// Codes that `quantise` has made go before a format by name.
const passes = values.codes === undefined ? weightPasses(named('weights', values.weights, weightFormats)) : [await weightCodesPass(model, await loadWeightCodes(values.codes, model))];
const greedy = seededRandom(0);
const mostLikely = (logits: Float32Array): number => sampleToken(logits, {}, greedy);

/** A prompt of `length` tokens, and steps behind it. */
async function measure(length: number): Promise<{ tokens: number; prefillTokensPerSecond: number; stepMs: number }> {
  const session = openSession(model, { threads, cache: cacheFormat, passes, contextLength: length + steps, oneGraph: true });
  const cache = session.createCache();
  await session.prefill(cache, tokens.slice(0, 32));
  cache.truncate(0);
  let start = performance.now();
  let next = mostLikely(await session.prefill(cache, tokens.slice(0, length)));
  const prefillMs = performance.now() - start, times: number[] = [];
  await session.open('decode');
  for (let step = 0; step < steps; step++) {
    start = performance.now();
    next = mostLikely(await session.step(cache, next));
    times.push(performance.now() - start);
  }
  await session.close();
  return { tokens: length, prefillTokensPerSecond: (1000 * length) / prefillMs, stepMs: median(times) };
}

const rows = [];
for (const length of contexts) rows.push(await measure(length));
console.log(JSON.stringify({ versions: versions(), rows, peakMb: peakMb() }));
