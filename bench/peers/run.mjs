// Ours and the systems a user would otherwise pick, on one model, one after another; one table, and a last line of JSON.
// See README.md for what must be there. Every row is a process of its own; so is every repetition.
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { compiled } from './compiled.mjs';

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const string = { type: 'string' };
const { values } = parseArgs({
  options: {
    model: string, codes: string, 'model-small': string, peers: string, python: { ...string, default: 'python3' }, only: string,
    contexts: { ...string, default: '128,1024,4096,8000' }, threads: { ...string, default: String(Math.min(cpus().length, 8)) }, steps: { ...string, default: '64' },
  },
});
const { peers, python, contexts, threads, steps } = values;
if (values.codes !== undefined && values.model === undefined) throw new Error('peers: --codes are of --model, got no --model');
if (peers === undefined) throw new Error('peers: --peers DIR must be given, the folder that prepare.py filled');

const common = (model) => ['--model', model, '--tokens', join(peers, 'tokens.json'), '--contexts', contexts, '--threads', threads, '--steps', steps];
// With the collector in reach, as our command line starts itself.
const node = [process.execPath, '--expose-gc', compiled('ours')];
const ours = (name, model, weights, cache) =>
  ({ name: `ours, ${name}, ${weights} weights, ${cache} cache`, needs: [model], run: [...node, ...common(model), '--weights', weights, '--cache', cache] });
const calibrated = (name, model, codes, cache) =>
  ({ name: `ours, ${name}, calibrated int4 weights, ${cache} cache`, needs: [model, codes], run: [...node, ...common(model), '--codes', codes, '--cache', cache] });
const llama = (type) => ({ name: `llama.cpp ${type}, flash attention`, needs: [join(peers, 'llama_decode'), join(peers, `${type}.gguf`)], run: [join(peers, 'llama_decode'), join(peers, `${type}.gguf`), join(peers, 'tokens.json'), contexts, threads, steps] });
const nodeLlama = (type) => ({ name: `node-llama-cpp ${type}, flash attention`, needs: [here('node_modules/node-llama-cpp'), join(peers, `${type}.gguf`)], run: [process.execPath, here('node_llama.mjs'), ...common(join(peers, `${type}.gguf`))] });
const genai = (precision) => ({ name: `onnxruntime-genai ${precision}`, needs: [join(peers, `genai-${precision}`)], run: [python, here('genai.py'), ...common(join(peers, `genai-${precision}`))] });
const torch = (dtype) => ({ name: `transformers on PyTorch ${dtype}`, needs: [join(peers, 'hf')], run: [python, here('torch_hf.py'), ...common(join(peers, 'hf')), '--dtype', dtype] });

/** A model of ours in every pair of weights and cached rows; nothing where none is given. */
const quantised = (name, model) => (model === undefined ? [] : [['int4', 'f32'], ['int4', 'int8'], ['int4-symmetric', 'f32'], ['int4-symmetric', 'int8'], ['int8-dynamic', 'f32']].map(([weights, cache]) => ours(name, model, weights, cache)));
const inFloat32 = (name, model) => (model === undefined ? [] : [ours(name, model, 'f32', 'f32')]);
const small = values['model-small'];

/** In this order, ours between the peers: a machine that changes its speed changes it for both. */
const systems = [
  genai('int4'), ...quantised('converted', values.model),
  ...(values.codes === undefined ? [] : [calibrated('converted', values.model, values.codes, 'f32'), calibrated('converted', values.model, values.codes, 'int8')]),
  llama('Q4_0'), ...quantised('converted small', small),
  llama('Q8_0'), nodeLlama('Q4_0'), genai('fp32'), ...inFloat32('converted', values.model), ...inFloat32('converted small', small),
  torch('float32'), torch('bfloat16'),
].filter(({ name }) => values.only === undefined || values.only.split(',').some((part) => name.includes(part)));

const lengths = contexts.split(',');
const line = (cells) => `| ${cells.join(' | ')} |`;
console.log([
  `${cpus()[0]?.model.trim()}, ${threads} threads. ms of one token behind so many, and tokens/s of the prompt before it.`, '',
  line(['', ...lengths.map((length) => `${length}, ms`), ...lengths.map((length) => `prompt of ${length}, tokens/s`), 'peak, MB']), line(['---', ...lengths.map(() => '---:'), ...lengths.map(() => '---:'), '---:']),
].join('\n'));

// Every row is printed when it is known: a run that is stopped leaves the rows it has.
const results = [];
for (const { name, needs, run: [file, ...args] } of systems) {
  const missing = needs.find((path) => !existsSync(path));
  if (missing !== undefined) {
    console.error(`${name}: left out, ${missing} is not there`);
    continue;
  }
  const { stdout } = await promisify(execFile)(file, args, { maxBuffer: 2 ** 24 });
  const result = JSON.parse(stdout.trim().split('\n').at(-1));
  results.push({ name, ...result });
  console.log(line([name, ...result.rows.map(({ stepMs }) => stepMs.toFixed(1)), ...result.rows.map(({ prefillTokensPerSecond }) => prefillTokensPerSecond.toFixed(0)), result.peakMb.toFixed(0)]));
}
console.log(`\n${JSON.stringify({ contexts: lengths.map(Number), threads: Number(threads), steps: Number(steps), results })}`);
