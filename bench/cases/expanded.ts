/** The expanded layer with its projections: many tokens at once, the form of prefill and training. */
import { defineCase } from '../support/case.ts';
import { graphRows } from '../support/graph-rows.ts';
import { latentLayerGraph, sourceLayerGraph } from '../support/layer-graphs.ts';
import { latentOf, shareText } from '../support/latents.ts';
import { presets } from '../support/presets.ts';
import type { Row } from '../support/rows.ts';

/** Tokens of a chunk: what a session sends through a graph at once. */
const CHUNK = 256;

export const expanded = defineCase({
  summary: `the expanded layer with its projections against the absorbed one and source attention: a chunk of ${CHUNK} tokens`,
  defaults: { preset: 'smollm2-135m', contexts: [256, 2048], shares: [0.3125] },
  smoke: { contexts: [16] },
  async run({ preset, contexts, shares }, context) {
    const shape = presets[preset];
    const rows: Row[] = [];
    for (const p of contexts) {
      const latents = shares.flatMap((share) => (['expanded', 'absorbed'] as const).map((form) =>
        ({ what: `${form}, ${shareText(share)}, behind ${p} tokens`, subgraph: latentLayerGraph(shape, latentOf(shape, share), CHUNK, form, p) })));
      rows.push(...await graphRows([{ what: `source, behind ${p} tokens`, subgraph: sourceLayerGraph(shape, CHUNK) }, ...latents], { p }, context));
    }
    return { rows, notes: ['No MLP, no norm, no head. The absorbed form wins where little is cached beside few tokens; a session takes the expanded one for prefill.'] };
  },
});
