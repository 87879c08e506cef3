import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';

const identityOf = (directory: string): string => createHash('sha256').update(readFileSync(join(directory, 'config.json'))).digest('hex');

/** Beside the directory: what the demo wrote there, so that it replaces nothing else. */
const recordOf = (directory: string): string => join(dirname(directory), `.${basename(directory)}.demo`);

/** Refuses a directory that holds anything but what an earlier demo left. */
export function refuseForeign(directory: string): void {
  if (!existsSync(directory) || readdirSync(directory).length === 0) return;
  const record = recordOf(directory);
  const ours = existsSync(record) && existsSync(join(directory, 'config.json')) && readFileSync(record, 'utf8') === identityOf(directory);
  if (!ours) throw new Error(`demo: ${directory} must be absent or what an earlier demo wrote, got something else; move it away or give another place with --out DIR`);
}

/** Has `write` make a model directory and puts it at `directory`; what an earlier demo left there goes only when the new one is whole. */
export async function keptDirectory<T>(directory: string, write: (fresh: string) => Promise<T>): Promise<T> {
  refuseForeign(directory);
  const fresh = join(dirname(directory), `.${basename(directory)}.new`);
  rmSync(fresh, { recursive: true, force: true }); // of a demo that was killed
  mkdirSync(dirname(directory), { recursive: true });
  const result = await write(fresh);
  rmSync(directory, { recursive: true, force: true });
  renameSync(fresh, directory);
  writeFileSync(recordOf(directory), identityOf(directory));
  return result;
}
