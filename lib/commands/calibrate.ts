/** Calibration text of a conversion: from options to statistics of every layer. */
import { basename } from 'node:path';
import { factorStrategies, type FactorStrategyName } from '../factor/index.ts';
import type { Model } from '../models/model.ts';
import { planStrategies, type PlanStrategyName } from '../plan/index.ts';
import { calibrationOf, type CalibrationText } from '../statistics/calibration.ts';
import { collectStatistics } from '../statistics/collect-statistics.ts';
import type { LayerStatistics } from '../statistics/layer-statistics.ts';
import { openTokenizer } from '../text/tokenizer.ts';
import { UsageError, type CommandIo } from './command.ts';
import { readText } from './text-file.ts';
import { withProgress } from './with-progress.ts';

export interface CalibrationWish {
  /** Files of text; false refuses calibration; undefined leaves it open. */
  readonly files: readonly string[] | false | undefined;
  /** Tokens to use at most. */
  readonly tokens: number | undefined;
  readonly plan: PlanStrategyName | undefined;
  readonly factor: FactorStrategyName | undefined;
  readonly threads: number | undefined;
}

/** Errors: UsageError where a strategy needs text and there is none, or tokens are counted of no text. */
export function checkCalibration({ files, tokens, plan, factor }: CalibrationWish): void {
  if (tokens !== undefined && (files === undefined || files === false)) throw new UsageError('--calibration-tokens needs --calibration FILE, got none');
  const needy = [plan !== undefined && planStrategies[plan].needsStatistics ? `--rope ${plan}` : [], factor !== undefined && factorStrategies[factor].needsStatistics ? `--factor ${factor}` : []].flat();
  if (needy.length > 0 && (files === undefined || files === false)) {
    throw new UsageError(`${needy.join(' and ')} needs calibration text, got ${files === false ? '--no-calibration' : 'no --calibration FILE'}`);
  }
}

/** Statistics of every layer on the text of the files; undefined without files. */
export async function statisticsOf(model: Model, { files, tokens, threads }: CalibrationWish, io: CommandIo): Promise<LayerStatistics[] | undefined> {
  if (files === undefined || files === false) return undefined;
  const texts: CalibrationText[] = [];
  for (const file of files) texts.push({ name: basename(file), text: await readText('convert: --calibration', file) });
  const window = Math.min(1024, model.config.maxPositions, tokens ?? Infinity);
  const calibration = await calibrationOf(model, await openTokenizer(model.path), texts, { window, ...(tokens === undefined ? {} : { windows: Math.floor(tokens / window) }) });
  return withProgress('calibrating', 'windows', io, async (onProgress) => {
    const statistics: LayerStatistics[] = [];
    for await (const layer of collectStatistics(model, calibration, { threads, signal: io.signal, onProgress })) statistics.push(layer);
    return statistics;
  });
}
