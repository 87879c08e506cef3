/** Learning the next-token distribution of a teacher, over all of the vocabulary or over a sample of it. */
import type { HostTensor } from '../../kernels/emit.ts';
import { inTurn, must, type Objective, type ObjectiveOptions } from './objective.ts';
import { openTeacher } from './teacher.ts';
import type { Feeds } from './trainer.ts';
import { hiddenPorts, teacherSubgraph, VOCABULARY_IDS, VOCABULARY_LOG_COPIES, vocabularyWeights } from './training-graph.ts';
import { vocabularySampler } from './vocabulary-sample.ts';

export async function fromTeacher(options: ObjectiveOptions): Promise<Objective> {
  const { model, weights } = options;
  const { teacher, head, hidden, close } = await openTeacher(options, 'teacher');
  return {
    subgraph: teacherSubgraph(model, weights, options, teacher), checkpoints: hiddenPorts(model), close,
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
export async function fromTeacherSampled(options: ObjectiveOptions): Promise<Objective> {
  const { model, weights, trainable, sampling: { sources = [] } = {} } = options;
  const entries = sampledEntries(options);
  if (entries === null) return fromTeacher(options);
  const sampler = await vocabularySampler(sources, model.config.vocab, entries);
  const { teacher, head, hidden, close } = await openTeacher(options, 'teacher-sampled');
  const learning = vocabularyWeights(model).filter((name) => trainable?.includes(name) !== false);
  const seen = new Map(learning.map((name) => [name, emptyRows(must(weights.get(name), name), entries)]));
  return {
    subgraph: teacherSubgraph(model, weights, { ...options, entries }, teacher), checkpoints: hiddenPorts(model), rows: { of: learning, numbers: VOCABULARY_IDS }, close,
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
