/** Calibration text of a conversion: from options to windows of tokens. */
import { existsSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { factorStrategies, type FactorStrategyName } from '../factor/index.ts';
import type { Model } from '../models/model.ts';
import { packageFile } from '../package-file.ts';
import { planStrategies, type PlanStrategyName } from '../plan/index.ts';
import { calibrationOf, type Calibration, type CalibrationText } from '../statistics/calibration.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { UsageError } from './command.ts';
import { readText } from './text-file.ts';

export interface CalibrationWish {
  /** Files of text; false refuses calibration; undefined takes the text that ships with the package. */
  readonly files: readonly string[] | false | undefined;
  /** Tokens to use at most. */
  readonly tokens: number | undefined;
}

/** Refuses, before any work, what cannot go together: strategies that look at text, and none. Errors: UsageError. */
export function checkCalibration({ files, tokens }: CalibrationWish, plan: PlanStrategyName | undefined, factor: FactorStrategyName | undefined): void {
  if (files !== false) return;
  if (tokens !== undefined) throw new UsageError('--calibration-tokens and --no-calibration exclude each other, got both');
  const needy = [
    plan !== undefined && planStrategies[plan].needsStatistics ? [`--rope ${plan}`] : [],
    factor !== undefined && factorStrategies[factor].needsStatistics ? [`--factor ${factor}`] : [],
  ].flat();
  if (needy.length > 0) throw new UsageError(`${needy.join(' and ')} must have calibration text, got --no-calibration`);
}

/** Paths of the calibration texts that ship with the package. */
async function shippedTexts(): Promise<string[]> {
  const directory = packageFile('calibration');
  const names = existsSync(directory) ? await readdir(directory) : [];
  return names.filter((name) => name.endsWith('.txt')).sort().map((name) => join(directory, name));
}

/** The files' texts, or those that ship with the package; none for false. `option` names them in errors: as readText. */
export async function textsFor(option: string, files: CalibrationWish['files']): Promise<CalibrationText[]> {
  const texts: CalibrationText[] = [];
  for (const file of files === false ? [] : files ?? await shippedTexts()) texts.push({ name: basename(file), text: await readText(option, file) });
  return texts;
}

/** Reads the texts and cuts them into windows; undefined where there are none. Errors: as textsFor and calibrationOf. */
export async function calibrationFor(model: Model, tokenizer: Tokenizer, { files, tokens }: CalibrationWish): Promise<Calibration | undefined> {
  const texts = await textsFor('convert: --calibration', files);
  if (texts.length === 0) return undefined;
  if (tokens === undefined) return calibrationOf(model, tokenizer, texts);
  const window = Math.min(1024, model.config.maxPositions, tokens);
  return calibrationOf(model, tokenizer, texts, { window, windows: Math.floor(tokens / window) });
}
