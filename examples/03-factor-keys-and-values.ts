/** What a latent of each width keeps of keys and values. npx tsx examples/03-factor-keys-and-values.ts [MODEL] */
import { jointKvSvd, openModel, packageFile, rankRopeDims, readAttentionLayer } from '../lib/index.ts';

const model = await openModel(process.argv[2] ?? packageFile('test', 'data', 'zoo', 'llama-gqa-tied'));
const attention = await readAttentionLayer(model, 0);
const plan = rankRopeDims(attention, { strategy: 'uniform', pairs: 2 });
const before = 2 * attention.kvHeads * attention.headDim;

console.log('strategy  rank  cache share  key error  value error');
for (const strategy of ['joint', 'split'] as const) {
  for (const share of [0.75, 0.5, 0.3125]) {
    const rank = Math.floor(share * before) - 2 * plan.components.length;
    const { keyError, valueError } = await jointKvSvd(attention, plan, { strategy, rank });
    console.log(`${strategy.padEnd(8)}  ${String(rank).padStart(4)}  ${share.toFixed(4).padStart(11)}  ${keyError.toFixed(4).padStart(9)}  ${valueError.toFixed(4).padStart(11)}`);
  }
}
