/** The numbered examples run as they stand, on the models of test/data, and print what they promise; so does the bench. */
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import t from 'tap';
import { embeddedModel, findModel } from '../examples/demo/find-model.ts';
import { keptDirectory, refuseForeign } from '../examples/demo/kept-directory.ts';
import { contextsOf, quality } from '../examples/demo/measure.ts';
import { tableOf } from '../examples/demo/table.ts';
import { cases } from '../bench/cases/index.ts';
import { compareReports } from '../bench/support/baseline.ts';
import { latentAttentionGraph, sourceAttentionGraph } from '../bench/support/layer-graphs.ts';
import { readOptions } from '../bench/support/options.ts';
import { presets } from '../bench/support/presets.ts';
import { caseText } from '../bench/support/report.ts';
import type { Row } from '../bench/support/rows.ts';
import { inTurn, median, type Contender } from '../bench/support/turns.ts';
import { workOf } from '../bench/support/work.ts';
import { linear } from '../kernels/index.ts';
import { chooseLatentGroups, costMs, decodeCost, decodePassesFor, packageFile, record, runPasses, zeros, type Subgraph } from '../lib/index.ts';

const LONGEST = 40;
/** Half a nat above the 66 that the model card says of this text. */
const EMBEDDED_PERPLEXITY = 110;
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

t.test('the embedded model reads English, and the demo takes it', async (t) => {
  const path = await findModel(undefined);
  t.equal(path, embeddedModel());
  t.ok(statSync(join(path, 'model.safetensors')).size < 10e6, 'small enough for a repository');
  const { perplexity, window, answer, prompt } = await quality(path, readFileSync(packageFile('examples', 'text', 'wonderland.txt'), 'utf8').slice(0, 6000));
  t.equal(window, 1024);
  // Tokens have 2.9 characters here; a model that knew nothing but how often each occurs would be above 400.
  t.ok(perplexity < EMBEDDED_PERPLEXITY, `perplexity ${perplexity}`);
  t.ok(prompt.length > 0 && answer.trim().split(' ').length > 10, answer);
  t.same(await contextsOf(path), [128, 1000]);
  await t.rejects(findModel('./no-such-model'), { message: /^demo: --model must be a directory, a \.gguf file or a Hub id such as .*, got \.\/no-such-model/ });
});

t.test('the demo replaces what an earlier demo wrote, when the new one is whole, and nothing else', async (t) => {
  const directory = join(t.testdir({ foreign: { 'config.json': '{}' } }), 'out');
  const write = (text: string) => async (fresh: string): Promise<string> => {
    mkdirSync(fresh);
    writeFileSync(join(fresh, 'config.json'), text);
    return text;
  };
  t.equal(await keptDirectory(directory, write('{"a":1}')), '{"a":1}');
  t.equal(await keptDirectory(directory, write('{"a":2}')), '{"a":2}');
  await t.rejects(keptDirectory(directory, async () => { throw new Error('stopped'); }), { message: 'stopped' });
  t.equal(readFileSync(join(directory, 'config.json'), 'utf8'), '{"a":2}', 'a demo that failed leaves what was there');
  const foreign = join(t.testdirName, 'foreign');
  t.throws(() => refuseForeign(foreign), { message: /foreign must be absent or what an earlier demo wrote/ });
  await t.rejects(keptDirectory(foreign, write('{}')), { message: /^demo: / });
  writeFileSync(join(directory, 'config.json'), '{"a":3}');
  t.throws(() => refuseForeign(directory), { message: /^demo: / }, 'changed since');
});

t.test('the table of the demo', (t) => {
  const said = { perplexity: 23.456, windows: 2, window: 1024, prompt: '', answer: '' };
  const cost = { cacheBytesPerToken: 3072, weightBytes: 4.5e6, decodeTokensPerSecond: new Map([[1000, 98.76]]), prefillTokensPerSecond: 1234.5 };
  t.equal(tableOf({ source: { ...said, cost }, healed: { ...said, perplexity: 234.5, cost: null } }), [
    '                                             source    healed',
    'cache, bytes per token                        3,072  the same',
    'perplexity (2 x 1024 tokens)                   23.5       235',
    'decode at 1,000 tokens of context, tokens/s    98.8  the same',
    'prefill, tokens/s                             1,235  the same',
    'weights on disk, MB (converted: float32)       4.50  the same',
  ].join('\n'));
  t.end();
});

/** What the bench needs of a machine; the cases only have to run. */
const benchContext = { threads: 1, runs: 2, ceiling: { gemm: 100, byteGemm: 300, read: 20 }, now: () => performance.now() };

t.test('every case of the bench runs on the tiny preset', async (t) => {
  for (const [name, { smoke, run, defaults }] of Object.entries(cases)) {
    if (smoke === null) {
      t.notOk(Object.hasOwn(defaults, 'preset'), `${name} needs a whole model`);
      continue;
    }
    const { rows, notes } = await run({ preset: 'tiny', ...smoke }, benchContext);
    t.ok(rows.length > 0, `${name} has rows`);
    t.equal(new Set(rows.map(({ what }) => what)).size, rows.length, `${name}: rows have names of their own`);
    const numbers = rows.flatMap(({ exact, measured }) => [...Object.values(exact), ...Object.values(measured)]);
    t.ok(numbers.every((number) => Number.isFinite(number) && number >= 0), `${name}: figures are numbers`);
    t.match(caseText(name, { rows, notes }), new RegExp(`^## ${name}\n\n\\|`), `${name} prints a table`);
  }
});

t.test('the bench counts the work of a subgraph', (t) => {
  const product = record('product', { x: { dtype: 'float32', shape: ['s', 5] } }, (g, { x }) => ({ y: linear(g, g.reshape(x, [1, 's', 5]), { weight: g.parameter('w', zeros('float32', [7, 5])), bias: null }) }));
  t.match(workOf(product, { s: 3 }), { flops: 2 * 3 * 5 * 7, byteFlops: 0, bytes: 4 * (3 * 5 + 3 * 7) + workOf(product, { s: 3 }).weightBytes });
  const shape = presets.tiny;
  const latent = { components: 3, rank: 14, latentGroups: 2 };
  // The new token's row is one of those that are read, as a session has it.
  const counted = (counts: typeof shape, latentShape: Parameters<typeof decodeCost>[1], subgraph: Subgraph, what: string): void => {
    t.equal(workOf(subgraph, { p: 16, block: 1 }).flops, decodeCost(counts, latentShape, 16).flops, what);
  };
  for (const latentGroups of [1, 2]) counted(shape, { ...latent, latentGroups }, latentAttentionGraph(shape, { ...latent, latentGroups }, 'f32', 2 ** 20), `decodeCost counts what absorbed attention computes, ${latentGroups} groups`);
  const alone = { ...shape, kvHeads: shape.heads }, own = { components: 3, rank: 42, latentGroups: shape.heads }, inBlocks = runPasses(latentAttentionGraph(alone, own, 'f32', 2 ** 20), decodePassesFor(2 ** 20));
  t.equal(inBlocks.nodes.filter(({ op, inputs }) => op.endsWith('MatMul') && inputs.some((edge) => edge.endsWith('.blocks'))).length, 2 * shape.heads, 'a latent for each head is read in blocks');
  counted(alone, own, inBlocks, 'which are as many operations');
  counted(shape, null, sourceAttentionGraph(shape, 'f32'), 'and what source attention computes');
  t.throws(() => workOf(product, {}), /every axis needs a length, got s/);
  t.end();
});

t.test('the bench compares with a baseline', (t) => {
  const row = (what: string, nodes: number, medianMs: number): Row => ({ what, exact: { nodes }, measured: { medianMs } });
  const before = { decode: [row('a', 10, 1), row('b', 10, 1), row('c', 10, 1)], load: [row('x', 1, 1)] };
  const { failures, advice } = compareReports(before, { decode: [row('a', 11, 1.1), row('b', 9, 2), row('d', 1, 1)] });
  t.same(failures, ['decode: a: nodes 10 -> 11', 'decode: c: no longer measured']);
  t.same(advice, ['decode: b: nodes 10 -> 9', 'decode: b: 1.000 -> 2.000 ms (2.00 x)', 'decode: d: not in the baseline']);
  t.same(compareReports(before, before), { failures: [], advice: [] });
  t.end();
});

t.test('the bench reads its options', (t) => {
  t.match(readOptions(['decode', '--preset', 'llama-2-7b', '--contexts', '1024,8192', '--groups', '1,auto', '--components', '32', '--caches', 'f32,int4']), {
    case: 'decode', given: { preset: 'llama-2-7b', contexts: [1024, 8192], groups: [1, 'auto'], components: 32, caches: ['f32', 'int4'] }, runs: 12, json: false, save: null,
  });
  t.throws(() => readOptions(['decode', '--preset', 'gpt-5']), /--preset must be one of tiny, .*, got gpt-5/);
  t.throws(() => readOptions(['decode', '--shares', '0.5,2']), /--shares must be numbers above 0 and at most 1 with commas between, got 0\.5,2/);
  t.throws(() => readOptions(['decode', '--components', '1,2']), /--components must be a whole number of 1 or more, got 1,2/);
  t.throws(() => readOptions(['decode', '--contexts', '12x']), /--contexts must be whole numbers/);
  t.throws(() => readOptions(['decode', '--speed']), /--speed/);
  t.throws(() => readOptions(['decode', 'prefill']), /one case at a time/);
  t.end();
});

t.test('times are taken in turn', async (t) => {
  const order: string[] = [];
  let clock = 0;
  const of = (name: string, ms: number): Contender => ({ run: async () => { order.push(name); clock += ms; }, close: async () => { order.push(`${name} closed`); } });
  const times = await inTurn([of('a', 30), of('b', 60)], { runs: 4, now: () => clock });
  t.match(times, [{ medianMs: 30, minMs: 30, runs: 4 }, { medianMs: 60, minMs: 60, runs: 4 }]);
  t.equal(order.join(' '), 'a a b b a a a a a b b b b a a a b b a closed b closed', 'untimed runs until other sessions sleep');
  t.equal(median([3, 1, 2]), 2);
  t.equal(median([4, 1, 2, 3]), 2.5);
});

t.test('latent groups are chosen by cost', (t) => {
  const shape = { heads: 32, kvHeads: 32, headDim: 128 };
  const latent = { components: 341, rank: 1856 };
  const choose = (flops: number, bytes: number): number => chooseLatentGroups(shape, latent, 8192, 'f32', { flopsPerSecond: flops, bytesPerSecond: bytes });
  t.equal(choose(1e15, 1e9), 1, 'reading is all there is');
  t.equal(choose(1e9, 1e15), 32, 'computing is all there is');
  const between = choose(200e9, 30e9);
  t.ok(between > 1 && between < 32 && latent.rank % between === 0, `${between} groups where both count`);
  t.equal(decodeCost(shape, null, 8192).bytes, 8192 * 2 * 32 * 128 * 4);
  t.equal(decodeCost(shape, latent, 1, 'int8').bytes, 2 * 341 + 1856 + 4, 'rope key and latent of an int8 row share a step');
  t.equal(costMs({ flops: 6e9, bytes: 1e9 }, { flopsPerSecond: 2e9, bytesPerSecond: 1e9 }), 3000);
  t.end();
});
