/**
 * npm run demo [-- --model MODEL] [--out DIR] [--share S]
 *
 * Converts a model so that its cache keeps a share of its bytes (default 0.3125), measures source and conversion side by
 * side, and leaves the converted directory. Everything printed was measured in this run.
 */
import { readFileSync } from 'node:fs';
import { availableParallelism, loadavg } from 'node:os';
import { basename, join, relative } from 'node:path';
import { parseArgs } from 'node:util';
import { packageFile } from '../lib/index.ts';
import { convertModel, refuseForeign, type Conversion } from './demo/convert-model.ts';
import { findModel } from './demo/find-model.ts';
import { measure, type Measurements } from './demo/measure.ts';

const rounded = (value: number): string => (value >= 100 ? Math.round(value).toLocaleString('en') : value.toPrecision(3));
const change = (before: number, after: number): string => `${(after / before).toFixed(after / before < 0.995 ? 3 : 2)} x`;

function row(name: string, before: number, after: number): readonly string[] {
  return [name, rounded(before), rounded(after), change(before, after)];
}

function printTable(before: Measurements, after: Measurements): void {
  const decode = [...before.decodeTokensPerSecond].map(([context, speed]) =>
    row(`decode at ${context} tokens of context, tokens/s`, speed, after.decodeTokensPerSecond.get(context) ?? NaN));
  const rows = [
    ['', 'source', 'converted', 'converted / source'],
    row('cache, bytes per token', before.cacheBytesPerToken, after.cacheBytesPerToken),
    row(`perplexity (${before.windows} x ${before.window} tokens)`, before.perplexity, after.perplexity),
    ...decode,
    row('prefill, tokens/s', before.prefillTokensPerSecond, after.prefillTokensPerSecond),
    row('weights on disk, MB (converted: float32)', before.weightBytes / 1e6, after.weightBytes / 1e6),
  ];
  const widths = [0, 1, 2, 3].map((column) => Math.max(...rows.map((cells) => (cells[column] ?? '').length)));
  for (const cells of rows) console.log(cells.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join('  '));
}

/** What the perplexities mean, in words. */
function verdict({ plan, factor, calibration }: Conversion, before: Measurements, after: Measurements): string {
  const how = `${plan} + ${factor}`;
  const ratio = after.perplexity / before.perplexity;
  if (ratio < 3) {
    return `Without a training step the conversion (${how}${calibration === null ? '' : ', guided by calibration text'}) has ${ratio.toFixed(2)} x the perplexity of its source: it speaks the
language and has lost some of what it knew. A short training (the paper's 0.3 to 0.6 % of the pretraining data) is what brings that back.`;
  }
  const bytes = 'Cache bytes and speed are already those of a trained conversion.';
  if (calibration !== null) return `At this share of the cache ${how} needs a training before the model is usable. ${bytes}`;
  return `The converted model is not usable as it is. Dropping most of RoPE and factorising keys and values by the weights alone (${how})
wrecks an untrained model at this share of the cache: perplexity goes to thousands, in the original MHA2MLA code too. What brings it back:
strategies that look at calibration text, and a short training (the paper's 0.3 to 0.6 % of the pretraining data). ${bytes}`;
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { model: { type: 'string' }, out: { type: 'string' }, share: { type: 'string', default: '0.3125' } } });
  const share = Number(values.share);
  if (!(share > 0 && share <= 1)) throw new RangeError(`demo: --share must be above 0 and at most 1, got ${values.share}`);
  const text = readFileSync(packageFile('examples', 'text', 'wonderland.txt'), 'utf8');
  const model = await findModel(values.model);
  const directory = values.out ?? packageFile('converted', `${basename(model).replace(/\.gguf$/, '')}-mla-${share}`);
  refuseForeign(directory); // before minutes of work
  const shown = (path: string): string => relative(process.cwd(), path);
  console.log(`Model: ${shown(model)}\n\n1. Converting: npm run cli -- convert ${shown(model)} --out ${shown(directory)} --cache-share ${share}`);
  const conversion = await convertModel(model, directory, share);
  console.log(`   ${conversion.plan} + ${conversion.factor}: ${conversion.budget}; ${conversion.seconds.toFixed(1)} s\n\n2. Measuring the source`);
  const before = await measure(model, text);
  console.log('3. Measuring the conversion\n');
  const after = await measure(directory, text);
  printTable(before, after);
  console.log(`\nSpeeds: ${availableParallelism()} cores, float32, load average ${loadavg()[0]?.toFixed(1)}; on a busy machine only the ratios say something.`);
  console.log(`\n"Why is the sky blue?"\n  source:    ${JSON.stringify(before.sample)}\n  converted: ${JSON.stringify(after.sample)}\n`);
  console.log(`${verdict(conversion, before, after)}\n\nThe converted model is in ${shown(directory)}; the report in ${shown(join(directory, 'conversion.json'))}.`);
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
});
