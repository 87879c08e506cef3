/** The absorbed layer with its projections: one token, the form of decoding. */
import { decodeCost } from '../../lib/index.ts';
import { defineCase } from '../support/case.ts';
import { graphRows, type Candidate } from '../support/graph-rows.ts';
import { latentLayerGraph, sourceLayerGraph } from '../support/layer-graphs.ts';
import { latentOf, shareText } from '../support/latents.ts';
import { presets } from '../support/presets.ts';
import type { Row } from '../support/rows.ts';

export const absorbed = defineCase({
  summary: 'the absorbed layer with its projections against the expanded one and source attention: one token over a cache',
  defaults: { preset: 'smollm2-135m', contexts: [128, 4096], shares: [0.3125], caches: ['f32', 'int8'] },
  smoke: { contexts: [16] },
  async run({ preset, contexts, shares, caches }, context) {
    const shape = presets[preset];
    const rows: Row[] = [];
    for (const p of contexts) {
      const candidates: Candidate[] = [{ what: `source, ${p} tokens`, subgraph: sourceLayerGraph(shape, 1), cacheBytesPerToken: decodeCost(shape, null, p).cacheBytesPerToken }];
      for (const share of shares) {
        const latent = latentOf(shape, share);
        const add = (form: 'absorbed' | 'expanded', cache: (typeof caches)[number]): unknown => candidates.push({
          what: `${form}, ${shareText(share)}, ${cache} cache, ${p} tokens`, subgraph: latentLayerGraph(shape, latent, 1, form, p, cache), cacheBytesPerToken: decodeCost(shape, latent, p, cache).cacheBytesPerToken,
        });
        for (const cache of caches) add('absorbed', cache);
        add('expanded', 'f32');
      }
      rows.push(...await graphRows(candidates, { p }, context));
    }
    return { rows, notes: ['No MLP, no norm, no head; weights are read once per token.'] };
  },
});
