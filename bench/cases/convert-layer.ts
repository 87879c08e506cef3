/** One layer through the four functions, by rank. */
import { absorbUpProjections, buildMlaLayer, jointKvSvd, rankRopeDims, type Subgraph } from '../../lib/index.ts';
import { defineCase } from '../support/case.ts';
import { latentOf } from '../support/latents.ts';
import { peakMb, restartPeak } from '../support/peak-memory.ts';
import { presets } from '../support/presets.ts';
import { factorWork, keptPairs, randomAttention } from '../support/random-attention.ts';
import type { Row } from '../support/rows.ts';
import { once, timedRow } from '../support/timed-row.ts';
import { workOf } from '../support/work.ts';

export const convertLayer = defineCase({
  summary: 'one layer through rankRopeDims, jointKvSvd, buildMlaLayer and absorbUpProjections, by rank: time and peak memory',
  defaults: { preset: 'smollm2-135m', ranks: [], shares: [0.3125, 0.125] },
  smoke: { ranks: [12] },
  async run({ preset, ranks, shares }, { ceiling, now }) {
    const shape = presets[preset];
    const attention = randomAttention(shape);
    const rows: Row[] = [];
    for (const rank of ranks.length > 0 ? ranks : shares.map((share) => latentOf(shape, share).rank)) {
      restartPeak();
      const start = now();
      const plan = rankRopeDims(attention, { pairs: keptPairs(shape) });
      const expanded = buildMlaLayer(attention, plan, await jointKvSvd(attention, plan, { rank }));
      const graphs: readonly Subgraph[] = [expanded.subgraph, absorbUpProjections(expanded).subgraph];
      const times = once(now() - start);
      const { weightBytes } = workOf(expanded.subgraph, { b: 1, s: 1, p: 1 });
      const exact = { nodes: graphs.reduce((sum, { nodes }) => sum + nodes.length, 0), weightBytes, cacheBytesPerToken: 4 * expanded.cacheElementsPerToken };
      rows.push(timedRow({ ...factorWork(shape, rank), times }, ceiling, exact, { peakMb: peakMb() }));
    }
    return { rows, notes: ['Nodes are those of both forms; GFLOP are those of the factorisation. The peak is that of the process, source weights and earlier cases of the same run included. One run each.'] };
  },
});
