/** Which RoPE pairs keep rotating, by strategy. npx tsx examples/02-rank-rope-dims.ts [MODEL] */
import { openModel, packageFile, rankRopeDims, readAttentionLayer, runSubgraph, tensor } from '../lib/index.ts';

const model = await openModel(process.argv[2] ?? packageFile('test', 'data', 'zoo', 'llama-gqa-tied'));
const attention = await readAttentionLayer(model, 0);

for (const strategy of ['uniform', 'high', 'low'] as const) {
  const plan = rankRopeDims(attention, { strategy, pairs: 2 });
  const kept = plan.components.map(({ key, frequency }) => `KV head ${key[0]?.head} pair ${key[0]?.pair} (${frequency.toPrecision(3)} rad per token)`);
  console.log(`${strategy}: ${kept.join(', ')}`);
}

// The plan is also a program: hidden states in, the rotating part and the remainder of queries and keys out.
const plan = rankRopeDims(attention, { pairs: 2 });
const tokens = 5;
const outputs = await runSubgraph(plan.subgraph, {
  hidden: tensor('float32', [1, tokens, attention.hidden], new Float32Array(tokens * attention.hidden).fill(0.1)),
  positions: tensor('int64', [tokens], BigInt64Array.from({ length: tokens }, (_, i) => BigInt(i))),
});
for (const [name, { shape }] of Object.entries(outputs)) console.log(`${name} [${shape}]`);
