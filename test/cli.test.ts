import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { openSafetensors, readSafetensors } from '../lib/checkpoint/safetensors.ts';
import { tensorSources, writeSafetensors } from '../lib/checkpoint/write-safetensors.ts';
import { runCli, type CliIo } from '../lib/cli.ts';
import { convert } from '../lib/convert.ts';
import type { HostTensor } from '../lib/graph/subgraph.ts';
import { hugePageEnvironment } from '../lib/huge-pages.ts';
import { openModel } from '../lib/models/model.ts';
import { temporaryDirectory, zooModelWithTokenizer, zooPath } from './support/zoo-model.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const work = temporaryDirectory((clean) => t.teardown(clean));
const model = zooModelWithTokenizer('llama-gqa-tied', join(work, 'model'));
const text = join(work, 'text.txt');
writeFileSync(text, 'It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife. '.repeat(7));

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a command line in this process; `watch` sees every write to standard error. */
async function run(argv: readonly string[], { watch, ...io }: Partial<CliIo> & { readonly watch?: (written: string) => void } = {}): Promise<Outcome> {
  let stdout = '';
  let stderr = '';
  const sink = new Writable({
    write(chunk: Buffer, _encoding, done) {
      stderr += chunk.toString();
      watch?.(chunk.toString());
      done();
    },
  });
  const code = await runCli(argv, {
    out: (written) => { stdout += written; }, stderr: sink, signal: new AbortController().signal, clock: () => performance.now(), environment: {}, ...io,
  });
  return { code, stdout, stderr };
}

/** The one JSON object that standard output must be. */
async function json(...argv: readonly string[]): Promise<Record<string, unknown>> {
  const { code, stdout, stderr } = await run([...argv, ...(argv[0] === 'inspect' ? [] : ['--threads', '1']), '--json']);
  if (code !== 0) throw new Error(`${argv.join(' ')} failed: ${stderr}`);
  return parsed(stdout);
}

function parsed(stdout: string): Record<string, unknown> {
  const lines = stdout.split('\n');
  if (lines.length !== 2 || lines[1] !== '') throw new Error(`standard output must be one line, got ${JSON.stringify(stdout)}`);
  const value: unknown = JSON.parse(lines[0] ?? '');
  return Object.fromEntries(Object.entries(typeof value === 'object' && value !== null ? value : {}));
}

const number = (value: unknown): number => (typeof value === 'number' ? value : NaN);

t.test('inspect', async (t) => {
  const { code, stdout } = await run(['inspect', model, '--json']);
  t.equal(code, 0);
  t.match(parsed(stdout), {
    architecture: 'LlamaForCausalLM', layers: 3, heads: 6, kvHeads: 2, headDim: 16, vocabulary: 97, context: 64, tied: true, converted: null,
    ropePairsPerHead: 8, format: 'safetensors', cacheBytesPerToken: 3 * 2 * 2 * 16 * 4, rope: { type: 'default' },
  });
  const shown = await run(['inspect', model]);
  t.match(shown.stdout, /^cacheBytesPerToken {2}768$/m, 'without --json a listing');
  t.equal(shown.stderr, '');
});

t.test('convert, then inspect, eval, generate and verify what it made', async (t) => {
  const out = join(work, 'converted');
  const report = await json('convert', model, '--out', out, '--rope', 'uniform', '--pairs', '3', '--factor', 'joint', '--rank', '11', '--no-calibration');
  t.match(report, { cacheElementsPerToken: { before: 192, after: 3 * (2 * 2 * 3 + 11) }, out, conversion: join(out, 'conversion.json') });
  t.ok(Math.abs(number(report.reduction) - (1 - 69 / 192)) < 1e-12);
  t.match(report.layers, [0, 1, 2].map((layer) => ({ layer, rank: 11, pairs: 3, keyError: Number, valueError: Number, outputError: null })));
  t.ok(number(report.seconds) > 0);
  for (const name of ['config.json', 'conversion.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json']) t.ok(existsSync(join(out, name)), name);
  t.notOk(readdirSync(out).some((name) => name.startsWith('.')), 'nothing temporary is left inside');

  t.match(await json('inspect', out), { cacheBytesPerToken: 69 * 4, converted: { plan: { strategy: 'uniform', pairs: 3 }, layers: [{ rank: 11, components: 6 }] } });
  const before = await json('eval', model, '--text', text, '--window', '31', '--windows', '3');
  const after = await json('eval', out, '--text', text, '--window', '31', '--windows', '3');
  t.match(before, { perplexity: Number, tokens: 93, windows: 3, window: 31, cacheBytesPerToken: 768, tokensPerSecond: Number });
  t.match(after, { perplexity: Number, tokens: 93, cacheBytesPerToken: 276 });
  t.equal(Array.isArray(after.nllPerWindow) && after.nllPerWindow.length, 3);
  t.ok(Math.abs(number(before.perplexity) - number(after.perplexity)) > 1e-6, 'another model');

  const made = await json('generate', out, '--prompt', 'It is', '--max-tokens', '7', '--temperature', '1', '--seed', '3');
  t.match(made, { text: String, prefillTokensPerSecond: Number, decodeTokensPerSecond: Number, cacheBytes: (5 + 6) * 276, promptTokens: 5, finishReason: 'max-tokens' });
  t.equal(Array.isArray(made.ids) && made.ids.length, 7);
  const streamed = await run(['generate', out, '--prompt', 'It is', '--max-tokens', '7', '--temperature', '1', '--seed', '3', '--threads', '1']);
  t.equal(streamed.stdout, `${String(made.text)}\n`, 'without --json the same text, streamed');
  t.match(streamed.stderr, /^max-tokens; prefill .* cache 3,036 bytes$/m);

  const compared = await json('verify', out, '--against', model, '--text', text);
  t.match(compared, { maxAbsDifference: Number, meanKl: Number, top1Agreement: Number, absorbedVsExpanded: Number, cachedVsUncached: Number, tokens: 64 });
  t.ok(number(compared.absorbedVsExpanded) < 2e-4 && number(compared.cachedVsUncached) < 2e-4);
  t.ok(number(compared.maxAbsDifference) > 1e-3, 'a smaller rank is not the source');

  const again = await run(['convert', out, '--out', join(work, 'twice')]);
  t.equal(again.code, 1);
  t.match(again.stderr, /must be a source model, got .*converted already/);
});

t.test('weights rounded for a text, in a file that eval and generate take', async (t) => {
  const file = join(work, 'codes.safetensors');
  const made = await json('quantise', model, '--text', text, '--tokens', '150', '--out', file);
  t.match(made, { matrices: 6, tokens: 128, texts: ['text.txt'], bytes: Number, meanRelativeError: Number, seconds: Number, out: file });
  const perplexityOf = async (...weights: readonly string[]): Promise<number> => number((await json('eval', model, '--text', text, '--window', '31', '--windows', '5', ...weights)).perplexity);
  const [exact, rounded] = [await perplexityOf(), await perplexityOf('--weights', file)];
  t.ok(rounded !== exact && Math.abs(rounded / exact - 1) < 0.05, `${rounded} against ${exact}`);
  t.match(await json('generate', model, '--prompt', 'It is', '--max-tokens', '3', '--weights', file), { weights: file, finishReason: 'max-tokens' });
  t.match(await run(['quantise', model, '--text', text, '--out', file]), { code: 1, stderr: /--out must be a new file, but .*codes\.safetensors is there/ });
  t.match(await run(['quantise', model, '--text', join(work, 'no.txt'), '--out', join(work, 'new.safetensors')]), { code: 1, stderr: /quantise: --text must be a readable file/ });
  const other = zooModelWithTokenizer('llama-bias', join(work, 'other'));
  t.match(await run(['eval', other, '--text', text, '--weights', file]), { code: 1, stderr: /loadWeightCodes: model of .*codes\.safetensors must be [0-9a-f]{64}, got [0-9a-f]{64}/ });
  t.match(await run(['eval', model, '--text', text, '--weights', join(work, 'none.safetensors')]), { code: 1, stderr: /none\.safetensors.*ENOENT|ENOENT.*none\.safetensors/ });
  t.notOk(existsSync(join(work, 'new.safetensors')));
});

t.test('verify: the goldens of HF transformers, and a lossless conversion', async (t) => {
  const golden = join(zooPath('llama-gqa-tied'), 'golden.safetensors');
  const source = await json('verify', model, '--against', golden);
  t.match(source, { top1Agreement: 1, absorbedVsExpanded: null, sequences: 2, tokens: 46 });
  t.ok(number(source.maxAbsDifference) < 2e-4 && number(source.cachedVsUncached) < 2e-4 && number(source.meanKl) < 1e-9);
  const windowed = await json('verify', zooPath('mistral-window'), '--against', join(zooPath('mistral-window'), 'golden.safetensors'));
  t.ok(number(windowed.maxAbsDifference) < 2e-4, 'a sliding window is honoured');
  const out = join(work, 'lossless');
  await json('convert', model, '--out', out, '--rope', 'uniform', '--pairs', '8', '--factor', 'joint', '--rank', '32', '--no-calibration');
  const lossless = await json('verify', out, '--against', golden);
  t.ok(number(lossless.maxAbsDifference) < 2e-4 && number(lossless.absorbedVsExpanded) < 2e-4, `all pairs and full rank: ${String(lossless.maxAbsDifference)}`);
  const other = await run(['verify', model, '--against', join(zooPath('llama-mqa'), 'model.safetensors')]);
  t.match([other.code, other.stderr], [1, /must hold ids \[b, s\] and logits/]);
});

t.test('wrong usage: exit code 2, the rule in one line', async (t) => {
  for (const [argv, rule] of [
    [['eval', model], /--text <FILE> must be given/],
    [['eval'], /missing required argument 'MODEL'/],
    [['eval', model, '--text', text, '--window', '1'], /--window must be a whole number of 2 or more, got 1/],
    [['eval', model, '--text', text, '--windows', '2.5'], /--windows must be a whole number/],
    [['eval', model, '--text', text, '--provider', 'tpu'], /--provider must be one of cpu, cuda, got tpu/],
    [['eval', model, '--text', text, '--cache', 'f8'], /--cache must be one of f32.*, got f8/],
    [['eval', model, '--text', text, '--weights', 'int5'], /--weights must be one of f32.* or a \.safetensors file, got int5/],
    [['quantise', model, '--out', 'codes.bin'], /--out must end in \.safetensors, got codes\.bin/],
    [['quantise', model, '--out', 'x.safetensors', '--block-size', '33'], /--block-size must be a power of two, got 33/],
    [['eval', model, '--text', text, '--nonsense'], /unknown option '--nonsense'/],
    [['frobnicate'], /unknown command 'frobnicate'/],
    [['convert', model], /--out <DIR> must be given/],
    [['convert', model, '--out', 'x', '--cache-share', '1.5'], /--cache-share must be a number above 0 and at most 1, got 1.5/],
    [['convert', model, '--out', 'x', '--cache-share', '0.5', '--rank', '4'], /--cache-share and --rank exclude each other/],
    [['convert', model, '--out', 'x', '--rope', 'best'], /--rope must be one of high, low, uniform, .*, got best/],
    [['convert', model, '--out', 'x', '--pairs', '0'], /--pairs must be a whole number of 1 or more, got 0/],
    [['generate', model], /--prompt TEXT or --prompt-file FILE must be given/],
    [['generate', model, '--prompt', 'a', '--prompt-file', text], /--prompt and --prompt-file exclude each other/],
    [['generate', model, '--prompt', 'a', '--seed', '3'], /need a --temperature above 0/],
    [['generate', model, '--prompt', 'a', '--temperature', 'hot'], /--temperature must be a number of 0 or more, got hot/],
    [['verify', model], /--against <MODEL\|FILE> must be given/],
  ] as const) {
    const { code, stdout, stderr } = await run(argv);
    t.equal(code, 2, argv.slice(0, 1).concat(argv.slice(2)).join(' '));
    t.equal(stdout, '');
    t.match(stderr, rule);
    t.match(stderr, /^attention-surgery: [^\n]*\n$/, 'one line');
  }
  t.equal((await run([])).code, 2, 'no command');
  const help = await run(['generate', '--help']);
  t.match([help.code, help.stderr], [0, '']);
  t.match(help.stdout, /--prompt-tokens <N>/);
});

t.test('generate: prompts', async (t) => {
  const long = await run(['generate', model, '--prompt-file', text, '--threads', '1']);
  t.match([long.code, long.stdout], [1, '']);
  t.match(long.stderr, /^attention-surgery: generate: prompt must fit the context of 64 tokens, got \d+\n$/);
  t.match(await json('generate', model, '--prompt-file', text, '--prompt-tokens', '61', '--max-tokens', '9'), { promptTokens: 61, finishReason: 'context-full' });
  t.match(await json('generate', model, '--prompt', 'ab', '--prompt-tokens', '13', '--max-tokens', '2'), { promptTokens: 13 }, 'a short prompt is repeated');
  // <s>user:Hi</s><s>: 3 special tokens and 7 characters
  t.match(await json('generate', model, '--prompt', 'Hi', '--chat', '--max-tokens', '2'), { promptTokens: 10 });
  const saved = join(work, 'prompt.safetensors'), goOn = (prompt: string) => json('generate', model, '--prompt', prompt, '--max-tokens', '3', '--prompt-cache', saved);
  t.match(await goOn('To be'), { promptTokens: 5, promptTokensFromCache: 0 }, 'the first time the prompt is written');
  const behind = await goOn('To be, or');
  t.match(behind, { promptTokens: 9, promptTokensFromCache: 5 });
  t.same(behind.ids, (await json('generate', model, '--prompt', 'To be, or', '--max-tokens', '3')).ids);
  t.match(await goOn('To be'), { promptTokens: 5, promptTokensFromCache: 4 }, 'the last token always runs');
  t.match([await goOn('Two'), await goOn('Two')], [{ promptTokensFromCache: 0 }, { promptTokensFromCache: 2 }], 'another prompt takes the place of the old one');
  t.match(await run(['generate', model, '--prompt', 'Two', '--cache', 'int8', '--prompt-cache', saved]), { code: 1, stderr: /cache of .*prompt\.safetensors must be int8, got f32/ });
  t.match(await run(['generate', zooPath('llama-mha'), '--prompt', 'a']), { code: 1, stderr: /directory must hold tokenizer\.json/ });
});

t.test('MODEL may be a name on the hub', async (t) => {
  const environment = { HF_HUB_CACHE: join(work, 'hub'), HF_HUB_OFFLINE: '1' };
  const commit = '0123456789abcdef0123456789abcdef01234567';
  const repository = join(work, 'hub', 'models--someone--tiny');
  cpSync(model, join(repository, 'snapshots', commit), { recursive: true });
  mkdirSync(join(repository, 'refs'));
  writeFileSync(join(repository, 'refs', 'main'), commit);
  const { code, stdout, stderr } = await run(['inspect', 'someone/tiny', '--json'], { environment });
  t.match([code, stderr], [0, ''], 'a cached model needs no network');
  t.match(parsed(stdout), { layers: 3 });
  t.match(await run(['inspect', 'someone/other'], { environment }), { code: 1, stdout: '', stderr: /^attention-surgery: downloadModel: someone\/other .*offline/ });
});

t.test('conversion guided by text', async (t) => {
  const out = (name: string): readonly string[] => ['convert', model, '--out', join(work, name), '--threads', '1'];
  t.match(await run([...out('no'), '--rope', '2-norm', '--no-calibration']), { code: 2, stderr: /--rope 2-norm must have calibration text, got --no-calibration/ });
  t.match(await run([...out('no'), '--calibration-tokens', '64', '--no-calibration']), { code: 2, stderr: /--calibration-tokens and --no-calibration exclude each other/ });
  t.match(await run([...out('no'), '--calibration', join(work, 'nothing.txt')]), { code: 1, stderr: /convert: --calibration must be a readable file/ });
  t.match(await run([...out('no'), '--calibration', join(work, 'model', 'config.json'), '--calibration-tokens', '10000']), { code: 0 });
  const chosen = await json(...out('norms'), '--rope', '2-norm', '--pairs', '2', '--rank', '7', '--factor', 'joint', '--calibration', text, '--calibration-tokens', '640', '--no-refit');
  t.match(chosen, { plan: '2-norm', factor: 'joint', calibration: { tokens: 640, refit: false, texts: [{ name: 'text.txt' }] } });
  const statistics = join(work, 'statistics');
  const best = await json(...out('best'), '--calibration', text, '--calibration-tokens', '640', '--cache-share', '0.25', '--statistics', statistics);
  t.match(best, { plan: 'bank', factor: 'two-sided', calibration: { refit: true }, cacheElementsPerToken: { before: 192, after: 48 } }, 'our own method where there is text');
  t.match(best.layers, [{ outputError: Number }, { outputError: Number }, { outputError: Number }]);
  const again = await json(...out('again'), '--calibration', text, '--calibration-tokens', '640', '--cache-share', '0.25', '--statistics', statistics);
  t.same(again.layers, best.layers, 'saved statistics give the same conversion');
  const shipped = await json(...out('shipped'), '--calibration-tokens', '320');
  t.match(shipped, { plan: 'bank', factor: 'two-sided', calibration: { tokens: 320, refit: true } }, 'without any option, by the text that ships with the package');
  const verified = await json('verify', join(work, 'best'), '--against', model, '--text', text);
  t.ok(number(verified.absorbedVsExpanded) < 2e-4 && number(verified.cachedVsUncached) < 2e-4);
});

/** A copy of the model under `name`, damaged. */
function damaged(name: string, damage: (directory: string) => void): string {
  const directory = join(work, name);
  cpSync(model, directory, { recursive: true });
  damage(directory);
  return directory;
}

/** Replaces a text in a file by another of the same length, or in config.json of any. */
function replaceIn(file: string, from: string, to: string): void {
  const bytes = readFileSync(file, 'latin1');
  if (!bytes.includes(from)) throw new Error(`${file} must contain ${from}`);
  writeFileSync(file, bytes.replace(from, to), 'latin1');
}

t.test('bad input: a clear error, exit code 1, nothing written', async (t) => {
  const weights = (directory: string): string => join(directory, 'model.safetensors');
  const config = (directory: string): string => join(directory, 'config.json');
  const header = await openSafetensors(weights(model));
  const poisoned = header.tensors.get('model.layers.1.self_attn.v_proj.weight')?.offset ?? NaN;
  const gguf = join(root, 'test', 'data', 'gguf', 'llama.gguf');
  const ggufBytes = readFileSync(gguf);
  const short = join(work, 'short.gguf');
  writeFileSync(short, ggufBytes.subarray(0, ggufBytes.length - 5));
  const magic = join(work, 'magic.gguf');
  writeFileSync(magic, Buffer.concat([Buffer.from('GGML'), ggufBytes.subarray(4)]));

  const target = join(work, 'targets', 'out');
  mkdirSync(join(work, 'targets'));
  for (const [what, path, more, rule] of [
    ['truncated safetensors', damaged('truncated', (d) => truncateSync(weights(d), 100_003)), [], /model\.safetensors lies at .* but the file has/],
    ['header larger than the file', damaged('header', (d) => truncateSync(weights(d), 101)), [], /header of .*model\.safetensors is \d+ bytes but the file has 101/],
    ['NaN weights', damaged('nan', (d) => {
      const bytes = readFileSync(weights(d));
      bytes.writeFloatLE(NaN, poisoned + 4 * 7);
      writeFileSync(weights(d), bytes);
    }), [], /weights must be finite, tensor model\.layers\.1\.self_attn\.v_proj\.weight .* has NaN at \[0, 7\]/],
    ['a missing tensor', damaged('missing', (d) => replaceIn(weights(d), 'model.layers.2.mlp.up_proj.weight', 'model.layers.2.mlp.UP_proj.weight')), [], /model\.layers\.2\.mlp\.up_proj\.weight/],
    ['a wrong shape', damaged('shape', (d) => replaceIn(config(d), '"num_key_value_heads": 2', '"num_key_value_heads": 3')), [], /must have shape \[48,48\] by the model's config, got \[32,48\]/],
    ['an unknown architecture', damaged('architecture', (d) => replaceIn(config(d), '"llama"', '"gpt_neox"')), [], /model_type must be one of .*llama.*, got "gpt_neox"/],
    ['an unknown dtype', damaged('dtype', (d) => replaceIn(weights(d), '"F32"', '"F33"')), [], /must have a dtype of .*, got F33/],
    ['a truncated GGUF file', short, [], /short\.gguf lies at .* but the file has/],
    ['a wrong magic', magic, [], /magic\.gguf/],
    ['no such model', join(work, 'nothing'), [], /MODEL must be a directory, a \.gguf file or a Hub id, got/],
    ['pairs out of range', model, ['--pairs', '9', '--rope', 'uniform', '--rank', '5'], /pairs must be 1\.\.8 per KV head.*, got 9/],
    ['rank out of range', model, ['--pairs', '2', '--rope', 'uniform', '--factor', 'joint', '--rank', '400'], /rank must be 1\.\.48 for layer 0, got 400/],
  ] as const) {
    const { code, stdout, stderr } = await run(['convert', path, '--out', target, '--no-calibration', ...more, '--threads', '1']);
    t.equal(code, 1, what);
    t.equal(stdout, '', what);
    t.match(stderr, rule, what);
    t.match(stderr, /^attention-surgery: [^\n]*\n$/, 'one line');
    t.same(readdirSync(join(work, 'targets')), [], `${what}: nothing written`);
  }
  mkdirSync(target);
  writeFileSync(join(target, 'mine.txt'), 'keep');
  t.match(await run(['convert', model, '--out', target]), { code: 1, stderr: /output directory must be empty or absent, .*out holds mine\.txt/ });
  t.same(readdirSync(target), ['mine.txt']);
  t.match(await run(['eval', model, '--text', join(work, 'no.txt')]), { code: 1, stderr: /eval: --text must be a readable file, got .*no\.txt \(ENOENT\)/ });
  writeFileSync(join(work, 'latin1.txt'), Buffer.from([0x61, 0xe9, 0x62]));
  t.match(await run(['eval', model, '--text', join(work, 'latin1.txt')]), { code: 1, stderr: /must be UTF-8 text/ });
  writeFileSync(join(work, 'tiny.txt'), 'tiny');
  t.match(await run(['eval', model, '--text', join(work, 'tiny.txt')]), { code: 1, stderr: /text must have at least 64 tokens for 1 window of 64, got 4/ });
  const traced = await run(['inspect', join(work, 'nothing')], { environment: { DEBUG: '1' } });
  t.match(traced.stderr, /\n\s+at /, 'DEBUG shows the stack');
});

t.test('a full disk leaves nothing', async (t) => {
  const folder = join(work, 'full');
  mkdirSync(folder);
  let room = 200_000;
  await t.rejects(convert(await openModel(model), join(folder, 'out'), {
    budget: { pairs: 2, rank: 5 }, plan: 'uniform', factor: 'joint', threads: 1,
    writeBytes: async (file, bytes, position) => {
      room -= bytes.byteLength;
      if (room < 0) throw Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' });
      return (await file.write(bytes, 0, bytes.byteLength, position)).bytesWritten;
    },
  }), { message: /was not written: ENOSPC/ });
  t.same(readdirSync(folder), []);
});

t.test('an abort in the middle of convert leaves nothing, exit code 130', async (t) => {
  const folder = join(work, 'aborted');
  mkdirSync(folder);
  const stop = new AbortController();
  let now = 0;
  const { code, stdout, stderr } = await run(['convert', model, '--out', join(folder, 'out'), '--no-calibration', '--json', '--threads', '1'], {
    signal: stop.signal,
    clock: () => (now += 6000), // a line of progress for every layer
    watch(written) {
      if (!/converting: 33%/.test(written)) return;
      t.match(readdirSync(folder), [/^\.out\.partial-/], 'it was in the middle');
      stop.abort(new Error('Ctrl-C'));
    },
  });
  t.match([code, stdout], [130, '']);
  t.match(stderr, /attention-surgery: interrupted\n$/);
  t.same(readdirSync(folder), []);
});

/** A model of many layers, so that converting it takes seconds. */
async function deepModel(directory: string, layers: number): Promise<string> {
  cpSync(model, directory, { recursive: true });
  const tensors = await readSafetensors(join(model, 'model.safetensors'));
  const prefix = 'model.layers.0.';
  const first = [...tensors].filter(([name]) => name.startsWith(prefix));
  const all = Array.from({ length: layers }, (_, layer) => first.map(([name, tensor]): [string, HostTensor] => [`model.layers.${layer}.${name.slice(prefix.length)}`, tensor])).flat();
  await writeSafetensors(join(directory, 'model.safetensors'), tensorSources([...[...tensors].filter(([name]) => !name.startsWith('model.layers.')), ...all]));
  replaceIn(join(directory, 'config.json'), '"num_hidden_layers": 3', `"num_hidden_layers": ${layers}`);
  return directory;
}

t.test('the real process: pure standard output, and Ctrl-C', async (t) => {
  const start = (...argv: readonly string[]): ReturnType<typeof spawn> => spawn(process.execPath, ['--import', 'tsx', join('lib', 'cli.ts'), ...argv], { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] });
  const finished = async (child: ReturnType<typeof spawn>): Promise<Outcome> => {
    let stdout = '';
    let stderr = '';
    child.stdout?.on('data', (chunk: Buffer) => { stdout += chunk.toString(); });
    child.stderr?.on('data', (chunk: Buffer) => { stderr += chunk.toString(); });
    await once(child, 'close');
    return { code: child.exitCode ?? NaN, stdout, stderr };
  };
  const folder = join(work, 'interrupted');
  mkdirSync(folder);
  const deep = await deepModel(join(work, 'deep'), 499);
  const converting = start('convert', deep, '--out', join(folder, 'out'), '--no-calibration', '--json', '--threads', '1');
  const outcome = finished(converting);
  while (readdirSync(folder).length === 0 && converting.exitCode === null) await sleep(5);
  t.match(readdirSync(folder), [/^\.out\.partial-/], 'it was in the middle');
  converting.kill('SIGINT');
  const { code, stdout, stderr } = await outcome;
  t.equal(code, 130);
  t.equal(stdout, '');
  t.match(stderr, /^attention-surgery: interrupted$/m);
  t.same(readdirSync(folder), []);

  const evaluated = await finished(start('eval', model, '--text', text, '--window', '31', '--windows', '2', '--json'));
  t.equal(evaluated.code, 0);
  t.match(parsed(evaluated.stdout), { perplexity: Number, windows: 2 });

  // Where large pages are to be had this runs in a second process, without a difference outside.
  const generated = await finished(start('generate', model, '--prompt', 'To be', '--max-tokens', '3', '--json', '--threads', '1'));
  t.equal(generated.code, 0);
  t.match(parsed(generated.stdout), { ids: Array });
  t.equal((await finished(start('generate', model, '--prompt', ''))).code, 1, 'the exit code comes through');
});

t.test('large pages are asked for where they are to be had, once', async (t) => {
  const host = { platform: 'linux', glibc: '2.36', transparent: 'madvise' } as const;
  t.same(hugePageEnvironment({ HOME: '/h' }, host), { HOME: '/h', GLIBC_TUNABLES: 'glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=2097152' });
  t.same(hugePageEnvironment({ GLIBC_TUNABLES: 'glibc.malloc.check=1' }, host), { GLIBC_TUNABLES: 'glibc.malloc.check=1:glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=2097152' }, 'other tunables stay');
  t.same(hugePageEnvironment({ GLIBC_TUNABLES: 'glibc.malloc.mmap_threshold=4096' }, host), { GLIBC_TUNABLES: 'glibc.malloc.mmap_threshold=4096:glibc.malloc.hugetlb=1' }, 'and so does a threshold');
  for (const [environment, other] of [
    [{ ATTENTION_SURGERY_HUGE_PAGES: '0' }, {}], [{ GLIBC_TUNABLES: 'glibc.malloc.hugetlb=2' }, {}], [{}, { platform: 'darwin' }], [{}, { glibc: '2.34' }],
    [{}, { glibc: null }], [{}, { transparent: 'always' }], [{}, { transparent: null }],
  ] as const) t.equal(hugePageEnvironment(environment, { ...host, ...other }), null, JSON.stringify([environment, other]));
  t.ok(hugePageEnvironment({}, { ...host, glibc: '3.0' }));
});
