/** From a path to a session that is ready to decode. */
import { openModel, openSession } from '../../lib/index.ts';
import { defineCase } from '../support/case.ts';
import { weightBytes } from '../support/layer-model.ts';
import { withLayerModels } from '../support/layer-models.ts';
import { presets } from '../support/presets.ts';
import { timedRow } from '../support/timed-row.ts';
import { inTurn } from '../support/turns.ts';

export const load = defineCase({
  summary: 'opening a one-layer model from disk until its graphs for prefill and decode are ready',
  defaults: { preset: 'smollm2-135m', shares: [0.3125] },
  smoke: {},
  run: ({ preset, shares }, { threads, runs, ceiling, now }) => withLayerModels(presets[preset], shares, ['f32'], async (models) => {
    const times = await inTurn(models.map(({ model }) => ({
      async run() {
        const session = openSession(await openModel(model.path), { threads, contextLength: 256 });
        await session.open();
        await session.close();
      },
    })), { runs: Math.min(runs, 6), now });
    return {
      rows: models.map(({ what, model }, i) => timedRow({ what, flops: 0, bytes: weightBytes(model), times: times[i], ...(i === 0 ? {} : { source: times[0] }) }, ceiling, { weightBytes: weightBytes(model) })),
      notes: ['Weights count once; prefill and decode each repack them for their products. The file is in the page cache.'],
    };
  }),
});
