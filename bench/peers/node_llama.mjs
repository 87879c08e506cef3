// node-llama-cpp, what a TypeScript user would take: a prompt and greedy tokens behind it, by length. One line of JSON.
// Flash attention, cache in float16; one sequence whose prompt grows from one length to the next.
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { getLlama, LlamaLogLevel } from 'node-llama-cpp';

const string = { type: 'string' };
const { values } = parseArgs({ options: { model: string, tokens: string, contexts: string, threads: string, steps: string } });
const [threads, steps] = [Number(values.threads), Number(values.steps)];
const contexts = values.contexts.split(',').map(Number);
const tokens = JSON.parse(readFileSync(values.tokens, 'utf8'));

const llama = await getLlama({ gpu: false, build: 'never', maxThreads: 0, logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath: values.model });
const context = await model.createContext({ contextSize: contexts.at(-1) + steps + 8, batchSize: 512, threads: { ideal: threads, min: threads }, flashAttention: true });
const sequence = context.getSequence();
await sequence.evaluateWithoutGeneratingNewTokens(tokens.slice(0, 32));
await sequence.clearHistory();

const rows = [];
let prefillMs = 0;
for (const length of contexts) {
  let start = performance.now();
  const known = sequence.nextTokenIndex;
  await sequence.evaluateWithoutGeneratingNewTokens(tokens.slice(known, length - 1));
  const next = sequence.evaluate([tokens[length - 1]], { temperature: 0, yieldEogToken: true });
  await next.next();
  prefillMs += performance.now() - start;
  const times = [];
  for (let step = 0; step < steps; step++) {
    start = performance.now();
    await next.next();
    times.push(performance.now() - start);
  }
  await next.return?.();
  await sequence.eraseContextTokenRanges([{ start: length, end: sequence.nextTokenIndex }]);
  rows.push({ tokens: length, prefillTokensPerSecond: (1000 * length) / prefillMs, stepMs: times.sort((a, b) => a - b)[steps >> 1] });
}
const peakMb = Number(/VmHWM:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]) / 1000;
const { version } = JSON.parse(readFileSync(new URL('node_modules/node-llama-cpp/package.json', import.meta.url), 'utf8'));
console.log(JSON.stringify({ versions: { 'node-llama-cpp': version, node: process.versions.node }, rows, peakMb }));
process.exit(0); // its worker threads would keep the process alive
