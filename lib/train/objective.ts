/** What a loss asks of training: a graph, and what every batch feeds it. */
import type { HostTensor } from '../../kernels/emit.ts';
import type { RuntimeOptions } from '../graph/runtime.ts';
import type { Subgraph } from '../graph/subgraph.ts';
import type { Model } from '../models/model.ts';
import type { WeightedSource } from './sequences.ts';
import type { RegressionOptions, SequenceShape } from './training-graph.ts';
import type { Feeds, WeightRows, Weights } from './trainer.ts';

export interface Batch {
  readonly ids: HostTensor<'int64'>;
  readonly targets: HostTensor<'int64'>;
}

export interface Objective {
  readonly subgraph: Subgraph;
  /** Hidden states in front of every layer, where the subgraph gives them; see differentiate. */
  readonly checkpoints: readonly string[];
  /** Weights that the subgraph takes in rows, and the feed that names them; see TrainerOptions.rows. */
  readonly rows?: WeightRows | undefined;
  /** Feeds of every batch of one update. `weights`: those of the student now. */
  feeds(batches: readonly Batch[], weights: Weights): Promise<Feeds[]>;
  close(): Promise<void>;
}

export interface VocabularySampling {
  /** Batches per update, which share a sample. Default 1. */
  readonly batches?: number;
  /** Half of a sample are the most frequent tokens of these. Default none. */
  readonly sources?: readonly WeightedSource[];
  /** Entries of the vocabulary in a sample. Default 8,192 and at least four times the tokens of an update; where that is half of the vocabulary or more, all of it. */
  readonly entries?: number;
}

export interface ObjectiveOptions extends SequenceShape {
  readonly model: Model;
  readonly weights: Weights;
  readonly teacher: Model | null;
  /** Of `teacher-sampled`. */
  readonly sampling?: VocabularySampling;
  /** Of `layers`: which layers learn, and how rows weigh. */
  readonly regression?: Omit<RegressionOptions, keyof SequenceShape>;
  readonly runtime?: RuntimeOptions;
}

/** One after the other: a session runs one batch at a time. */
export async function inTurn(batches: readonly Batch[], feedsOf: (batch: Batch) => Promise<Feeds>): Promise<Feeds[]> {
  const feeds: Feeds[] = [];
  for (const batch of batches) feeds.push(await feedsOf(batch));
  return feeds;
}

export const must = <T>(value: T | undefined, name: string): T => {
  if (value === undefined) throw new RangeError(`train: ${name} must be there`);
  return value;
};
