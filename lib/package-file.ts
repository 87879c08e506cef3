import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/**
 * Path of a file that ships with the package, e.g. packageFile('examples', 'text', 'wonderland.txt'): below the nearest
 * package.json, so that it is found from lib/ in a checkout and from dist/lib/ in an installation.
 */
export function packageFile(...path: readonly string[]): string {
  let directory = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(directory, 'package.json'))) {
    const parent = dirname(directory);
    if (parent === directory) throw new Error(`packageFile: a package.json must lie above ${import.meta.url}`);
    directory = parent;
  }
  return join(directory, ...path);
}
