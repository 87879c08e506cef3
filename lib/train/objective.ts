/** What is made small, by name, and what a batch needs for it. */
import type { HostTensor } from '../../kernels/emit.ts';
import { openRuntime, type Runtime, type RuntimeOptions } from '../graph/runtime.ts';
import type { Subgraph } from '../graph/subgraph.ts';
import { loadDecoderWeights } from '../models/decoder-weights.ts';
import type { Model } from '../models/model.ts';
import { rememberStates } from './remembered-states.ts';
import {
  attentionPort, hiddenPort, nextTokenSubgraph, normedPort, regressionSubgraph, statesSubgraph, teacherSubgraph, VOCABULARY_IDS, VOCABULARY_LOG_COPIES, vocabularyWeights, type RegressionOptions,
  type SequenceShape, type StatesWanted,
} from './training-graph.ts';
import type { WeightedSource } from './sequences.ts';
import type { TrainableName } from './trainable.ts';
import type { Feeds, WeightRows, Weights } from './trainer.ts';
import { vocabularySampler } from './vocabulary-sample.ts';

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
  return { subgraph: nextTokenSubgraph(model, weights, shape), checkpoints: hiddenStates(model), feeds: async (batches) => batches.map((batch) => ({ ...batch })), close: async () => {} };
}

/** A teacher of distributions: its last hidden states of a batch, which are remembered, and its output head. */
async function openTeacher(options: ObjectiveOptions, name: string) {
  const teacher = teacherOf(options, name);
  const weights = await loadWeights(teacher);
  const runtime = await teaches(teacher, weights, options, { last: true });
  return {
    teacher, head: must(weights.get(`${teacher.family.head(teacher.config)}.weight`), 'the teacher\'s head'),
    hidden: rememberStates(async (ids) => must((await runtime.run({ ids })).last, 'last')),
    close: () => runtime.release(),
  };
}

async function fromTeacher(options: ObjectiveOptions): Promise<Objective> {
  const { model, weights } = options;
  const { teacher, head, hidden, close } = await openTeacher(options, 'teacher');
  return {
    subgraph: teacherSubgraph(model, weights, options, teacher), checkpoints: hiddenStates(model), close,
    feeds: (batches) => inTurn(batches, async ({ ids }) => ({ ids, teacher_hidden: await hidden(ids), teacher_head: head })),
  };
}

/** Entries of a sample: so many, and so many times the tokens of an update, which then leave room for others. */
const SAMPLED_ENTRIES = 8192, ENTRIES_PER_TOKEN = 4;

/** See VocabularySampling.entries; null: all of the vocabulary. */
function sampledEntries({ model: { config: { vocab } }, batch, sequenceLength, sampling: { batches = 1, entries } = {} }: ObjectiveOptions): number | null {
  const least = Math.max(SAMPLED_ENTRIES, ENTRIES_PER_TOKEN * batch * sequenceLength * batches);
  return entries ?? (2 * least < vocab ? least : null);
}

/** `fromTeacher` over a sample of the vocabulary, another for every update. */
async function fromTeacherSampled(options: ObjectiveOptions): Promise<Objective> {
  const { model, weights, trainable, sampling: { sources = [] } = {} } = options;
  const entries = sampledEntries(options);
  if (entries === null) return fromTeacher(options);
  const sampler = await vocabularySampler(sources, model.config.vocab, entries);
  const { teacher, head, hidden, close } = await openTeacher(options, 'teacher-sampled');
  const learning = vocabularyWeights(model).filter((name) => trainable?.includes(name) !== false);
  const seen = new Map(learning.map((name) => [name, emptyRows(must(weights.get(name), name), entries)]));
  return {
    subgraph: teacherSubgraph(model, weights, { ...options, entries }, teacher), checkpoints: hiddenStates(model), rows: { of: learning, numbers: VOCABULARY_IDS }, close,
    feeds(batches, now) {
      const sample = sampler(batches.map(({ ids }) => ids.data));
      for (const [name, rows] of seen) copyRows(must(now.get(name), name), sample.ids, rows);
      const shared: Feeds = {
        ...Object.fromEntries(seen), teacher_head: head, [VOCABULARY_IDS]: { dtype: 'int64', shape: [entries], data: sample.ids },
        [VOCABULARY_LOG_COPIES]: { dtype: 'float32', shape: [entries], data: sample.logCopies },
      };
      return inTurn(batches, async ({ ids }) => ({ ...shared, ids: { ...ids, data: sample.placesOf(ids.data) }, teacher_hidden: await hidden(ids) }));
    },
  };
}

/** Memory for so many rows of a matrix. */
function emptyRows({ shape: [, width = 1] }: HostTensor<'float32'>, rows: number): HostTensor<'float32'> {
  return { dtype: 'float32', shape: [rows, width], data: new Float32Array(rows * width) };
}

function copyRows({ data, shape: [, width = 1] }: HostTensor<'float32'>, rows: BigInt64Array, into: HostTensor<'float32'>): void {
  rows.forEach((row, i) => { into.data.set(data.subarray(Number(row) * width, (Number(row) + 1) * width), i * width); });
}

/** One after the other: a session runs one batch at a time. */
async function inTurn(batches: readonly Batch[], feedsOf: (batch: Batch) => Promise<Feeds>): Promise<Feeds[]> {
  const feeds: Feeds[] = [];
  for (const batch of batches) feeds.push(await feedsOf(batch));
  return feeds;
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
    feeds: (batches, now) => inTurn(batches, async ({ ids }) => {
      const targets = await teacherRuntime.run({ ids });
      const inputs = studentRuntime === null ? targets : await observe(studentRuntime, now, ids);
      return Object.fromEntries(layers.flatMap((layer) => [
        [normedPort(layer), must(inputs[normedPort(layer)], normedPort(layer))], [attentionPort(layer), must(targets[attentionPort(layer)], attentionPort(layer))],
      ]));
    }),
    async close() {
      await teacherRuntime.release();
      await studentRuntime?.release();
    },
  };
};

const rows = {
  'next-token': { name: 'next-token', what: 'nats of the next token', needsTeacher: false, train: 'all', open: nextToken },
  teacher: { name: 'teacher', what: 'KL to the teacher\'s next-token distribution', needsTeacher: true, train: 'all', open: fromTeacher },
  'teacher-sampled': {
    name: 'teacher-sampled', what: 'the same over a sample of the vocabulary, another for every update', needsTeacher: true, train: 'all', open: fromTeacherSampled,
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
