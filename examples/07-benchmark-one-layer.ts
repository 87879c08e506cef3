/** Two spellings of one layer, timed at a few contexts. npx tsx examples/07-benchmark-one-layer.ts [MODEL] */
import { absorbUpProjections, benchmarkSubgraph, buildMlaLayer, jointKvSvd, openModel, packageFile, rankRopeDims, readAttentionLayer } from '../lib/index.ts';

const attention = await readAttentionLayer(await openModel(process.argv[2] ?? packageFile('test', 'data', 'zoo', 'llama-gqa-tied')), 0);
const plan = rankRopeDims(attention, { pairs: 2 });
const rank = Math.max(1, Math.floor(0.3125 * 2 * attention.kvHeads * attention.headDim) - 2 * plan.components.length);
const expanded = buildMlaLayer(attention, plan, await jointKvSvd(attention, plan, { rank }));
const absorbed = absorbUpProjections(expanded);

console.log(`one token, rank ${rank}: a cache row has ${expanded.cacheElementsPerToken} elements, the source's ${2 * attention.kvHeads * attention.headDim}`);
for (const cached of [128, 1024]) {
  const options = {
    symbols: { b: 1, s: 1, p: cached }, ranges: { positions: [0, attention.maxPositions], past_positions: [0, attention.maxPositions] },
    threads: 1, warmUp: 2, runs: 10,
  } as const;
  const [slow, fast] = [await benchmarkSubgraph(expanded.subgraph, options), await benchmarkSubgraph(absorbed.subgraph, options)];
  console.log(`${cached} cached tokens: expanded ${slow.medianMs.toFixed(3)} ms, absorbed ${fast.medianMs.toFixed(3)} ms (${fast.nodes} nodes, ${fast.constantBytes} bytes of constants)`);
}
