/** The numbered examples run as they stand, on the models of test/data, and print what they promise. */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import t from 'tap';
import { packageFile } from '../lib/index.ts';

const LONGEST = 40;
const source = packageFile('test', 'data', 'zoo', 'llama-gqa-tied');

/** What each must print, and arguments where the default would leave files behind. */
const examples: Readonly<Record<string, { readonly prints: readonly RegExp[]; readonly args?: (directory: string) => readonly string[] }>> = {
  '01-inspect-a-checkpoint.ts': { prints: [/LlamaForCausalLM: 3 layers, hidden 48, 6 query heads on 2 KV heads of width 16/, /cached per token: 192 elements/] },
  '02-rank-rope-dims.ts': { prints: [/^high: KV head 0 pair 0 \(1\.00 rad per token\), KV head 0 pair 1/m, /qRope \[1,5,6,8\]/, /kNope \[1,5,2,16\]/] },
  '03-factor-keys-and-values.ts': { prints: [/^joint +40 +0\.7500 +0\.09/m, /^split +12/m] },
  '04-convert-a-model.ts': { prints: [/layer 2: rank 28, 2 rotating components/, /cache 192 -> 96 elements per token/, /3 layers of latent attention/], args: (directory) => [source, directory] },
  '05-generate-from-the-latent-cache.ts': { prints: [/^keys and values: (?<ids>[\d ]+?) {2}.*\nlatent rows {4}: \k<ids> {2}/] },
  '06-own-pass-on-a-subgraph.ts': { prints: [/largest difference with float16 weights [1-9]\.\de-[3-5]/] },
  '07-benchmark-one-layer.ts': { prints: [/a cache row has 20 elements, the source's 64/, /^1024 cached tokens: expanded [\d.]+ ms, absorbed [\d.]+ ms/m] },
};

t.test('every numbered example is in the table, short, and says how to run it', (t) => {
  const names = readdirSync(packageFile('examples')).filter((name) => /^\d/.test(name)).sort();
  t.same(names, Object.keys(examples));
  for (const name of names) {
    const text = readFileSync(packageFile('examples', name), 'utf8');
    t.ok(text.trimEnd().split('\n').length < LONGEST, `${name} has fewer than ${LONGEST} lines`);
    t.ok(text.includes(`npx tsx examples/${name}`), `${name} says how to run it`);
  }
  t.end();
});

t.test('every numbered example runs', async (t) => {
  const printed: string[] = [];
  t.intercept(console, 'log', { value: (...words: readonly unknown[]) => { printed.push(words.join(' ')); } });
  const { argv } = process;
  t.teardown(() => { process.argv = argv; });
  for (const [name, { prints, args }] of Object.entries(examples)) {
    printed.length = 0;
    process.argv = [process.execPath, name, ...(args?.(join(t.testdir(), 'converted')) ?? [])];
    await import(pathToFileURL(packageFile('examples', name)).href);
    for (const pattern of prints) t.match(printed.join('\n'), pattern, `${name}: ${pattern.source}`);
  }
  t.ok(existsSync(join(t.testdirName, 'converted', 'conversion.json')), 'the conversion is there');
});

t.test('the program in README.md runs', async (t) => {
  const block = /<!-- test\/examples\.test\.ts runs this block -->\n```ts\n([^`]*)```/.exec(readFileSync(packageFile('README.md'), 'utf8'))?.[1] ?? '';
  const directory = t.testdir();
  const onnx = join(directory, 'layer-0.onnx');
  const program = block
    .replace("'attention-surgery'", JSON.stringify(pathToFileURL(packageFile('lib', 'index.ts')).href))
    .replace("'path/to/model'", JSON.stringify(source))
    .replace("'layer-0.onnx'", JSON.stringify(onnx));
  writeFileSync(join(directory, 'readme.ts'), program);
  const printed: string[] = [];
  t.intercept(console, 'log', { value: (...words: readonly unknown[]) => { printed.push(words.join(' ')); } });
  await import(pathToFileURL(join(directory, 'readme.ts')).href);
  t.match(printed.join('\n'), /^0\.\d+ 0\.\d+ 40$/, 'errors of keys and values, and 16 + 24 elements per token');
  t.ok(existsSync(onnx), 'the layer was written');
});
