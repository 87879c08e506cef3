/** Decoding: attention of one token over a cache, and the layer around it, by context, share and type of the cache. */
import { decodeCost, decodePassesFor, ROW_BLOCKS, runPasses, signCodes, signedProductsAreExact, type CacheFormat } from '../../lib/index.ts';
import { defineCase } from '../support/case.ts';
import { crossoverCells, crossoverHead } from '../support/crossover.ts';
import { graphRows, type Candidate } from '../support/graph-rows.ts';
import { latentAttentionGraph, sourceAttentionGraph } from '../support/layer-graphs.ts';
import { groupsOf, groupsText, latentOf, latentText, shareText } from '../support/latents.ts';
import { presets } from '../support/presets.ts';
import type { Row } from '../support/rows.ts';
import { markdownTable } from '../support/table.ts';

export const decode = defineCase({
  summary: 'attention of one token over a cache, by context, share, cache type and latent groups; the crossover',
  defaults: { preset: 'smollm2-135m', contexts: [128, 1024, 4096, 8192], shares: [0.3125, 0.125], caches: ['f32', 'int8'], groups: [1], components: null },
  smoke: { contexts: [33], caches: ['f32', 'f16', 'int8', 'int4'] },
  async run({ preset, contexts, shares, caches, groups, components }, context) {
    const shape = presets[preset];
    const signed = await signedProductsAreExact() ? [signCodes] : [];
    const rows: Row[] = [];
    const crossover: string[][] = [];
    for (const p of contexts) {
      const passes = [...decodePassesFor(p), ...signed]; // as a session for that context has them
      const bytesOf = (latent: Parameters<typeof decodeCost>[1], cache: CacheFormat): number => decodeCost(shape, latent, p, cache).cacheBytesPerToken;
      const candidates = new Map<string, Candidate>([[`source, f32 cache, ${p} tokens`, { what: '', subgraph: sourceAttentionGraph(shape, 'f32'), cacheBytesPerToken: bytesOf(null, 'f32') }]]);
      for (const share of shares) {
        for (const cache of caches) {
          const chosen = groupsOf(shape, share, 'auto', p, cache, context.ceiling, components);
          for (const asked of groups) {
            const latent = latentOf(shape, share, asked === 'auto' ? chosen : groupsOf(shape, share, asked, p, cache, context.ceiling), components);
            candidates.set(`${shareText(share)}, ${cache} cache, ${groupsText(latent)}, ${p} tokens`,
              { what: '', subgraph: runPasses(latentAttentionGraph(shape, latent, cache, p), passes), cacheBytesPerToken: bytesOf(latent, cache) });
          }
          crossover.push(crossoverCells(shape, share, cache, p, chosen, context.ceiling, components));
        }
      }
      const named = [...candidates].map(([what, candidate]): Candidate => ({ ...candidate, what }));
      rows.push(...await graphRows(named, { p, block: Math.ceil(p / ROW_BLOCKS) }, context));
    }
    return { rows, notes: [
      `Crossover, by operations and bytes and the ceilings of this run:\n\n${markdownTable(crossoverHead, crossover)}`,
      `Latents: ${shares.map((share) => `${shareText(share)}: ${latentText(latentOf(shape, share, 1, components))}`).join('; ')}. Up-projections are part of the time; projections from and to the hidden state are not.`,
    ] };
  },
});
