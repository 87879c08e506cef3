/** Learning the attention outputs of a teacher, every layer for itself. */
import { inTurn, must, type Objective, type ObjectiveOptions } from './objective.ts';
import { loadWeights } from './load-weights.ts';
import { observe, observer, teacherOf, teaches } from './teacher.ts';
import { attentionPort, normedPort, regressionSubgraph } from './training-graph.ts';

/** On the teacher's inputs of every layer, or on the student's own. */
export const regression = (own: boolean) => async (options: ObjectiveOptions): Promise<Objective> => {
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
