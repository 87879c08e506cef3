/** Text files as the commands read them, and the text that ships with the package. */
import { readFile } from 'node:fs/promises';
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

/** The text that ships with the package. */
export const shippedTextPath = (): string => packageFile('examples', 'text', 'wonderland.txt');
