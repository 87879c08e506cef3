import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { refuseOccupied } from '../atomic-write.ts';
import { findWeights } from '../checkpoint/checkpoint.ts';
import { convert, type ConversionReport } from '../convert.ts';
import { factorStrategies } from '../factor/index.ts';
import { placements } from '../factor/strategy.ts';
import { planStrategies } from '../plan/index.ts';
import { openTokenizer } from '../text/tokenizer.ts';
import { checkCalibration, statisticsOf } from './calibrate.ts';
import { defineCommand, modelArgument, type CommandIo } from './command.ts';
import { openNamedModel } from './model-path.ts';
import { calibrationOption, choice, namesOf, realNumber, refuseTogether, requiredText, threadsOption, wholeNumber } from './options.ts';
import { grouped, percent, table } from './table.ts';
import { withProgress } from './with-progress.ts';

/**
 * What must stand beside the weights so that the directory generates as its source did: tokenizer files, and
 * generation_config.json, which may name more end tokens. A source without a tokenizer gives none, and is told of.
 */
async function sideFiles(path: string, io: CommandIo): Promise<Readonly<Record<string, string>>> {
  const { file, format } = await findWeights(path);
  if (format === 'gguf') return (await openTokenizer(path)).files;
  const directory = dirname(file);
  const generation = join(directory, 'generation_config.json');
  const files: Record<string, string> = existsSync(generation) ? { 'generation_config.json': await readFile(generation, 'utf8') } : {};
  if (!existsSync(join(directory, 'tokenizer.json'))) {
    io.stderr.write(`convert: ${directory} has no tokenizer.json, so the converted model will have none\n`);
    return files;
  }
  return { ...files, ...(await openTokenizer(directory)).files };
}

function reportTable({ layers, cacheElementsPerToken, reduction, budget, plan, factor }: ConversionReport, out: string, conversion: string): string {
  const rows = layers.map(({ layer, rank, pairs, components, keyError, valueError, outputError, energyKept }) => [
    String(layer), String(rank), String(pairs), String(components), keyError.toFixed(4), valueError.toFixed(4),
    outputError === null ? '-' : outputError.toFixed(4), percent(energyKept),
  ]);
  return [
    table(['layer', 'rank', 'pairs', 'components', 'key error', 'value error', 'output error', 'energy kept'], rows),
    '',
    `${plan} and ${factor}; ${budget}`,
    `cache ${grouped(cacheElementsPerToken.before)} -> ${grouped(cacheElementsPerToken.after)} elements per token: ${percent(reduction)} less`,
    `written to ${out}; report in ${conversion}`,
  ].join('\n');
}

/** `convert MODEL --out DIR`: a source model to a directory with latent attention. */
export const convertModel = defineCommand({
  name: 'convert',
  summary: 'convert a model to latent attention',
  argument: modelArgument,
  options: {
    out: requiredText('--out <DIR>', 'directory to make; it must be absent or empty'),
    cacheShare: realNumber('--cache-share <S>', 'cached elements after over before (default 0.3125)', { least: 0, most: 1, above: true }),
    bytesPerToken: wholeNumber('--bytes-per-token <N>', 'instead of a share: bytes of one token in all layers, float32', { least: 1 }),
    rope: choice('--rope <NAME>', 'which RoPE pairs keep rotating', namesOf(planStrategies), undefined),
    pairs: wholeNumber('--pairs <N>', 'RoPE pairs that keep rotating, per KV head', { least: 1 }),
    factor: choice('--factor <NAME>', 'how keys and values are factorised', namesOf(factorStrategies), undefined),
    rank: wholeNumber('--rank <R>', 'width of the latent of a layer, instead of a share or bytes', { least: 1 }),
    singularValues: choice('--singular-values <SIDE>', 'which factor carries the singular values', namesOf(placements), undefined),
    calibration: calibrationOption,
    calibrationTokens: wholeNumber('--calibration-tokens <N>', 'tokens of the calibration text to use at most (default 32 windows of 1024)', { least: 2 }),
    seed: wholeNumber('--seed <S>', 'seed of the randomised SVD of very large layers (default 0)', { least: 0, most: 2 ** 32 - 1 }),
    threads: threadsOption,
  },
  async run(name, values, io) {
    const { out, rope: plan, factor, singularValues, calibration, calibrationTokens, seed, threads, cacheShare, bytesPerToken, pairs, rank } = values;
    refuseTogether(values, 'cacheShare', 'bytesPerToken', 'rank');
    const wish = { files: calibration, tokens: calibrationTokens, plan, factor, threads };
    checkCalibration(wish);
    await refuseOccupied(out); // before a download
    const model = await openNamedModel(name, io);
    const files = await sideFiles(model.path, io);
    const statistics = await statisticsOf(model, wish, io);
    const report = await withProgress('converting', 'layers', io, (onProgress) => convert(model, out, {
      budget: { cacheShare, bytesPerToken, pairs, rank },
      plan, factor, singularValues, statistics, seed, threads, files, onProgress,
      clock: io.clock,
      signal: io.signal,
    }));
    const directory = resolve(out);
    const conversion = join(directory, 'conversion.json');
    // The spectra are long and stay in conversion.json.
    const layers = report.layers.map(({ spectrum: _, ...layer }) => layer);
    return { json: { ...report, layers, out: directory, conversion }, text: reportTable(report, out, conversion) };
  },
});
