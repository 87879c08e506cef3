/** Text files as the commands read them, and the text that ships with the package. */
import { existsSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { errorCode } from '../atomic-write.ts';
import { packageFile } from '../package-file.ts';

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

/** Path of the text that ships with the package. Errors: there is none; the option to give one is named. */
export async function shippedTextPath(option: string): Promise<string> {
  const directory = packageFile('examples', 'text');
  const names = existsSync(directory) ? (await readdir(directory)).filter((name) => name.endsWith('.txt')).sort() : [];
  const [first] = names;
  if (first === undefined) throw new Error(`${option} FILE must be given, as no text lies in ${directory}`);
  return join(directory, first);
}
