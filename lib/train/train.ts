/** A whole training run: batches, updates, evaluations, saves, and a model directory at the end. */
import { appendFile, mkdir, readFile, rm, stat, truncate } from 'node:fs/promises';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { refuseOccupied, writeFileAtomic } from '../atomic-write.ts';
import { writeSafetensors } from '../checkpoint/write-safetensors.ts';
import { freeMemory } from '../free-memory.ts';
import type { RuntimeOptions } from '../graph/runtime.ts';
import type { Model } from '../models/model.ts';
import { relativeRates } from './adamw.ts';
import { curveSvg } from './curve.ts';
import { openEvaluation } from './evaluation.ts';
import { loadWeights } from './load-weights.ts';
import { losses, type LossName } from './losses.ts';
import type { Batch, Objective } from './objective.ts';
import { placeWeights } from './placed-weights.ts';
import { checkRecipe, findSave, loadSave, writeSave, type Saved } from './save.ts';
import { learningRateFactor } from './schedule.ts';
import { openSequences } from './sequences.ts';
import { recipeOf, withDefaults, type Settings, type TrainedFiles, type TrainOptions, type TrainResult } from './settings.ts';
import { parseMetrics } from './metrics.ts';
import { trainableNames } from './trainable.ts';
import { createTrainer, type Feeds, type Trainer } from './trainer.ts';
import { explodes, firstBadState, watchLoss, type LossWatch } from './watch.ts';

export type { TrainOptions, TrainProgress, TrainResult } from './settings.ts';

/** Where a run keeps its saves, metrics.jsonl and curve.svg. */
export const trainingDirectory = (out: string): string => join(out, 'training');

/**
 * Trains `model` into the directory `out`, which becomes a model directory (config.json last) when the run is finished.
 * Until then training/ in it holds metrics.jsonl, curve.svg and the newest save; a run that was killed at any moment
 * goes on from there with `resume`, and the weights are those of a run that was not. (The same number of threads is
 * needed for that: sums are split among threads.) A run that is stopped by its signal saves what it has.
 *
 * Errors: an occupied `out` without `resume`, a save of another recipe, wrong data; `train: step 12: loss must be finite...`
 * with the layer and the last save when the loss is not a number or explodes.
 */
export async function train(model: Model, out: string, options: TrainOptions): Promise<TrainResult> {
  const settings = withDefaults(options);
  const { steps, batch, accumulate, sequenceLength, teacher, signal, clock, runtime } = settings;
  const directory = trainingDirectory(out), metricsFile = join(directory, 'metrics.jsonl');
  const recipe = await recipeOf(model, settings);
  const saved = options.resume === true ? await findSave(directory) : null;
  if (options.resume === true) refuseFinished(out);
  else await refuseOccupied(out);
  if (saved !== null) checkRecipe('train', saved.state.recipe, recipe, saved.path);
  const sequences = openSequences(settings.data, { sequenceLength, batch, seed: settings.seed });

  const { weights, trainable, kernel, rateFactors, state } = await startingPoint(model, settings, saved);
  const objective = await losses[settings.loss].open({ model, weights, trainable, teacher, sequenceLength, batch, runtime, sampling: { batches: accumulate, sources: settings.data } });
  const idle = trainable.find((name) => !objective.subgraph.inputs.some((port) => port.name === name));
  if (idle !== undefined) {
    await objective.close();
    throw new RangeError(`train: weights of ${settings.train} must take part in loss ${settings.loss}, got ${idle}; try ${losses[settings.loss].train}`);
  }
  const trainer = await createTrainer({
    subgraph: objective.subgraph, checkpoints: objective.checkpoints, rows: objective.rows, recompute: settings.recompute, weights, trainable, kernel, state, runtime, optimiser: { ...settings.optimiser, rateFactors },
  });
  // The trainer has copied them.
  if (state !== undefined) freeMemory([...state.first.values(), ...state.second.values()]);
  const evaluation = settings.evaluation === null ? null : await openEvaluation(model, weights, settings.evaluation, { sequenceLength, sequences: settings.evaluationSequences, runtime });
  try {
    await mkdir(directory, { recursive: true });
    await keepMetrics(metricsFile, saved);
    sequences.skip((saved?.state.step ?? 0) * accumulate);
    let watch: LossWatch = { smoothed: saved?.state.smoothed ?? null, lowest: saved?.state.lowest ?? null };
    let lastSave = saved?.path ?? null;
    const begin = clock(), first = saved?.state.step ?? 0;
    const note = (line: Readonly<Record<string, number>>): Promise<void> => appendFile(metricsFile, `${JSON.stringify(line)}\n`);
    const measure = async (step: number): Promise<void> => {
      if (evaluation !== null) await note({ step, evaluation: await evaluation.loss() });
    };
    const save = async (step: number): Promise<void> => {
      const metrics = await readFile(metricsFile);
      lastSave = await writeSave(directory, { version: 1, step, recipe, metricsBytes: metrics.length, ...watch }, trainer.weights, trainable, trainer.state);
      await drawCurve(directory, metrics.toString('utf8'), settings.loss);
    };
    if (first === 0) await measure(0);
    for (let step = first; step < steps; step++) {
      if (signal?.aborted === true && step > first) await save(step);
      signal?.throwIfAborted();
      const batches: Batch[] = [];
      for (let i = 0; i < accumulate; i++) batches.push(await sequences.next());
      const feeds = await objective.feeds(batches, trainer.weights);
      const learningRate = settings.learningRate * learningRateFactor(step, settings);
      const update = await guarded(trainer, objective, feeds, learningRate, { step: step + 1, lastSave, watch, runtime });
      watch = watchLoss(watch, update.loss);
      await note({ step: step + 1, loss: update.loss, gradientNorm: update.gradientNorm, learningRate });
      const seconds = Math.max(1e-6, clock() - begin) / 1000;
      settings.onUpdate?.({
        step: step + 1, steps, loss: update.loss, learningRate, gradientNorm: update.gradientNorm,
        tokensPerSecond: ((step + 1 - first) * settings.tokensPerStep) / seconds, secondsLeft: (seconds / (step + 1 - first)) * (steps - step - 1),
      });
      if ((step + 1) % settings.saveEvery !== 0 && step + 1 !== steps) continue;
      await measure(step + 1);
      await save(step + 1);
    }
    const evaluations = parseMetrics(await readFile(metricsFile, 'utf8')).evaluations;
    const [before, after] = [evaluations[0], evaluations.at(-1)];
    const seconds = Math.max(1e-6, clock() - begin) / 1000;
    const result: TrainResult = {
      steps, tokens: steps * settings.tokensPerStep, loss: watch.smoothed ?? NaN,
      evaluation: before === undefined || after === undefined ? null : { before: before.loss, after: after.loss },
      tokensPerSecond: ((steps - first) * settings.tokensPerStep) / seconds, seconds,
    };
    await writeModelDirectory(model, out, trainer, result, settings.files);
    if (lastSave !== null) await rm(lastSave, { recursive: true, force: true });
    return result;
  } finally {
    await evaluation?.close();
    await trainer.close();
    await objective.close();
  }
}

/** Weights and moments to start from, or to go on from. What they were read into is garbage when this is done. */
async function startingPoint(model: Model, settings: Settings, saved: Saved | null) {
  const start = await loadWeights(model);
  const trainable = trainableNames(model, start.keys(), settings.train);
  const rateFactors = settings.relativeRates ? relativeRates(new Map([...start].filter(([name]) => trainable.includes(name)))) : {};
  const { weights, optimiser: state } = saved === null ? { weights: start, optimiser: undefined } : await loadSave(saved, start, trainable);
  return { ...placeWeights(weights, trainable), trainable, rateFactors, state };
}

function refuseFinished(out: string): void {
  if (existsSync(join(out, 'config.json'))) throw new Error(`train: a run to resume must not be finished, but ${out} holds config.json`);
}

/** metrics.jsonl as it was at the save: what a killed run wrote after it is written again. */
async function keepMetrics(path: string, saved: Saved | null): Promise<void> {
  if (saved === null || !existsSync(path)) await writeFileAtomic(path, '');
  else await truncate(path, Math.min(saved.state.metricsBytes, (await stat(path)).size));
}

interface Situation {
  readonly step: number;
  readonly lastSave: string | null;
  readonly watch: LossWatch;
  readonly runtime: RuntimeOptions;
}

/** One update; a loss that is not a number or explodes stops the run, with the layer and the last save. */
async function guarded(trainer: Trainer, objective: Objective, feeds: readonly Feeds[], learningRate: number, { step, lastSave, watch, runtime }: Situation) {
  const stop = (rule: string, where: string): never => {
    throw new Error(`train: step ${step}: ${rule}; first seen in ${where}; last good save: ${lastSave ?? 'none'}`);
  };
  const update = await trainer.update(feeds, learningRate).catch(async (error: unknown) => {
    if (!(error instanceof RangeError)) throw error;
    for (const some of feeds) {
      const where = await firstBadState(objective, trainer.weights, some, runtime);
      if (where !== null) return stop(error.message, where);
    }
    return stop(error.message, 'the way back');
  });
  if (explodes(watch, update.loss)) stop(`loss must not explode, got ${update.loss} after a lowest mean of ${watch.lowest}`, `the gradient of ${update.largest}, the largest`);
  return update;
}

async function drawCurve(directory: string, metrics: string, loss: LossName): Promise<void> {
  const { updates, evaluations } = parseMetrics(metrics);
  await writeFileAtomic(join(directory, 'curve.svg'), curveSvg(`loss: ${losses[loss].what}`, updates, loss === 'next-token' ? evaluations : []));
}

/** The trained model beside training/: weights first, config.json last, so that a directory without it is not finished. */
async function writeModelDirectory(model: Model, out: string, { weights }: Trainer, result: TrainResult, files: TrainedFiles): Promise<void> {
  const sources = [...weights].map(([name, tensor]) => ({ name, dtype: tensor.dtype, shape: tensor.shape, read: () => tensor }));
  await writeSafetensors(join(out, 'model.safetensors'), sources);
  for (const [name, text] of Object.entries(typeof files === 'function' ? await files(result) : files)) await writeFileAtomic(join(out, name), text);
  await writeFileAtomic(join(out, 'config.json'), `${JSON.stringify(model.mla === null ? model.config.raw : { ...model.config.raw, mla: model.mla }, null, 1)}\n`);
}
