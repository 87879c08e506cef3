/** What is made small, by name. */
import { regression } from './regression-objective.ts';
import type { Objective, ObjectiveOptions } from './objective.ts';
import { fromTeacher, fromTeacherSampled } from './teacher-objective.ts';
import type { TrainableName } from './trainable.ts';
import { hiddenPorts, nextTokenSubgraph } from './training-graph.ts';

async function nextToken({ model, weights, ...shape }: ObjectiveOptions): Promise<Objective> {
  return { subgraph: nextTokenSubgraph(model, weights, shape), checkpoints: hiddenPorts(model), feeds: async (batches) => batches.map((batch) => ({ ...batch })), close: async () => {} };
}

const rows = {
  'next-token': { name: 'next-token', what: 'nats of the next token', needsTeacher: false, train: 'all', open: nextToken },
  teacher: { name: 'teacher', what: 'KL to the teacher\'s next-token distribution', needsTeacher: true, train: 'all', open: fromTeacher },
  'teacher-sampled': {
    name: 'teacher-sampled', what: 'KL to the teacher\'s next-token distribution, over a sample of the vocabulary', needsTeacher: true, train: 'all', open: fromTeacherSampled,
  },
  layers: { name: 'layers', what: 'attention outputs of every layer, on the teacher\'s inputs', needsTeacher: true, train: 'attention', open: regression(false) },
  'layers-own': { name: 'layers-own', what: 'attention outputs of every layer, on the student\'s own inputs', needsTeacher: true, train: 'attention', open: regression(true) },
} as const;

export type LossName = keyof typeof rows;
export interface LossRow {
  readonly name: string;
  readonly what: string;
  readonly needsTeacher: boolean;
  /** Weights that learn by default. */
  readonly train: TrainableName;
  readonly open: (options: ObjectiveOptions) => Promise<Objective>;
}
/** Losses by name. */
export const losses: Readonly<Record<LossName, LossRow>> = rows;
