/**
 * npm run demo [-- --model MODEL] [--out DIR] [--share S] [--heal TOKENS]
 *
 * Converts a model so that its cache keeps a share of its bytes (default 0.3125), heals the conversion by a short training
 * with the source as teacher, measures all three side by side, and leaves both directories. MODEL is a directory, a .gguf
 * file or a Hub id; default the small model of this repository. Everything printed was measured in this run.
 */
import { readFileSync } from 'node:fs';
import { availableParallelism, loadavg } from 'node:os';
import { basename, dirname, relative } from 'node:path';
import { parseArgs } from 'node:util';
import { packageFile, type ConversionReport } from '../lib/index.ts';
import { embeddedModel, findModel } from './demo/find-model.ts';
import { healModel } from './demo/heal-model.ts';
import { keptDirectory, refuseForeign } from './demo/kept-directory.ts';
import { contextsOf, cost, quality } from './demo/measure.ts';
import { tableOf } from './demo/table.ts';
import { runCommand } from './run-command.ts';

const nameOf = (model: string): string => (model === embeddedModel() ? basename(dirname(model)) : basename(model).replace(/\.gguf$/, ''));

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { model: { type: 'string' }, out: { type: 'string' }, share: { type: 'string', default: '0.3125' }, heal: { type: 'string', default: '16384' } } });
  const share = Number(values.share), tokens = Number(values.heal);
  if (!(share > 0 && share <= 1)) throw new RangeError(`demo: --share must be above 0 and at most 1, got ${values.share}`);
  if (!(Number.isInteger(tokens) && tokens > 0)) throw new RangeError(`demo: --heal must be a whole number of tokens of 1 or more, got ${values.heal}`);
  const start = performance.now();
  const text = readFileSync(packageFile('examples', 'text', 'wonderland.txt'), 'utf8');
  const model = await findModel(values.model);
  const directory = values.out ?? packageFile('converted', `${nameOf(model)}-mla-${share}`), healedDirectory = `${directory}-healed`;
  for (const out of [directory, healedDirectory]) refuseForeign(out); // before minutes of work
  const shown = (path: string): string => relative(process.cwd(), path);

  console.log(`Model: ${shown(model)}\n\n1. Converting: npm run cli -- convert ${shown(model)} --out ${shown(directory)} --cache-share ${share}`);
  const printed = await keptDirectory(directory, (fresh) => runCommand(['convert', model, '--out', fresh, '--cache-share', String(share), '--json']));
  const { plan, factor, budget, seconds } = JSON.parse(printed) as ConversionReport; // the command's documented output
  console.log(`   ${plan} + ${factor}: ${budget}; ${seconds.toFixed(1)} s\n\n2. Healing: ${tokens.toLocaleString('en')} tokens of the calibration text, the source as teacher`);
  const healing = await keptDirectory(healedDirectory, (fresh) => healModel(model, directory, fresh, tokens));
  console.log(`   loss ${healing.loss}, learns: ${healing.train}; ${healing.seconds.toFixed(1)} s\n\n3. Measuring, on a text that none of them was fitted to\n`);
  const contexts = await contextsOf(model);
  const source = { ...await quality(model, text), cost: await cost(model, text, contexts) };
  const converted = { ...await quality(directory, text), cost: await cost(directory, text, contexts) };
  const healed = { ...await quality(healedDirectory, text), cost: null };
  console.log(tableOf({ source, converted, healed }));
  console.log(`\nSpeeds: ${availableParallelism()} cores, float32, load average ${loadavg()[0]?.toFixed(1)}; on a busy machine only the ratios say something.`);
  console.log(`\n"${source.prompt}"`);
  for (const [name, { answer }] of Object.entries({ source, converted, healed })) console.log(`  ${`${name}:`.padEnd(10)} ${JSON.stringify(answer)}`);
  const ratio = (after: number): string => (after / source.perplexity).toFixed(2);
  console.log(`\nPerplexity is ${ratio(converted.perplexity)} x the source's after the conversion and ${ratio(healed.perplexity)} x after the healing; both have the same cache, ${(100 * converted.cost.cacheBytesPerToken / source.cost.cacheBytesPerToken).toFixed(1)} % of
the source's. More healing brings more back: convert --heal TOKENS. The models are in ${shown(directory)} and
${shown(healedDirectory)}. All of this took ${((performance.now() - start) / 1000).toFixed(0)} s.`);
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
