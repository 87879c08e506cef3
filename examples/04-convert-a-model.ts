/** A whole model, layer by layer, into a directory. npx tsx examples/04-convert-a-model.ts [MODEL [DIRECTORY]] */
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { convert, openModel, packageFile } from '../lib/index.ts';

const model = await openModel(process.argv[2] ?? packageFile('test', 'data', 'zoo', 'llama-gqa-tied'));
const directory = process.argv[3] ?? join(mkdtempSync(join(tmpdir(), 'attention-surgery-')), 'converted');

const report = await convert(model, directory, { budget: { cacheShare: 0.5 }, plan: 'uniform', factor: 'joint' });
console.log(`${report.plan} + ${report.factor}: ${report.budget}`);
for (const { layer, rank, components, keyError, valueError } of report.layers) {
  console.log(`layer ${layer}: rank ${rank}, ${components} rotating components, error of keys ${keyError.toFixed(3)}, of values ${valueError.toFixed(3)}`);
}
console.log(`cache ${report.cacheElementsPerToken.before} -> ${report.cacheElementsPerToken.after} elements per token; written to ${directory}`);

const converted = await openModel(directory); // opens like any other model
console.log(`opened again: ${converted.mla?.layers.length} layers of latent attention`);
