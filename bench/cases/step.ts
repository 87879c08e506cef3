/** One token through a session of a one-layer model: MLP, norms and a small head included, as generation runs it. */
import { defineCase } from '../support/case.ts';
import { withLayerModels } from '../support/layer-models.ts';
import { presets } from '../support/presets.ts';
import type { Row } from '../support/rows.ts';
import { sessionRows } from '../support/session-rows.ts';

export const step = defineCase({
  summary: 'one token through a session of a one-layer model, by context, share, cache type and weights',
  defaults: { preset: 'smollm2-135m', contexts: [128, 2048], shares: [0.3125], caches: ['f32', 'int8'], weights: ['f32'] },
  smoke: { contexts: [16] },
  run: ({ preset, contexts, shares, caches, weights: formats }, context) => withLayerModels(presets[preset], shares, caches, async (models) => {
    const rows: Row[] = [];
    for (const tokens of contexts) {
      const contestants = formats.flatMap((weights) => models.map(({ what, ...used }, i) =>
        ({ ...used, what: `${what}, ${weights} weights`, weights, against: i === 0 ? null : `${models[0]?.what}, ${weights} weights` })));
      rows.push(...await sessionRows(contestants, tokens, context));
    }
    return { rows, notes: ['ms, rates and floor are of one token, weights in float32; tokens/s are of the one prompt before it.'] };
  }),
});
