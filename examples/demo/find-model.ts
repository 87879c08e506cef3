import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { downloadModel, isHubId, packageFile, startProgress, type Progress } from '../../lib/index.ts';

/** Small enough for any machine, Apache-2.0: 135 M parameters, 270 MB. */
export const DEFAULT_MODEL = 'HuggingFaceTB/SmolLM2-135M-Instruct';

/** A .gguf file or a model directory in .models/, the first by name; null when there is none. */
export function localModel(directory = packageFile('.models')): string | null {
  if (!existsSync(directory)) return null;
  const names = readdirSync(directory).sort();
  const name = names.find((entry) => entry.endsWith('.gguf') || existsSync(join(directory, entry, 'config.json')));
  return name === undefined ? null : join(directory, name);
}

/**
 * The model to demonstrate on: what was asked for, else what lies in .models/, else DEFAULT_MODEL from the hub or its
 * cache. Errors: no internet and nothing cached, saying what would be downloaded and how to go on.
 */
export async function findModel(asked: string | undefined): Promise<string> {
  const model = asked ?? localModel() ?? DEFAULT_MODEL;
  if (existsSync(model)) return model;
  if (!isHubId(model)) throw new Error(`demo: --model must be a directory, a .gguf file or a Hub id such as ${DEFAULT_MODEL}, got ${model}, which does not exist`);
  console.log(`Model: ${model}, from the Hub (kept in its cache for the next time)`);
  const bars: Progress[] = [];
  try {
    return await downloadModel(model, {
      attempts: 2,
      onProgress(progress) {
        if (progress.kind === 'notice') process.stderr.write(`${progress.message}\n`);
        else (bars[0] ??= startProgress(`downloading ${model}`, progress.totalBytes, 'bytes')).update(progress.doneBytes);
      },
    });
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new Error(`demo: ${model} could not be had.\n${reason}\nOr put a model (a .gguf file or a Hugging Face directory) into .models/, or name one: npm run demo -- --model PATH`, { cause: error });
  } finally {
    bars[0]?.stop();
  }
}
