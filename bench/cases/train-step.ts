/** One training step of a one-layer model: forward, backward, AdamW. */
import { createTrainer, nextTokenSubgraph, placeWeights, tensor, trainableNames, type HostTensor, type Model } from '../../lib/index.ts';
import { defineCase } from '../support/case.ts';
import { parameterCount, someIds } from '../support/layer-model.ts';
import { withLayerModels } from '../support/layer-models.ts';
import { promptWork } from '../support/model-work.ts';
import { peakMb, restartPeak } from '../support/peak-memory.ts';
import { presets } from '../support/presets.ts';
import type { Row } from '../support/rows.ts';
import { timedRow } from '../support/timed-row.ts';
import { inTurn, type Contender } from '../support/turns.ts';

async function trainer(model: Model, sequenceLength: number, threads: number): Promise<Contender & { readonly nodes: number }> {
  const weights = new Map<string, HostTensor<'float32'>>();
  for (const name of model.checkpoint.tensors.keys()) weights.set(name, await model.checkpoint.read(name));
  const subgraph = nextTokenSubgraph(model, weights, { batch: 1, sequenceLength });
  const trainable = trainableNames(model, weights.keys(), 'all');
  const opened = await createTrainer({ subgraph, ...placeWeights(weights, trainable), trainable, runtime: { threads } });
  const ids = tensor('int64', [1, sequenceLength], BigInt64Array.from(someIds(sequenceLength, model), BigInt));
  return { run: () => opened.update([{ ids, targets: ids }], 1e-6), close: () => opened.close(), nodes: subgraph.nodes.length };
}

export const trainStep = defineCase({
  summary: 'one training step of a one-layer model, all weights, next-token loss and AdamW, by sequence length',
  defaults: { preset: 'smollm2-135m', contexts: [512], shares: [0.3125] },
  smoke: { contexts: [16] },
  run: ({ preset, contexts, shares }, { threads, runs, ceiling, now }) => withLayerModels(presets[preset], shares, ['f32'], async (models) => {
    const rows: Row[] = [];
    for (const tokens of contexts) {
      restartPeak();
      const trainers: Awaited<ReturnType<typeof trainer>>[] = [];
      for (const { model } of models) trainers.push(await trainer(model, tokens, threads));
      const times = await inTurn(trainers, { runs: Math.min(runs, 6), now });
      const peak = peakMb();
      rows.push(...models.map(({ what, model }, i) => {
        // Forward, and twice as much to go back; the optimiser reads weight, gradient and two moments and writes all but the gradient.
        const [flops, bytes] = [3 * promptWork(model, tokens).flops, 7 * 4 * parameterCount(model)];
        return timedRow(
          { what: `${what}, ${tokens} tokens`, flops, bytes, times: times[i], ...(i === 0 ? {} : { source: times[0] }), floorMs: (flops / ceiling.gemm + bytes / ceiling.read) / 1e6 }, ceiling,
          { nodes: trainers[i]?.nodes ?? NaN, weightBytes: 4 * parameterCount(model) }, { tokensPerSecond: (1000 * tokens) / (times[i]?.medianMs ?? NaN), peakMb: peak },
        );
      }));
    }
    return { rows, notes: ['Nodes are those of the forward graph. tokens/s are of one layer. The peak is that of the process with all trainers of the table.'] };
  }),
});
