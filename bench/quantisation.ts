/**
 * npx tsx bench/quantisation.ts --model DIR --text FILE [--windows 4] [--weights f32,int8,...] [--caches f32,...] [--out docs/accuracy.md]
 *                         [--codes FILE] [--results FILE]
 *
 * Perplexity of a converted model for every type of weights and of cached rows, and for the weights in a file that `quantise` has
 * made (--codes). Prints a table for people, a last line of
 * JSON for machines, and rewrites its own section of --out; the file's other sections stay. Goes on with what --results
 * holds of the same model, text and windows.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { parseArgs } from 'node:util';
import {
  cacheFormats, loadWeightCodes, openModel, openSession, openTokenizer, packageFile, perplexity, weightCodesPass, weightFormats, type WeightFormat,
} from '../lib/index.ts';
import { replaceSection } from './support/section.ts';
import { markdownTable } from './support/table.ts';

const { values } = parseArgs({
  options: {
    model: { type: 'string' }, text: { type: 'string' }, windows: { type: 'string', default: '4' },
    weights: { type: 'string' }, caches: { type: 'string' }, codes: { type: 'string' }, results: { type: 'string', default: packageFile('converted', 'quantisation.json') }, out: { type: 'string', default: packageFile('docs', 'accuracy.md') },
  },
});

interface Result {
  readonly weights: string;
  readonly cache: string;
  readonly bytesPerToken: number;
  readonly perplexity: number;
}

/** Results by what they are of, kept in a file. */
function openResults(file: string, of: string): { readonly known: Result[]; add(result: Result): void } {
  const all: Record<string, Result[]> = existsSync(file) ? (JSON.parse(readFileSync(file, 'utf8')) as Record<string, Result[]>) : {};
  const known = (all[of] ??= []);
  return {
    known,
    add(result) {
      known.push(result);
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, JSON.stringify(all, null, 1));
    },
  };
}

/** The names asked for, or all. */
function chosen<K extends string>(all: Readonly<Record<K, unknown>>, given: string | undefined): K[] {
  const names = Object.keys(all).filter((name): name is K => Object.hasOwn(all, name));
  const wanted = given?.split(',') ?? names;
  const unknown = wanted.find((name) => !Object.hasOwn(all, name));
  if (unknown !== undefined) throw new TypeError(`quantisation: types must be among ${names.join(', ')}, got ${unknown}`);
  return names.filter((name) => wanted.includes(name));
}

async function main(): Promise<void> {
  const { model: path, text, out } = values, windows = Number(values.windows), window = 1024;
  if (path === undefined || text === undefined) throw new TypeError('quantisation: --model DIR and --text FILE are needed');
  const model = await openModel(path), tokenizer = await openTokenizer(path);
  const ids = tokenizer.encode(readFileSync(text, 'utf8'));
  const cacheNames = chosen(cacheFormats, values.caches);
  const rows: (WeightFormat & { readonly name: string })[] = chosen(weightFormats, values.weights).map((name) => ({ name, ...weightFormats[name] }));
  if (values.codes !== undefined) {
    const passes = [await weightCodesPass(model, await loadWeightCodes(values.codes, model))];
    rows.push({ name: 'int4, quantise', summary: '4 bits per 32 weights rounded by `quantise` for a calibration text, the embedding and rotated latents in 8 bits', passes });
  }
  const { known, add } = openResults(values.results, `${path}, ${text}, ${windows} windows`);
  const find = (weights: string, cache: string): Result | undefined => known.find((result) => result.weights === weights && result.cache === cache);
  for (const { name: weights, passes } of rows) {
    for (const cache of cacheNames.filter((name) => find(weights, name) === undefined)) {
      const session = openSession(model, { contextLength: window, cache, passes });
      try {
        const { bytesPerToken } = session.createCache();
        add({ weights, cache, bytesPerToken, perplexity: (await perplexity(session, ids, { window, windows })).perplexity });
      } finally {
        await session.close();
      }
      process.stderr.write(`${weights}, cache ${cache}: ${known.at(-1)?.perplexity.toFixed(4)}\n`);
    }
  }
  const base = find(rows[0]?.name ?? '', cacheNames[0] ?? '')?.perplexity ?? NaN;
  const cell = (weights: string, cache: string): string => {
    const value = find(weights, cache)?.perplexity ?? NaN;
    const change = 100 * (value / base - 1);
    return value === base ? value.toFixed(3) : `${value.toFixed(3)} (${change < 0 ? '' : '+'}${change.toFixed(2)} %)`;
  };
  const bytes = (cache: string): string => (find(rows[0]?.name ?? '', cache)?.bytesPerToken ?? NaN).toLocaleString('en');
  const table = markdownTable(['weights', ...cacheNames.map((cache) => `cache ${cache}, ${bytes(cache)} bytes a token`)], rows.map(({ name }) => [name, ...cacheNames.map((cache) => cell(name, cache))]));
  console.log(table);
  const section = `Perplexity of ${basename(path)} (${model.mla === null ? 'not converted' : `${model.mla.plan.strategy}, ${model.mla.factor.strategy}, rank ${model.mla.factor.rank}`}) on the first ${windows} windows of
${window.toLocaleString('en')} tokens of ${basename(text)}, in chunks of 256 that see the rows before them as the cache holds them. Changes are against ${rows[0]?.name} weights and ${cacheNames[0]} rows.
${rows.map(({ name, summary }) => `${name}: ${summary}.`).join(' ')} Made by \`bench/quantisation.ts\`.

${table}
`;
  writeFileSync(out, replaceSection(existsSync(out) ? readFileSync(out, 'utf8') : '# Accuracy\n', 'Weights and cache in fewer bits', section));
  console.log(JSON.stringify({ model: basename(path), windows, results: known }));
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
