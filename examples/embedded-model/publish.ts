/** The trained weights as the directory that is committed: float16, the tokenizer, and the curve of the training. */
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { openModel, svgOf, tensorSources, toDType, writeSafetensors, type Point } from '../../lib/index.ts';
import { stages } from './recipe.ts';

/** Weight of one update in the moving mean that the curve shows, and updates from one of its points to the next. */
const SHARE = 0.03, EVERY = 10;

/** Loss over millions of tokens, all stages in a row: a moving mean of the updates, and the held-out text. */
function curve(directories: readonly string[]): Point[] {
  const points: Point[] = [];
  let tokens = 0, mean: number | null = null;
  for (const [i, directory] of directories.entries()) {
    const { sequenceLength = 0, batch = 0, steps = 0 } = stages[i] ?? {};
    const lines = readFileSync(join(directory, 'training', 'metrics.jsonl'), 'utf8').split('\n').filter((line) => line !== '');
    for (const line of lines) {
      const { step, loss, evaluation } = JSON.parse(line) as { readonly step: number; readonly loss?: number; readonly evaluation?: number }; // as train documents it
      const x = (tokens + step * sequenceLength * batch) / 1e6;
      if (loss !== undefined) mean = mean === null ? loss : (1 - SHARE) * mean + SHARE * loss;
      if (loss !== undefined && mean !== null && step % EVERY === 0) points.push({ x, y: mean, series: 'training text' });
      if (evaluation !== undefined) points.push({ x, y: evaluation, series: 'held-out text' });
    }
    tokens += steps * sequenceLength * batch;
  }
  return points;
}

/** `trained`: the directory of the last stage; `directories`: those of all stages, in order. */
export async function publish(trained: string, directories: readonly string[], out: string): Promise<void> {
  const { checkpoint, config } = await openModel(trained);
  mkdirSync(out, { recursive: true });
  const weights: [string, ReturnType<typeof toDType<'float16'>>][] = [];
  for (const name of checkpoint.tensors.keys()) weights.push([name, toDType(await checkpoint.read(name), 'float16')]);
  await writeSafetensors(join(out, 'model.safetensors'), tensorSources(weights));
  for (const name of ['tokenizer.json', 'tokenizer_config.json']) copyFileSync(join(trained, name), join(out, name));
  writeFileSync(join(out, 'config.json'), `${JSON.stringify({ ...config.raw, dtype: 'float16' }, null, 1)}\n`);
  const chart = { title: 'Next-token loss, nats', kind: 'line', xTitle: 'million tokens', yTitle: 'nats per token', logarithmic: false, points: curve(directories) } as const;
  writeFileSync(join(out, 'training.svg'), await svgOf(chart));
}
