import { join, resolve } from 'node:path';
import { refuseOccupied } from '../atomic-write.ts';
import { convertAndHeal } from '../convert-and-heal.ts';
import { convert, type ConversionReport, type ConvertOptions } from '../convert.ts';
import { factorStrategies } from '../factor/index.ts';
import { placements } from '../factor/strategy.ts';
import { planStrategies } from '../plan/index.ts';
import { relayModel, type RelayReport } from '../released/relay.ts';
import { healingText, type HealingText } from '../train/healing-text.ts';
import { trainableSets } from '../train/trainable.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { calibrationFor, checkCalibration, textsFor } from './calibrate.ts';
import { defineCommand, modelArgument, UsageError, type OptionSpec } from './command.ts';
import { openNamedModel } from './model-path.ts';
import {
  cacheOption, calibrationOption, choice, flag, flagOf, namesOf, off, pairTableOption, realNumber, refuseTogether, requiredText, text, texts, threadsOption, wholeNumber,
} from './options.ts';
import { sideFiles } from './side-files.ts';
import { grouped, percent, table } from './table.ts';
import { trainingProgress } from './training-progress.ts';
import { longWork, withProgress } from './with-progress.ts';

const savings = ({ cacheElementsPerToken: { before, after }, reduction }: Pick<ConversionReport, 'cacheElementsPerToken' | 'reduction'>): string =>
  `cache ${grouped(before)} -> ${grouped(after)} elements per token: ${percent(reduction)} less`;

const error = (value: number | null): string => (value === null ? '-' : value.toFixed(4));

const healed = (healing: ConversionReport['healing']): string[] => (healing === null ? [] : [[
  `healed on ${grouped(healing.tokens)} tokens of ${healing.texts.join(', ')}`,
  ...(healing.perplexity === null ? [] : [`perplexity of text kept aside ${grouped(healing.perplexity.before)} -> ${grouped(healing.perplexity.after)} (source ${grouped(healing.perplexity.source)})`]),
  `${grouped(healing.seconds)} s`,
].join('; ')]);

function conversionText(report: ConversionReport, out: string): string {
  const { layers, budget, plan, factor, calibration, healing, seconds } = report;
  const rows = layers.map(({ layer, rank, pairs, components, keyError, valueError, outputError, energyKept }) =>
    [String(layer), String(rank), pairs === null ? '-' : String(pairs), String(components), error(keyError), error(valueError), error(outputError), percent(energyKept)]);
  const texts = calibration === null ? 'by the weights alone' : `on ${grouped(calibration.tokens)} tokens of ${calibration.texts.map(({ name }) => name).join(', ')}${calibration.refit ? ', outputs refitted' : ''}`;
  return [
    table(['layer', 'rank', 'pairs', 'components', 'key error', 'value error', 'output error', 'energy kept'], rows),
    '', `${plan} and ${factor}, ${texts}; ${budget}`, `${savings(report)}; ${seconds.toFixed(1)} s`, ...healed(healing), `written to ${out}; report in ${join(out, 'conversion.json')}`,
  ].join('\n');
}

const relayText = (report: RelayReport, out: string): string =>
  [`${report.released} checkpoint written in our layout, its function unchanged`, savings(report), `written to ${out}`].join('\n');

/** A number of frequencies, or 'search', or undefined. */
const foldOption: OptionSpec<number | 'search' | undefined> = {
  flags: '--fold <N|search>',
  help: "neighbouring frequencies taken together, for rope ro-rope; search takes the fold of least perplexity on the calibration text",
  read(raw) {
    if (raw === undefined || raw === 'search') return raw;
    const fold = typeof raw === 'string' ? Number(raw) : NaN;
    if (!Number.isSafeInteger(fold) || fold < 1) throw new UsageError(`--fold must be a whole number of 1 or more, or search, got ${JSON.stringify(raw)}`);
    return fold;
  },
};

/** Errors: a model without a tokenizer, which no text can heal. */
async function healingTextFor(tokenizer: Tokenizer | null, files: readonly string[] | false | undefined, path: string): Promise<HealingText> {
  if (tokenizer === null) throw new Error(`convert: --heal needs a tokenizer, got none in ${path}`);
  return healingText(tokenizer, await textsFor('convert: --heal-text', files));
}

/** Options that say how to convert; a checkpoint that is latent attention already takes none. */
const choices = ['cacheShare', 'bytesPerToken', 'rope', 'pairs', 'components', 'fold', 'factor', 'rank', 'adjustRanks', 'singularValues', 'calibration', 'calibrationTokens', 'statistics', 'latentGroups', 'heal'] as const;

/** `convert MODEL --out DIR`: a source model to a directory with latent attention; another format's checkpoint re-laid. */
export const convertModel = defineCommand({
  name: 'convert',
  summary: 'convert a model to latent attention',
  argument: modelArgument,
  options: {
    out: requiredText('--out <DIR>', 'directory to make; it must be absent or empty'),
    cacheShare: realNumber('--cache-share <S>', 'cached elements after over before (default 0.3125)', { least: 0, most: 1, above: true }),
    bytesPerToken: wholeNumber('--bytes-per-token <N>', 'instead of a share: bytes of one token in all layers', { least: 1 }),
    cache: { ...cacheOption, help: `${cacheOption.help}; what --bytes-per-token is counted in` },
    rope: choice('--rope <NAME>', 'what keeps rotating (default: by calibration text or not)', namesOf(planStrategies), undefined),
    pairs: wholeNumber('--pairs <N>', 'RoPE pairs that keep rotating per KV head, for the strategies that choose pairs', { least: 1 }),
    components: wholeNumber('--components <N>', 'rotating components of a layer, for the strategies that combine pairs', { least: 1 }),
    fold: foldOption,
    factor: choice('--factor <NAME>', 'how keys and values are factorised (default: by calibration text or not)', namesOf(factorStrategies), undefined),
    rank: wholeNumber('--rank <R>', 'width of the latent of a layer, instead of a share or bytes', { least: 1 }),
    adjustRanks: flag('--adjust-ranks', "with factor care: allot the layers' ranks by their spectra, within the same budget"),
    singularValues: choice('--singular-values <SIDE>', 'which factor carries the singular values', namesOf(placements), undefined),
    calibration: calibrationOption,
    calibrationTokens: wholeNumber('--calibration-tokens <N>', 'tokens of the calibration text to use at most (default 32 windows of 1024)', { least: 2 }),
    statistics: text('--statistics <DIR>', 'keep the statistics of the calibration text here: reused when they fit, gone on with after a stop'),
    refit: off('--no-refit', 'do not fit the output projections to the source on the calibration text'),
    heal: wholeNumber('--heal <TOKENS>', 'train the conversion on so many tokens, with its source as teacher; a second call goes on after a stop', { least: 1 }),
    healText: texts('--heal-text <FILE...>', 'text to heal on (default: the calibration text)'),
    healTrain: choice('--heal-train <WHICH>', 'weights that learn while healing (default all; attention-and-norms takes less memory)', namesOf(trainableSets), undefined),
    pairTable: pairTableOption,
    latentGroups: wholeNumber('--latent-groups <N>', 'groups of KV heads with a latent of their own: same bytes, fewer FLOPs when decoding (default 1)', { least: 1 }),
    seed: wholeNumber('--seed <S>', 'seed of the randomised SVD of very large layers (default 0)', { least: 0, most: 2 ** 32 - 1 }),
    threads: threadsOption,
  },
  async run(name, values, io) {
    const { out, rope: plan, factor, singularValues, calibration: files, calibrationTokens: tokens, statistics, refit, latentGroups, seed, threads, pairTable, heal, healText, healTrain } = values;
    const { cacheShare, bytesPerToken, pairs, components, fold, rank, adjustRanks, cache } = values;
    refuseTogether(values, 'cacheShare', 'bytesPerToken', 'rank');
    refuseTogether(values, 'pairs', 'components');
    if (statistics !== undefined && files === false) throw new UsageError('--statistics and --no-calibration exclude each other, got both');
    if (cache !== 'f32' && bytesPerToken === undefined) throw new UsageError(`--cache ${cache} says what --bytes-per-token is counted in, got none`);
    if (heal === undefined && healText.length > 0) throw new UsageError('--heal-text says what --heal trains on, got no --heal');
    if (heal === undefined && healTrain !== undefined) throw new UsageError('--heal-train says what --heal trains, got no --heal');
    if (heal !== undefined && files === false && healText.length === 0) throw new UsageError('--heal needs --heal-text where there is no calibration text');
    checkCalibration({ files, tokens }, plan, factor);
    await refuseOccupied(out); // before a download
    const model = await openNamedModel(name, io, { pairTable });
    const { tokenizer, files: sides } = await sideFiles(model);
    const directory = resolve(out);
    const places = { out: directory, conversion: join(directory, 'conversion.json') };
    if (model.released !== null) {
      const given = choices.filter((option) => values[option] !== undefined && values[option] !== false);
      if (given.length > 0) throw new UsageError(`a ${model.released} checkpoint is written as it is and takes no choices, got ${given.map(flagOf).join(', ')}`);
      const report = await withProgress('writing', 'tensors', io, (onProgress) => relayModel(model, out, { files: sides, onProgress, signal: io.signal }));
      return { json: { ...report, ...places }, text: relayText(report, out) };
    }
    if (tokenizer === null) io.stderr.write(`convert: ${model.path} has no tokenizer.json, so the converted model will have none${files === false ? '' : ', and no text guides the conversion'}\n`);
    if (tokenizer === null && files !== undefined && files !== false) throw new Error(`convert: --calibration needs a tokenizer, got none in ${model.path}`);
    // A converted model is convert's to refuse, before its text is read.
    const calibration = tokenizer === null || model.mla !== null ? undefined : await calibrationFor(model, tokenizer, { files, tokens });
    const healing = heal === undefined ? null : { tokens: heal, train: healTrain, text: await healingTextFor(tokenizer, healText.length > 0 ? healText : files, model.path), onUpdate: trainingProgress(io) };
    const bar = longWork('converting', model.config.layers, 'layers', io);
    const options: ConvertOptions = {
      budget: { cacheShare, bytesPerToken, cache, pairs, components, rank },
      plan, fold, factor, adjustRanks, singularValues, latentGroups, calibration, statisticsDirectory: statistics, refit: refit && calibration !== undefined, seed, threads, files: sides,
      onProgress: (done) => bar.update(done), clock: io.clock, signal: io.signal,
    };
    const report = await (healing === null ? convert(model, out, options) : convertAndHeal(model, out, { ...options, heal: healing })).finally(() => bar.stop());
    for (const warning of report.warnings) io.stderr.write(`convert: ${warning}\n`);
    // The spectra are long and stay in conversion.json.
    const layers = report.layers.map(({ spectrum: _, ...layer }) => layer);
    return { json: { ...report, layers, ...places }, text: conversionText(report, out) };
  },
});
