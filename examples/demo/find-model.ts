import { existsSync } from 'node:fs';
import { downloadModel, isHubId, packageFile, startProgress, type Progress } from '../../lib/index.ts';

/** The model of this repository: examples/embedded-model. */
export const embeddedModel = (): string => packageFile('examples', 'embedded-model', 'model');

/**
 * The model to demonstrate on, as a path: what was asked for, a Hub id from the Hub or its cache; the embedded model when
 * nothing was. Errors: a path that does not exist; no internet and nothing cached.
 */
export async function findModel(model = embeddedModel()): Promise<string> {
  if (existsSync(model)) return model;
  if (!isHubId(model)) throw new Error(`demo: --model must be a directory, a .gguf file or a Hub id such as HuggingFaceTB/SmolLM2-135M-Instruct, got ${model}, which does not exist`);
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
    throw new Error(`demo: ${model} could not be had.\n${reason}\nOr name a .gguf file or a Hugging Face directory: npm run demo -- --model PATH`, { cause: error });
  } finally {
    bars[0]?.stop();
  }
}
