/** Ours, as train_torch.py measures PyTorch: forward with loss, and whole updates of all weights, on one sequence. One line of JSON. */
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { createTrainer, nextTokenSubgraph, openModel, openRuntime, placeWeights, tensor, trainableNames, type HostTensor } from '../../lib/index.ts';
import { measureCeiling } from '../support/ceiling.ts';
import { peakMb, restartPeak } from '../support/peak-memory.ts';
import { versions } from '../support/report.ts';
import { median } from '../support/turns.ts';

const string = { type: 'string' } as const;
const { values } = parseArgs({ options: { model: string, tokens: string, length: string, threads: string, steps: string } });
const { model: path = '', tokens: tokenFile = '' } = values;
const [length, threads, steps] = [Number(values.length), Number(values.threads), Number(values.steps)];

const ids = JSON.parse(readFileSync(tokenFile, 'utf8')) as readonly number[]; // written by prepare.py
const row = (from: number): HostTensor<'int64'> => tensor('int64', [1, length], BigInt64Array.from(ids.slice(from, from + length), BigInt));
const feeds = { ids: row(0), targets: row(1) };
const before = await measureCeiling({ threads });

const model = await openModel(path), weights = new Map<string, HostTensor<'float32'>>();
for (const name of model.checkpoint.tensors.keys()) weights.set(name, await model.checkpoint.read(name));
const subgraph = nextTokenSubgraph(model, weights, { batch: 1, sequenceLength: length });

/** Median tokens a second of `steps` runs behind one that is not counted. */
async function rate(run: () => Promise<unknown>): Promise<number> {
  const times: number[] = [];
  for (let step = 0; step <= steps; step++) {
    const start = performance.now();
    await run();
    if (step > 0) times.push(performance.now() - start);
  }
  return (1000 * length) / median(times);
}

restartPeak();
const forward = await openRuntime({ ...subgraph, outputs: subgraph.outputs.filter(({ name }) => name === 'loss') }, { threads });
const forwardRate = await rate(() => forward.run({ ...Object.fromEntries([...weights].filter(([name]) => forward.inputs.includes(name))), ...feeds }));
await forward.release();
const trainable = trainableNames(model, weights.keys(), 'all'), placed = placeWeights(weights, trainable);
weights.clear(); // what is trained now lies elsewhere
const trainer = await createTrainer({ subgraph, ...placed, trainable, runtime: { threads } });
const updateRate = await rate(() => trainer.update([feeds], 1e-5));
const peak = peakMb();
await trainer.close();
// The machine's best of two moments: other work beside one of them would make the ceiling lower than what was reached.
const gemm = Math.max(before.gemm, (await measureCeiling({ threads })).gemm);
console.log(JSON.stringify({ versions: versions(), forward: forwardRate, update: updateRate, peakMb: peak, gemm }));
