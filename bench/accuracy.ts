/**
 * npm run accuracy -- --calibration FILE --text FILE [--model MODEL] [--windows 8] [--shares 0.5,0.3125,0.1875,0.125]
 *                     [--only NAME,...] [--work DIR] [--out docs/accuracy.md]
 *
 * Perplexity of every strategy at every share of the cache, without a training step. Goes on where it was stopped: results
 * and statistics lie in --work. Prints a table for people, a last line of JSON for machines, and rewrites --out.
 */
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { parseArgs } from 'node:util';
import { calibrationOf, collectStatistics, convert, openModel, openSession, openStatistics, openTokenizer, packageFile, perplexity, startProgress, type ConvertOptions } from '../lib/index.ts';
import { accuracyRows, type AccuracyRow } from './support/accuracy-rows.ts';
import { markdownTable } from './support/table.ts';

interface Results { [key: string]: number | null }

const { values } = parseArgs({
  options: {
    model: { type: 'string', default: packageFile('.models', 'SmolLM2-135M-Instruct.Q4_1.gguf') },
    calibration: { type: 'string' }, text: { type: 'string' },
    windows: { type: 'string', default: '8' }, shares: { type: 'string', default: '0.5,0.3125,0.1875,0.125' },
    only: { type: 'string' }, work: { type: 'string', default: packageFile('converted', 'accuracy') }, out: { type: 'string', default: packageFile('docs', 'accuracy.md') },
  },
});

async function measure(path: string, ids: readonly number[], windows: number): Promise<number> {
  const session = openSession(await openModel(path), { contextLength: 1024 });
  try {
    return (await perplexity(session, ids, { window: 1024, windows })).perplexity;
  } finally {
    await session.close();
  }
}

async function main(): Promise<void> {
  const { calibration: calibrationFile, text: textFile, work, out } = values;
  if (calibrationFile === undefined || textFile === undefined) throw new TypeError('accuracy: --calibration FILE and --text FILE are needed; they must be different texts');
  const windows = Number(values.windows);
  const shares = values.shares.split(',').map(Number);
  const only = values.only?.split(',') ?? null;
  const model = await openModel(values.model);
  const tokenizer = await openTokenizer(values.model);
  const ids = tokenizer.encode(readFileSync(textFile, 'utf8'));
  const calibration = await calibrationOf(model, tokenizer, [{ name: basename(calibrationFile), text: readFileSync(calibrationFile, 'utf8') }]);
  mkdirSync(work, { recursive: true });

  const statisticsDirectory = join(work, 'statistics');
  const bar = startProgress('statistics', model.config.layers, 'layers');
  for await (const { layer } of collectStatistics(model, calibration, { directory: statisticsDirectory })) bar.update(layer + 1);
  bar.stop();
  const statistics = await openStatistics(statisticsDirectory, calibration.identity);

  const resultsFile = join(work, `results-${windows}.json`);
  const results: Results = existsSync(resultsFile) ? (JSON.parse(readFileSync(resultsFile, 'utf8')) as Results) : {};
  const keep = (key: string, value: number | null): void => {
    results[key] = value;
    writeFileSync(resultsFile, JSON.stringify(results, null, 1));
  };
  if (results.source === undefined) keep('source', await measure(values.model, ids, windows));

  const one = async (row: AccuracyRow, share: number): Promise<number | null> => {
    const directory = join(work, 'model');
    rmSync(directory, { recursive: true, force: true });
    const options: ConvertOptions = { ...row.options(calibration, statistics), budget: { cacheShare: share } };
    try {
      await convert(model, directory, options);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error; // a strategy that cannot go this low says so
      process.stderr.write(`${row.name} at ${share}: ${error.message}\n`);
      return null;
    }
    return measure(directory, ids, windows);
  };
  const rows = accuracyRows.filter(({ name }) => only === null || only.includes(name));
  for (const share of shares) {
    for (const row of rows) {
      const key = `${row.name} @ ${share}`;
      if (results[key] !== undefined) continue;
      const value = await one(row, share);
      keep(key, value);
      process.stderr.write(`${key}: ${value === null ? 'refused' : value.toFixed(2)}\n`);
    }
  }
  rmSync(join(work, 'model'), { recursive: true, force: true });

  const cell = (value: number | null | undefined): string => (value === undefined ? '' : value === null ? 'refused' : value >= 1000 ? Math.round(value).toLocaleString('en') : value.toFixed(1));
  const isWhole = accuracyRows.every((row) => shares.every((share) => results[`${row.name} @ ${share}`] !== undefined));
  const table = markdownTable(
    ['strategy', 'source', ...shares.map((share) => `share ${share}`)],
    accuracyRows.map((row) => [`${row.name} (${row.paper})`, row.needs, ...shares.map((share) => cell(results[`${row.name} @ ${share}`]))]),
  );
  console.log(table);
  const page = `# Accuracy

Perplexity of ${basename(values.model)} after conversion, zero training steps, at equal shares of the cache. Source model: ${results.source?.toFixed(2)}.
Calibrated on ${basename(calibrationFile)} (${calibration.identity.tokens.toLocaleString('en')} tokens), evaluated on the first ${windows} windows of 1,024 tokens of ${basename(textFile)}.
Made by \`npm run accuracy -- --calibration ${basename(calibrationFile)} --text ${basename(textFile)} --windows ${windows}\`. The second column says what a strategy looks at; refused: the budget is below what the strategy can do.${isWhole ? '' : ' Empty cells have not been run yet.'}

${table}
`;
  const rest = existsSync(out) ? readFileSync(out, 'utf8').split('\n## ').slice(1).map((section) => `\n## ${section}`).join('') : '';
  writeFileSync(out, page + rest);
  console.log(JSON.stringify({ model: basename(values.model), windows, results }));
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
