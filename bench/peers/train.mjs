// Training: ours and PyTorch in turn on one model, float32, all weights, one sequence an update. A table, and a last line of JSON.
import { execFile } from 'node:child_process';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { compiled } from './compiled.mjs';

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const string = { type: 'string' };
const { values } = parseArgs({
  options: { peers: string, python: { ...string, default: 'python3' }, length: { ...string, default: '512' }, threads: { ...string, default: String(Math.min(cpus().length, 8)) }, steps: { ...string, default: '5' }, rounds: { ...string, default: '2' } },
});
const { peers, python, length, threads, steps } = values;
if (peers === undefined) throw new Error('train: --peers DIR must be given, the folder that prepare.py filled');

const common = ['--model', join(peers, 'hf'), '--tokens', join(peers, 'tokens.json'), '--length', length, '--threads', threads, '--steps', steps];
const systems = [
  { name: 'ours', run: [process.execPath, compiled('train_ours'), ...common] },
  { name: 'transformers on PyTorch', run: [python, here('train_torch.py'), ...common] },
];
// Forward and back through 134.5 million weights is six operations a weight and token; attention of this length adds a tenth.
const FLOPS_PER_TOKEN = 6 * 134.5e6;

const line = (cells) => `| ${cells.join(' | ')} |`;
console.log([`${cpus()[0]?.model.trim()}, ${threads} threads, sequences of ${length} tokens.`, '', line(['', 'forward and loss, tokens/s', 'update, tokens/s', 'of GEMM', 'peak, MB']), line(['---', '---:', '---:', '---:', '---:'])].join('\n'));
const results = [];
let gemm = 0;
for (let round = 0; round < Number(values.rounds); round++) {
  for (const { name, run: [file, ...args] } of systems) {
    const { stdout } = await promisify(execFile)(file, args, { maxBuffer: 2 ** 24 });
    const result = JSON.parse(stdout.trim().split('\n').at(-1));
    gemm = Math.max(gemm, result.gemm ?? 0);
    results.push({ name, ...result });
    console.log(line([name, result.forward.toFixed(0), result.update.toFixed(1), `${((100 * result.update * FLOPS_PER_TOKEN) / (gemm * 1e9)).toFixed(0)} %`, result.peakMb.toFixed(0)]));
  }
}
console.log(`\nCeiling: products of float32 matrices ${gemm.toFixed(0)} GFLOP/s.\n${JSON.stringify({ length: Number(length), threads: Number(threads), steps: Number(steps), results })}`);
