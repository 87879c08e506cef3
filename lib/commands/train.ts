import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { refuseOccupied } from '../atomic-write.ts';
import { losses } from '../train/losses.ts';
import { schedules } from '../train/schedule.ts';
import { openTokenSource, type TokenSource } from '../train/token-source.ts';
import { train, trainingDirectory } from '../train/train.ts';
import { trainableSets } from '../train/trainable.ts';
import { openTokenizer, type Tokenizer } from '../text/tokenizer.ts';
import { defineCommand, modelArgument, UsageError } from './command.ts';
import { openNamedModel } from './model-path.ts';
import { choice, flag, namesOf, providerOption, realNumber, refuseTogether, requiredText, text, texts, threadsOption, wholeNumber } from './options.ts';
import { sideFiles } from './side-files.ts';
import { grouped, listing } from './table.ts';
import { trainingProgress } from './training-progress.ts';

/** `corpus.txt=0.7`: a file and its share of the sequences. */
function dataOf(spec: string): { readonly path: string; readonly weight: number | undefined } {
  const found = /^(.*)=([0-9.eE+-]+)$/.exec(spec);
  if (found === null || existsSync(spec)) return { path: spec, weight: undefined };
  const weight = Number(found[2]);
  if (!(weight > 0 && Number.isFinite(weight))) throw new UsageError(`--data must be FILE or FILE=WEIGHT with a positive weight, got ${spec}`);
  return { path: found[1] ?? spec, weight };
}

/** `train MODEL --data FILE... --out DIR`: trains from text, or heals a converted model with its source as teacher. */
export const trainModel = defineCommand({
  name: 'train',
  summary: 'train a model, or heal a converted one with its source as teacher',
  argument: modelArgument,
  options: {
    data: texts('--data <FILE...>', 'text, .jsonl with a `text` per line, or raw tokens (.u16, .u32); FILE=WEIGHT sets its share'),
    out: requiredText('--out <DIR>', 'directory to make; it must be absent or empty, but for --resume'),
    teacher: text('--teacher <MODEL>', 'model to learn from'),
    loss: choice('--loss <NAME>', 'what is made small (default next-token, with a teacher teacher)', namesOf(losses), undefined),
    train: choice('--train <WHICH>', 'weights that learn (default all; attention for the losses of layers)', namesOf(trainableSets), undefined),
    steps: wholeNumber('--steps <N>', 'updates', { least: 1 }),
    tokens: wholeNumber('--tokens <N>', 'instead of steps: tokens to train on at least', { least: 1 }),
    sequenceLength: wholeNumber('--sequence-length <N>', 'tokens of a sequence (default 512, or the context where that is shorter)', { least: 2 }),
    batch: wholeNumber('--batch <N>', 'sequences per run of the graph (default 1)', { least: 1 }),
    accumulate: wholeNumber('--accumulate <N>', 'runs of the graph per update (default 1)', { least: 1 }),
    learningRate: realNumber('--learning-rate <X>', 'peak rate (default 3e-4; with --relative-rates 1e-3)', { least: 0, above: true }),
    relativeRates: flag('--relative-rates', 'take the rate relative to the root mean square of each weight'),
    schedule: choice('--schedule <NAME>', 'how the rate changes', namesOf(schedules), 'warmup-stable-decay'),
    warmupSteps: wholeNumber('--warmup-steps <N>', 'updates up to the peak rate (default a fiftieth of all)', { least: 0 }),
    weightDecay: realNumber('--weight-decay <X>', 'decay of matrices (default 0.1)', { least: 0 }),
    clip: realNumber('--clip <X>', 'largest norm of a gradient (default 1)', { least: 0, above: true }),
    evalText: text('--eval-text <FILE>', 'text kept aside, whose next-token loss is measured at every save'),
    saveEvery: wholeNumber('--save-every <N>', 'updates between saves (default: none before the end)', { least: 1 }),
    resume: flag('--resume', 'go on from the last save in --out'),
    recompute: flag('--recompute', 'compute layers twice instead of keeping them: less memory, a third more work'),
    seed: wholeNumber('--seed <S>', 'seed of the order of the data (default 0)', { least: 0, most: 2 ** 32 - 1 }),
    threads: threadsOption,
    provider: providerOption,
  },
  async run(name, values, io) {
    const { data, out, steps, tokens, batch = 1, accumulate = 1, seed, threads, provider, evalText, resume } = values;
    if (data.length === 0) throw new UsageError('--data <FILE...> must be given');
    refuseTogether(values, 'steps', 'tokens');
    if (steps === undefined && tokens === undefined) throw new UsageError('--steps or --tokens must be given');
    if (values.loss !== undefined && losses[values.loss].needsTeacher && values.teacher === undefined) throw new UsageError(`--loss ${values.loss} needs --teacher`);
    const files = data.map(dataOf);
    if (!resume) await refuseOccupied(out); // before a download
    const model = await openNamedModel(name, io);
    const teacher = values.teacher === undefined ? null : await openNamedModel(values.teacher, io);
    const sequenceLength = values.sequenceLength ?? Math.min(512, model.config.maxPositions);
    if (sequenceLength > model.config.maxPositions) throw new UsageError(`--sequence-length must be at most the context of ${model.config.maxPositions}, got ${sequenceLength}`);
    const beside = await sideFiles(model);
    const tokenizer = async (): Promise<Tokenizer> => beside.tokenizer ?? openTokenizer(model.path); // which says what is missing
    const source = async (path: string): Promise<TokenSource> =>
      openTokenSource(path, { tokenizer, vocab: model.config.vocab, endOfText: /\.(jsonl|ndjson)$/i.test(path) ? (await tokenizer()).eosId : null });
    const sources = [];
    for (const { path, weight } of files) sources.push({ source: await source(path), ...(weight === undefined ? {} : { weight }) });
    const total = steps ?? Math.ceil((tokens ?? 1) / (batch * accumulate * sequenceLength));
    const result = await train(model, out, {
      data: sources, steps: total, sequenceLength, batch, accumulate, teacher, loss: values.loss, train: values.train, seed, resume, recompute: values.recompute,
      learningRate: values.learningRate, relativeRates: values.relativeRates, schedule: values.schedule, warmupSteps: values.warmupSteps, saveEvery: values.saveEvery,
      optimiser: { ...(values.weightDecay === undefined ? {} : { weightDecay: values.weightDecay }), ...(values.clip === undefined ? {} : { clipNorm: values.clip }) },
      evaluation: evalText === undefined ? null : await source(evalText),
      runtime: { provider, ...(threads === undefined ? {} : { threads }) },
      files: beside.files,
      onUpdate: trainingProgress(io), signal: io.signal, clock: io.clock,
    });
    const { evaluation } = result;
    return {
      json: { ...result, out: resolve(out), metrics: join(resolve(trainingDirectory(out)), 'metrics.jsonl'), curve: join(resolve(trainingDirectory(out)), 'curve.svg') },
      text: listing([
        ['steps', grouped(result.steps)], ['tokens', grouped(result.tokens)], ['loss, moving mean', result.loss.toFixed(4)],
        ...(evaluation === null ? [] : [['evaluation, nats', `${evaluation.before.toFixed(4)} -> ${evaluation.after.toFixed(4)}`] as const]),
        ['tokens per second', grouped(Math.round(result.tokensPerSecond))], ['written to', out],
      ]),
    };
  },
});
