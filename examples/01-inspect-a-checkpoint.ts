/** What is in a checkpoint, without reading a weight. npx tsx examples/01-inspect-a-checkpoint.ts [MODEL] */
import { openModel, packageFile } from '../lib/index.ts';

const model = await openModel(process.argv[2] ?? packageFile('test', 'data', 'zoo', 'llama-gqa-tied'));
const { architecture, layers, heads, kvHeads, headDim, hidden, vocab } = model.config;
console.log(`${architecture}: ${layers} layers, hidden ${hidden}, ${heads} query heads on ${kvHeads} KV heads of width ${headDim}, vocabulary ${vocab}`);
console.log(`cached per token: ${2 * layers * kvHeads * headDim} elements; RoPE pairs per head: ${model.frequencies.length}`);

const tensors = [...model.checkpoint.tensors.values()];
for (const { name, shape, storage } of tensors.slice(0, 5)) console.log(`  ${name} ${storage} [${shape}]`);
console.log(`  ... ${tensors.length} tensors, ${tensors.reduce((sum, { bytes }) => sum + bytes, 0)} bytes (${model.checkpoint.format})`);
