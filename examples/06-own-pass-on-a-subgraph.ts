/** A pass of your own: any function Subgraph -> Subgraph; here float16 weights. npx tsx examples/06-own-pass-on-a-subgraph.ts [MODEL] */
import {
  absorbUpProjections, buildMlaLayer, jointKvSvd, openModel, packageFile, rankRopeDims, readAttentionLayer, runSubgraph, tensor, toDType, toFloat32,
  type Constant, type HostTensor, type Node, type Subgraph,
} from '../lib/index.ts';

const FLOAT = 1; // ONNX's number of float32

function weightsInFloat16(subgraph: Subgraph): Subgraph {
  const wide = [...subgraph.constants].filter((entry): entry is [string, HostTensor<'float32'>] => !('file' in entry[1]) && entry[1].dtype === 'float32' && entry[1].shape.length === 2);
  const halves = wide.map(([name, weight]): [string, Constant] => [`${name}.half`, toDType(weight, 'float16')]);
  const casts = wide.map(([name]): Node => ({ op: 'Cast', domain: '', inputs: [`${name}.half`], outputs: [name], attributes: { to: { kind: 'int', value: FLOAT } } }));
  const kept = [...subgraph.constants].filter(([name]) => !wide.some(([taken]) => taken === name));
  return { ...subgraph, constants: new Map([...kept, ...halves]), nodes: [...casts, ...subgraph.nodes] };
}

const attention = await readAttentionLayer(await openModel(process.argv[2] ?? packageFile('test', 'data', 'zoo', 'llama-gqa-tied')), 0);
const plan = rankRopeDims(attention, { pairs: 2 });
const layer = absorbUpProjections(buildMlaLayer(attention, plan, await jointKvSvd(attention, plan, { rank: 24 })));

const [past, ropeWidth] = [7, 2 * layer.frequencies.length];
const wave = (shape: readonly number[]): HostTensor => tensor('float32', shape, Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => Math.sin(i)));
const positions = (from: number, count: number): HostTensor => tensor('int64', [count], BigInt64Array.from({ length: count }, (_, i) => BigInt(from + i)));
const feeds = {
  hidden: wave([1, 1, layer.hidden]), positions: positions(past, 1),
  past_positions: positions(0, past), past_rope: wave([1, past, ropeWidth]), past_latent: wave([1, past, layer.rank]),
};
const outputOf = async (subgraph: Subgraph): Promise<Float32Array> => toFloat32((await runSubgraph(subgraph, feeds)).output ?? wave([0])).data;
const [exact, half] = [await outputOf(layer.subgraph), await outputOf(weightsInFloat16(layer.subgraph))];
const largest = exact.reduce((most, x, i) => Math.max(most, Math.abs(x - (half[i] ?? NaN))), 0);
console.log(`${layer.subgraph.nodes.length} nodes; largest difference with float16 weights ${largest.toExponential(1)}`);
