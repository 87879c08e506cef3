/** The next-token loss of a text kept aside, with the weights as they are now. */
import { prune } from '../graph/compose.ts';
import { openRuntime, type RuntimeOptions } from '../graph/runtime.ts';
import type { Model } from '../models/model.ts';
import { loadWeights } from './load-weights.ts';
import type { TokenSource } from './token-source.ts';
import type { Weights } from './trainer.ts';
import { nextTokenSubgraph } from './training-graph.ts';

export interface Evaluation {
  /** Mean nats per token. */
  loss(): Promise<number>;
  close(): Promise<void>;
}

export interface EvaluationOptions {
  readonly sequenceLength: number;
  /** Sequences from the start of the text, side by side, at most. */
  readonly sequences: number;
  readonly runtime: RuntimeOptions;
}

/** `weights` are read at every measurement. Errors: a text shorter than one sequence. */
export async function openEvaluation(model: Model, weights: Weights, source: TokenSource, { sequenceLength, sequences, runtime }: EvaluationOptions): Promise<Evaluation> {
  const count = Math.min(sequences, Math.floor((source.length - 1) / sequenceLength));
  if (count < 1) throw new RangeError(`openEvaluation: ${source.name} must have ${sequenceLength + 1} tokens or more, got ${source.length}`);
  const forward = await openRuntime(prune(nextTokenSubgraph(model, weights, { batch: 1, sequenceLength }), ['loss']), { memoryPattern: false, ...runtime });
  return {
    async loss() {
      let sum = 0;
      for (let i = 0; i < count; i++) {
        const tokens = BigInt64Array.from(await source.read(i * sequenceLength, sequenceLength + 1), BigInt);
        const row = (from: number) => ({ dtype: 'int64', shape: [1, sequenceLength], data: tokens.slice(from, from + sequenceLength) }) as const;
        const { loss } = await forward.run({ ids: row(0), targets: row(1), ...Object.fromEntries([...weights].filter(([name]) => forward.inputs.includes(name))) });
        if (loss?.dtype !== 'float32') throw new TypeError(`openEvaluation: loss must be float32, got ${loss?.dtype}`);
        sum += loss.data[0] ?? NaN;
      }
      return sum / count;
    },
    close: () => forward.release(),
  };
}

/** Mean nats per token of a model as it is. Errors: a text shorter than one sequence. */
export async function textLoss(model: Model, source: TokenSource, options: EvaluationOptions): Promise<number> {
  const evaluation = await openEvaluation(model, await loadWeights(model), source, options);
  try {
    return await evaluation.loss();
  } finally {
    await evaluation.close();
  }
}
