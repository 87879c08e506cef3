/** A conversion and its healing as one piece of work that can be stopped and gone on with. */
import { existsSync } from 'node:fs';
import { mkdir, readFile, rename, rm, rmdir } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { refuseOccupied, writeFileAtomic } from './atomic-write.ts';
import { convert, type ConversionReport, type ConvertOptions } from './convert.ts';
import { fingerprintOf } from './models/fingerprint.ts';
import { openModel, type Model } from './models/model.ts';
import { reportHtml } from './report/report-html.ts';
import { heal, healingRates, healingRecipe, type HealOptions } from './train/heal.ts';
import { checkRecipe, recipeSchema, type Recipe } from './train/save.ts';

export interface ConvertAndHealOptions extends ConvertOptions {
  readonly heal: Pick<HealOptions, 'tokens' | 'text' | 'sequenceLength' | 'train' | 'learningRate' | 'onUpdate'>;
}

/** Where the work lies until it is done: beside `out`. */
export const healingDirectory = (out: string): string => `${resolve(out)}.healing`;

/**
 * Converts `model` and heals the conversion with `model` as teacher; `out` appears when both are done, a directory as
 * `convert` makes it, its report with a `healing`. Until then the conversion and the last save of the healing lie in
 * `out`.healing: after a stop or a kill, a second call with the same options goes on there, and ends with the weights of
 * one that was not stopped.
 * Errors: an occupied `out`, work begun with other options, and all of `convert` and `heal`.
 */
export async function convertAndHeal(model: Model, out: string, options: ConvertAndHealOptions): Promise<ConversionReport> {
  const { heal: wish, ...conversion } = options;
  await refuseOccupied(out);
  const work = healingDirectory(out), converted = join(work, 'conversion'), healed = join(work, 'healed');
  await begin(work, await requestOf(model, options));
  if (!isModel(converted)) await convert(model, converted, conversion);
  if (!isModel(healed)) {
    const report = await reportOf(converted);
    const { seed, threads, signal, clock } = conversion;
    await heal(model, await openModel(converted), healed, {
      ...wish, seed, signal, clock, resume: true, ...(threads === undefined ? {} : { runtime: { threads } }),
      files: async (healing) => {
        const whole: ConversionReport = { ...report, healing };
        return { ...conversion.files, 'conversion.json': `${JSON.stringify(whole, null, 1)}\n`, 'report.html': await reportHtml(whole) };
      },
    });
  }
  if (existsSync(out)) await rmdir(out); // refuses, and so protects, what appeared in it meanwhile
  await rename(healed, out);
  await rm(work, { recursive: true, force: true });
  return reportOf(out);
}

/** config.json is written last. */
const isModel = (directory: string): boolean => existsSync(join(directory, 'config.json'));

async function reportOf(directory: string): Promise<ConversionReport> {
  return JSON.parse(await readFile(join(directory, 'conversion.json'), 'utf8')) as ConversionReport; // `convert` or the healing above wrote it
}

/** Everything that decides the weights. */
async function requestOf(model: Model, { heal: wish, ...options }: ConvertAndHealOptions): Promise<Recipe> {
  const { budget, plan, factor, singularValues, fold, adjustRanks, latentGroups, calibration, refit, seed } = options;
  const told = (value: unknown): string | null => (value === undefined || value === null ? null : JSON.stringify(value));
  return {
    model: await fingerprintOf(model), budget: told(budget), plan: told(plan), factor: told(factor), singularValues: told(singularValues), fold: told(fold),
    adjustRanks: told(adjustRanks), latentGroups: told(latentGroups), calibration: told(calibration?.identity), refit: told(refit), seed: told(seed),
    recipe: told({ ...healingRecipe, rates: healingRates }), tokens: wish.tokens, sequenceLength: told(wish.sequenceLength), train: told(wish.train), learningRate: told(wish.learningRate),
    text: wish.text.data.map(({ source }) => `${source.name} (${source.length} tokens)`).join(', '),
  };
}

/** Makes the work directory, or finds it as this request left it. */
async function begin(work: string, request: Recipe): Promise<void> {
  const file = join(work, 'request.json');
  await mkdir(work, { recursive: true });
  if (existsSync(file)) {
    checkRecipe('convertAndHeal', recipeSchema.parse(JSON.parse(await readFile(file, 'utf8'))), request, work);
  } else {
    await refuseOccupied(work);
    await writeFileAtomic(file, `${JSON.stringify(request, null, 1)}\n`);
  }
}
