/** MODEL as it is typed, to a path on this machine. */
import { existsSync } from 'node:fs';
import { downloadModel, isHubId } from '../hub.ts';
import { openModel, type Model } from '../models/model.ts';
import { startProgress, type Progress } from '../progress.ts';
import type { OpenReleasedOptions } from '../released/released.ts';
import type { CommandIo } from './command.ts';

/** A path that exists stays as it is; a Hub id is downloaded, or found in the cache. Errors: as downloadModel. */
export async function modelPath(model: string, { stderr, signal, environment, clock }: CommandIo): Promise<string> {
  if (existsSync(model) || !isHubId(model)) return model;
  let bar: Progress | null = null;
  try {
    return await downloadModel(model, {
      signal,
      environment,
      onProgress(progress) {
        if (progress.kind === 'notice') stderr.write(`${progress.message}\n`);
        else (bar ??= startProgress(`downloading ${model}`, progress.totalBytes, 'bytes', { stream: stderr, clock })).update(progress.doneBytes);
      },
    });
  } finally {
    stop(bar);
  }
}

// A function, because the compiler does not see the assignment inside the callback.
const stop = (bar: Progress | null): void => bar?.stop();

/** Opens MODEL as it is typed. Errors: as modelPath and openModel. */
export const openNamedModel = async (model: string, io: CommandIo, options: OpenReleasedOptions = {}): Promise<Model> =>
  openModel(await modelPath(model, io), options);
