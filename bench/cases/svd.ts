/** Factorising keys and values of a layer, by rank. */
import { jointKvSvd, rankRopeDims } from '../../lib/index.ts';
import { defineCase } from '../support/case.ts';
import { latentOf } from '../support/latents.ts';
import { peakMb, restartPeak } from '../support/peak-memory.ts';
import { presets } from '../support/presets.ts';
import { factorWork, keptPairs, randomAttention } from '../support/random-attention.ts';
import type { Row } from '../support/rows.ts';
import { once, timedRow } from '../support/timed-row.ts';

export const svd = defineCase({
  summary: 'jointKvSvd: keys without rotation and values of a layer from one latent, by rank',
  defaults: { preset: 'smollm2-135m', ranks: [], shares: [0.3125, 0.125] },
  smoke: { ranks: [12] },
  async run({ preset, ranks, shares }, { ceiling, now }) {
    const shape = presets[preset];
    const attention = randomAttention(shape);
    const plan = rankRopeDims(attention, { pairs: keptPairs(shape) });
    const rows: Row[] = [];
    for (const rank of ranks.length > 0 ? ranks : shares.map((share) => latentOf(shape, share).rank)) {
      restartPeak();
      const start = now();
      const { keyError, valueError } = await jointKvSvd(attention, plan, { rank });
      rows.push(timedRow({ ...factorWork(shape, rank), times: once(now() - start) }, ceiling, {}, { peakMb: peakMb(), error: Math.hypot(keyError, valueError) / Math.SQRT2 }));
    }
    return { rows, notes: ['GFLOP: see factorWork; what a method spends beyond that counts against it. One run each. Random weights have a flat spectrum: the error is the worst there is.'] };
  },
});
