/** Tokens from a compressed cache. npx tsx examples/05-generate-from-the-latent-cache.ts [MODEL] */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { convert, finishGeneration, generate, openModel, openSession, packageFile } from '../lib/index.ts';

const source = await openModel(process.argv[2] ?? packageFile('test', 'data', 'zoo', 'llama-gqa-tied'));
const directory = mkdtempSync(join(tmpdir(), 'attention-surgery-')); // empty: convert accepts it
// All pairs kept and full rank: an exact conversion, so both models must say the same.
const { headDim, kvHeads, hidden } = source.config;
await convert(source, directory, { plan: 'uniform', factor: 'joint', budget: { pairs: headDim / 2, rank: Math.min(kvHeads * headDim, hidden) } });

const prompt = [5, 17, 3, 29, 11]; // openTokenizer(path).encode(text) where the model brings a tokenizer
for (const model of [source, await openModel(directory)]) {
  const session = openSession(model, { threads: 1 });
  const { ids, cacheBytes } = await finishGeneration(generate(session, prompt, { maxTokens: 12, stopIds: [] }));
  console.log(`${model.mla === null ? 'keys and values' : 'latent rows    '}: ${ids.join(' ')}  (${cacheBytes} bytes cached)`);
  await session.close();
}
rmSync(directory, { recursive: true });
