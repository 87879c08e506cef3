/** Text files as the commands read them, and the text that ships with the package. */
import { existsSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { errorCode } from '../atomic-write.ts';

/** A UTF-8 file. `option` names it in errors: no such file, a directory, bytes that are not UTF-8. */
export async function readText(option: string, path: string): Promise<string> {
  const bytes = await readFile(path).catch((error: unknown) => {
    throw new Error(`${option} must be a readable file, got ${path} (${errorCode(error) ?? String(error)})`, { cause: error });
  });
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (error) {
    throw new Error(`${option} must be UTF-8 text, got other bytes in ${path}`, { cause: error });
  }
}

/** The directory of this package's package.json, in a checkout and when installed. */
export function packageRoot(): string {
  let directory = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(directory, 'package.json'))) {
    const parent = dirname(directory);
    if (parent === directory) throw new Error(`packageRoot: package.json must lie above ${fileURLToPath(import.meta.url)}, but there is none`);
    directory = parent;
  }
  return directory;
}

/** Path of the text that ships with the package. Errors: there is none; the option to give one is named. */
export async function shippedTextPath(option: string): Promise<string> {
  const directory = join(packageRoot(), 'examples', 'text');
  const names = existsSync(directory) ? (await readdir(directory)).filter((name) => name.endsWith('.txt')).sort() : [];
  const [first] = names;
  if (first === undefined) throw new Error(`${option} FILE must be given, as no text lies in ${directory}`);
  return join(directory, first);
}
