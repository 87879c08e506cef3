import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { findWeights } from '../checkpoint/checkpoint.ts';
import type { Model } from '../models/model.ts';
import { openTokenizer, type Tokenizer } from '../text/tokenizer.ts';

/**
 * What must stand beside converted weights so that the directory generates as its source did: tokenizer files, and
 * generation_config.json, which may name more end tokens. A directory without tokenizer.json gives no tokenizer.
 */
export async function sideFiles({ path }: Pick<Model, 'path'>): Promise<{ readonly tokenizer: Tokenizer | null; readonly files: Readonly<Record<string, string>> }> {
  const { file, format } = await findWeights(path);
  if (format === 'gguf') {
    const tokenizer = await openTokenizer(path);
    return { tokenizer, files: tokenizer.files };
  }
  const directory = dirname(file);
  const generation = join(directory, 'generation_config.json');
  const files: Readonly<Record<string, string>> = existsSync(generation) ? { 'generation_config.json': await readFile(generation, 'utf8') } : {};
  if (!existsSync(join(directory, 'tokenizer.json'))) return { tokenizer: null, files };
  const tokenizer = await openTokenizer(directory);
  return { tokenizer, files: { ...files, ...tokenizer.files } };
}
