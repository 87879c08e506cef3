/** A prompt through a session of a one-layer model, by length. */
import { openSession } from '../../lib/index.ts';
import { defineCase } from '../support/case.ts';
import { someIds, weightBytes } from '../support/layer-model.ts';
import { withLayerModels } from '../support/layer-models.ts';
import { promptWork } from '../support/model-work.ts';
import { presets } from '../support/presets.ts';
import type { Row } from '../support/rows.ts';
import { timedRow } from '../support/timed-row.ts';
import { inTurn } from '../support/turns.ts';

export const prefill = defineCase({
  summary: 'a prompt through a session of a one-layer model, by length',
  defaults: { preset: 'smollm2-135m', contexts: [512, 2048, 4096], shares: [0.3125] },
  smoke: { contexts: [33] },
  run: ({ preset, contexts, shares }, { threads, runs, ceiling, now }) => withLayerModels(presets[preset], shares, ['f32'], async (models) => {
    const rows: Row[] = [];
    for (const tokens of contexts) {
      const times = await inTurn(models.map(({ model }) => {
        const session = openSession(model, { threads, contextLength: tokens });
        const ids = someIds(tokens, model);
        return { run: () => session.prefill(session.createCache(tokens), ids), close: () => session.close() };
      }), { runs: Math.min(runs, 6), now });
      rows.push(...models.map(({ what, model }, i) => timedRow(
        { what: `${what}, ${tokens} tokens`, ...promptWork(model, tokens), times: times[i], ...(i === 0 ? {} : { source: times[0] }) }, ceiling,
        { weightBytes: weightBytes(model) }, { tokensPerSecond: (1000 * tokens) / (times[i]?.medianMs ?? NaN) },
      )));
    }
    return { rows, notes: ['tokens/s are of one layer. FLOPs are those of linear maps and of source attention; rebuilding keys and values from the latent comes on top.'] };
  }),
});
