/** What is made small, by name, and what a batch needs for it. */
import type { HostTensor } from '../../kernels/emit.ts';
import { openRuntime, type Runtime, type RuntimeOptions } from '../graph/runtime.ts';
import type { Subgraph } from '../graph/subgraph.ts';
import { loadDecoderWeights } from '../models/decoder-weights.ts';
import type { Model } from '../models/model.ts';
import { rememberStates } from './remembered-states.ts';
import {
  attentionPort, hiddenPort, nextTokenSubgraph, normedPort, regressionSubgraph, statesSubgraph, teacherSubgraph, type RegressionOptions, type SequenceShape, type StatesWanted,
} from './training-graph.ts';
import type { TrainableName } from './trainable.ts';
import type { Feeds, Weights } from './trainer.ts';

export interface Objective {
  readonly subgraph: Subgraph;
  /** Hidden states in front of every layer, where the subgraph gives them; see differentiate. */
  readonly checkpoints: readonly string[];
  /** Feeds of one batch. `weights`: those of the student now. */
  feeds(batch: { readonly ids: HostTensor<'int64'>; readonly targets: HostTensor<'int64'> }, weights: Weights): Promise<Feeds>;
  close(): Promise<void>;
}

export interface ObjectiveOptions extends SequenceShape {
  readonly model: Model;
  readonly weights: Weights;
  readonly teacher: Model | null;
  /** Of `layers`: which layers learn, and how rows weigh. */
  readonly regression?: Omit<RegressionOptions, keyof SequenceShape>;
  readonly runtime?: RuntimeOptions;
}

/** All weights of a model as float32 in memory. */
export async function loadWeights(model: Model): Promise<Map<string, HostTensor<'float32'>>> {
  const weights = new Map<string, HostTensor<'float32'>>();
  for (const name of (await loadDecoderWeights(model)).keys()) weights.set(name, await model.checkpoint.read(name));
  return weights;
}

/** A model run on batches without learning from them: weights that do not change while it is open are constants of it. */
async function observer(model: Model, weights: Weights, shape: SequenceShape, wanted: StatesWanted, runtime: RuntimeOptions | undefined): Promise<Runtime> {
  return openRuntime(statesSubgraph(model, weights, shape, wanted), { memoryPattern: false, ...runtime });
}

const teaches = (teacher: Model, weights: Weights, { batch, sequenceLength, runtime }: ObjectiveOptions, wanted: StatesWanted): Promise<Runtime> =>
  observer(teacher, weights, { batch, sequenceLength, trainable: [] }, wanted, runtime);

const observe = (runtime: Runtime, weights: Weights, ids: HostTensor<'int64'>): Promise<Record<string, HostTensor>> =>
  runtime.run({ ids, ...Object.fromEntries([...weights].filter(([name]) => runtime.inputs.includes(name))) });

function teacherOf({ teacher, model }: ObjectiveOptions, name: string): Model {
  if (teacher === null) throw new TypeError(`train: loss ${name} needs a teacher, got none`);
  const [a, b] = [teacher.config, model.config];
  if (a.vocab !== b.vocab) throw new RangeError(`train: teacher must have the student's vocabulary of ${b.vocab}, got ${a.vocab} in ${teacher.path}`);
  return teacher;
}

const hiddenStates = ({ config }: Model): string[] => Array.from({ length: config.layers }, (_, layer) => hiddenPort(layer));
const must = <T>(value: T | undefined, name: string): T => {
  if (value === undefined) throw new RangeError(`train: ${name} must be there`);
  return value;
};

async function nextToken({ model, weights, ...shape }: ObjectiveOptions): Promise<Objective> {
  return { subgraph: nextTokenSubgraph(model, weights, shape), checkpoints: hiddenStates(model), feeds: async (batch) => batch, close: async () => {} };
}

async function fromTeacher(options: ObjectiveOptions): Promise<Objective> {
  const { model, weights } = options;
  const teacher = teacherOf(options, 'teacher');
  const taught = await loadWeights(teacher);
  const runtime = await teaches(teacher, taught, options, { last: true });
  const head = must(taught.get(`${teacher.family.head(teacher.config)}.weight`), 'the teacher\'s head');
  const remembered = rememberStates(async (ids) => must((await runtime.run({ ids })).last, 'last'));
  return {
    subgraph: teacherSubgraph(model, weights, options, teacher), checkpoints: hiddenStates(model),
    feeds: async ({ ids }) => ({ ids, teacher_hidden: await remembered(ids), teacher_head: head }),
    close: () => runtime.release(),
  };
}

const regression = (own: boolean) => async (options: ObjectiveOptions): Promise<Objective> => {
  const { model, weights, regression: more = {} } = options;
  const teacher = teacherOf(options, own ? 'layers-own' : 'layers');
  if (teacher.config.layers !== model.config.layers || teacher.config.hidden !== model.config.hidden) {
    throw new RangeError(`train: a teacher of layers must have ${model.config.layers} layers of width ${model.config.hidden}, got ${teacher.config.layers} of ${teacher.config.hidden} in ${teacher.path}`);
  }
  const taught = await loadWeights(teacher);
  const teacherRuntime = await teaches(teacher, taught, options, { attention: true });
  const studentRuntime = own ? await observer(model, weights, options, { attention: true }, options.runtime) : null;
  const layers = more.layers ?? Array.from({ length: model.config.layers }, (_, layer) => layer);
  return {
    subgraph: regressionSubgraph(model, weights, { ...options, ...more }), checkpoints: [],
    async feeds({ ids }, now) {
      const targets = await teacherRuntime.run({ ids });
      const inputs = studentRuntime === null ? targets : await observe(studentRuntime, now, ids);
      return Object.fromEntries(layers.flatMap((layer) => [
        [normedPort(layer), must(inputs[normedPort(layer)], normedPort(layer))], [attentionPort(layer), must(targets[attentionPort(layer)], attentionPort(layer))],
      ]));
    },
    async close() {
      await teacherRuntime.release();
      await studentRuntime?.release();
    },
  };
};

const rows = {
  'next-token': { name: 'next-token', what: 'nats of the next token', needsTeacher: false, train: 'all', open: nextToken },
  teacher: { name: 'teacher', what: 'KL to the teacher\'s next-token distribution', needsTeacher: true, train: 'all', open: fromTeacher },
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
