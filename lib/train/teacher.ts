/** Models run on batches without learning from them: what a teacher thinks, and a student so far. */
import type { HostTensor } from '../../kernels/emit.ts';
import { openRuntime, type Runtime, type RuntimeOptions } from '../graph/runtime.ts';
import type { Model } from '../models/model.ts';
import { loadWeights } from './load-weights.ts';
import { must, type ObjectiveOptions } from './objective.ts';
import { rememberStates } from './remembered-states.ts';
import type { Weights } from './trainer.ts';
import { statesSubgraph, type SequenceShape, type StatesWanted } from './training-graph.ts';

/** Weights that do not change while it is open are constants of it. */
export async function observer(model: Model, weights: Weights, shape: SequenceShape, wanted: StatesWanted, runtime: RuntimeOptions | undefined): Promise<Runtime> {
  return openRuntime(statesSubgraph(model, weights, shape, wanted), { memoryPattern: false, ...runtime });
}

export const teaches = (teacher: Model, weights: Weights, { batch, sequenceLength, runtime }: ObjectiveOptions, wanted: StatesWanted): Promise<Runtime> =>
  observer(teacher, weights, { batch, sequenceLength, trainable: [] }, wanted, runtime);

export const observe = (runtime: Runtime, weights: Weights, ids: HostTensor<'int64'>): Promise<Record<string, HostTensor>> =>
  runtime.run({ ids, ...Object.fromEntries([...weights].filter(([name]) => runtime.inputs.includes(name))) });

/** The teacher that loss `name` needs. Errors: none, or one with another vocabulary. */
export function teacherOf({ teacher, model }: ObjectiveOptions, name: string): Model {
  if (teacher === null) throw new TypeError(`train: loss ${name} needs a teacher, got none`);
  const [a, b] = [teacher.config, model.config];
  if (a.vocab !== b.vocab) throw new RangeError(`train: teacher must have the student's vocabulary of ${b.vocab}, got ${a.vocab} in ${teacher.path}`);
  return teacher;
}

/** A teacher of distributions: its last hidden states of a batch, which are remembered, and its output head. */
export async function openTeacher(options: ObjectiveOptions, name: string) {
  const teacher = teacherOf(options, name);
  const weights = await loadWeights(teacher);
  const runtime = await teaches(teacher, weights, options, { last: true });
  return {
    teacher, head: must(weights.get(`${teacher.family.head(teacher.config)}.weight`), 'the teacher\'s head'),
    hidden: rememberStates(async (ids) => must((await runtime.run({ ids })).last, 'last')),
    close: () => runtime.release(),
  };
}
