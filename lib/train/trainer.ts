/** Training any subgraph that ends in a loss: weights go in, gradients come out, AdamW changes the weights. */
import type { HostTensor } from '../../kernels/emit.ts';
import { differentiate, gradientOf } from '../autodiff/differentiate.ts';
import { openRuntime, type Runtime, type RuntimeOptions } from '../graph/runtime.ts';
import type { Subgraph } from '../graph/subgraph.ts';
import { createAdamW, type AdamWOptions, type AdamWState } from './adamw.ts';
import { lazily } from '../lazily.ts';
import { elementCount } from '../tensor.ts';
import { optimiserKernel, type OptimiserKernel } from './optimiser-kernel.ts';

export type Weights = ReadonlyMap<string, HostTensor<'float32'>>;
export type Feeds = Readonly<Record<string, HostTensor>>;

export interface TrainStep {
  /** The loss of this batch. */
  readonly loss: number;
  /** By name of the weight, in its shape. */
  readonly gradients: ReadonlyMap<string, Float32Array>;
}

/** Memory for the loss and the gradients, by output: what a step before has given and nobody needs any more. */
export type StepMemory = Readonly<Record<string, HostTensor<'float32'>>>;

/**
 * One run forward and back, for training loops of one's own. `runtime`: differentiate(..., { loss: 'loss', wrt: trainable })
 * opened; `weights`: every weight that is an input of it; `feeds`: the other inputs; `into`: where loss and gradients go
 * (default: new memory), without a copy when `runtime` was opened with `uncopied`.
 */
export async function trainStep(runtime: Runtime, weights: Weights, trainable: readonly string[], feeds: Feeds, into?: StepMemory): Promise<TrainStep> {
  const outputs = await runtime.run({ ...Object.fromEntries([...weights].filter(([name]) => runtime.inputs.includes(name))), ...feeds }, into ?? ['loss', ...trainable.map(gradientOf)]);
  const floats = (name: string): Float32Array => {
    const tensor = outputs[name];
    if (tensor?.dtype !== 'float32') throw new TypeError(`trainStep: output ${name} must be float32, got ${tensor?.dtype}`);
    return tensor.data;
  };
  return { loss: floats('loss')[0] ?? NaN, gradients: new Map(trainable.map((name) => [name, floats(gradientOf(name))])) };
}

/** Weights `of` which a subgraph reads some rows only, those that the feed `numbers` names (int64 [n], each once, the same in every batch of an update). */
export interface WeightRows {
  readonly of: readonly string[];
  readonly numbers: string;
}

export interface TrainerOptions {
  /** Forward only, with an output `loss` of one element; weights are inputs. */
  readonly subgraph: Subgraph;
  /** Every weight the subgraph reads. Those that learn belong to the trainer from here on: they change in place. */
  readonly weights: Weights;
  /** Names of the weights that learn. */
  readonly trainable: readonly string[];
  /** See differentiate. */
  readonly checkpoints?: readonly string[];
  readonly recompute?: boolean;
  /** Weights that are inputs of the subgraph as [n, ...], fed under their names; only those rows of them change. Default none. */
  readonly rows?: WeightRows | undefined;
  readonly optimiser?: AdamWOptions;
  /** Whose memory moments and gradients lie in; weights made with its `row` are changed without a copy. Default: one with room for moments and gradients. */
  readonly kernel?: OptimiserKernel;
  /** To go on from. */
  readonly state?: AdamWState | undefined;
  /** Default: memory is kept between runs (to give it back costs 7 % of an update in page faults) and not planned as one block. */
  readonly runtime?: RuntimeOptions;
}

export interface Update {
  /** Updates done, this one included. */
  readonly step: number;
  /** Mean over the micro-batches, before the update. */
  readonly loss: number;
  /** Norm of the gradient before clipping. */
  readonly gradientNorm: number;
  /** The weight with the largest gradient norm. */
  readonly largest: string;
}

export interface Trainer {
  readonly weights: Weights;
  readonly trainable: readonly string[];
  readonly state: AdamWState;
  /** One update from the mean gradient of one or more micro-batches. Errors: a loss or a gradient that is not finite; nothing has changed then. */
  update(batches: readonly Feeds[], learningRate: number): Promise<Update>;
  close(): Promise<void>;
}

/** Opens the backward graph once; every update runs it. */
export async function createTrainer(options: TrainerOptions): Promise<Trainer> {
  const { subgraph, weights, trainable, checkpoints = [], recompute = false, rows } = options;
  const missing = trainable.find((name) => !weights.has(name));
  if (missing !== undefined) throw new RangeError(`createTrainer: trainable must name weights, got ${missing}`);
  const backward = differentiate(subgraph, { loss: 'loss', wrt: trainable, checkpoints, recompute });
  const runtime = await openRuntime(backward, { memoryPattern: false, uncopied: true, ...options.runtime });
  // Moments and gradients of every update lie where the optimiser works.
  const kernel = options.kernel ?? optimiserKernel([1, ...trainable.flatMap((name) => Array<number>(3).fill(weights.get(name)?.data.length ?? 0))]);
  const optimiser = createAdamW(options.optimiser, options.state, kernel);
  const sum = stepMemory(backward, kernel), addend = lazily(() => stepMemory(backward, kernel));
  return {
    weights, trainable,
    get state() { return optimiser.state; },
    async update(batches, learningRate) {
      const [first, ...rest] = batches;
      if (first === undefined) throw new RangeError('Trainer.update: needs at least one batch, got none');
      const { loss: firstLoss, gradients } = await trainStep(runtime, weights, trainable, first, sum);
      let loss = firstLoss;
      for (const batch of rest) {
        const more = await trainStep(runtime, weights, trainable, batch, addend());
        loss += more.loss;
        for (const [name, gradient] of more.gradients) kernel.add(gradients.get(name) ?? gradient, gradient);
      }
      loss /= batches.length;
      if (!Number.isFinite(loss)) throw new RangeError(`Trainer.update: loss must be finite, got ${loss}`);
      const { norm: gradientNorm, largest } = optimiser.update(weights, gradients, batches.length, learningRate, rows === undefined ? undefined : rowNumbers(rows, batches));
      return { step: optimiser.state.step, loss, gradientNorm, largest };
    },
    close: () => runtime.release(),
  };
}

/** By weight: the rows that an update has seen. */
function rowNumbers({ of, numbers }: WeightRows, batches: readonly Feeds[]): ReadonlyMap<string, BigInt64Array> {
  const [first, ...rest] = batches.map((feeds) => feeds[numbers]);
  if (first?.dtype !== 'int64') throw new TypeError(`Trainer.update: ${numbers} must be int64, got ${first?.dtype}`);
  if (rest.some((other) => other?.data.length !== first.data.length || !first.data.every((row, i) => row === other.data[i]))) {
    throw new RangeError(`Trainer.update: ${numbers} must be the same in all ${batches.length} batches of an update`);
  }
  return new Map(of.map((name) => [name, first.data]));
}

/** Zeros in the shapes of all outputs. */
function stepMemory({ name: subgraph, outputs }: Subgraph, kernel: OptimiserKernel): StepMemory {
  return Object.fromEntries(outputs.map((port) => {
    const shape = port.shape.map((dim) => {
      if (typeof dim === 'string') throw new RangeError(`createTrainer: outputs of ${subgraph} must have known shapes, got ${port.name} [${port.shape}]`);
      return dim;
    });
    return [port.name, { dtype: 'float32', shape, data: kernel.row(elementCount(shape)) }];
  }));
}
