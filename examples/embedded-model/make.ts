/**
 * npx tsx examples/embedded-model/make.ts PACKAGES WORK [OUT]
 *
 * Makes the embedded model from nothing: texts, tokenizer, random weights, training, float16. PACKAGES: where `dpkg -x`
 * unpacked the texts (README.md here); WORK: a directory for everything on the way; OUT: the model's, default model/ here.
 * A run that was stopped goes on where it was.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { packageFile } from '../../lib/index.ts';
import { runCommand } from '../run-command.ts';
import { prepare, type Prepared } from './prepare.ts';
import { publish } from './publish.ts';
import { SEED, shares, stages, THREADS, type Stage } from './recipe.ts';

/** One stage of training with the product's own command, from the model directory `from`. Returns where it went. */
async function train(from: string, work: string, { texts, heldOut }: Prepared, { name, sequenceLength, batch, steps, warmupSteps, learningRate, schedule }: Stage): Promise<string> {
  const out = join(work, name);
  if (existsSync(join(out, 'config.json'))) return out; // written last
  console.log(`${name}: ${steps} updates of ${batch} x ${sequenceLength} tokens`);
  const options = {
    out, 'eval-text': heldOut, steps, 'sequence-length': sequenceLength, batch, 'warmup-steps': warmupSteps, 'learning-rate': learningRate, schedule, 'save-every': 50, seed: SEED, threads: THREADS,
  };
  const data = (['novels', 'bible', 'jargon'] as const).map((kind) => `${texts[kind]}=${shares[kind]}`);
  await runCommand(['train', from, '--data', ...data, '--resume', ...Object.entries(options).flatMap(([option, value]) => [`--${option}`, String(value)])]);
  return out;
}

const [packages, work, out = packageFile('examples', 'embedded-model', 'model')] = process.argv.slice(2);
if (packages === undefined || work === undefined) throw new Error('make: PACKAGES and WORK must be given; see examples/embedded-model/README.md');
const prepared = await prepare(packages, work);
let model = prepared.start;
const directories: string[] = [];
for (const stage of stages) directories.push(model = await train(model, work, prepared, stage));
await publish(model, directories, out);
console.log(`The model is in ${out}`);
