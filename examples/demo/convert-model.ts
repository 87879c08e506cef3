import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { packageFile, type ConversionReport } from '../../lib/index.ts';

/** What the convert command prints with --json, as far as the demo reads it. */
export type Conversion = Pick<ConversionReport, 'plan' | 'factor' | 'budget' | 'calibration' | 'seconds'>;

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

/** Runs the command as a user would, so that the demo shows whatever the command's defaults are. */
async function runConvert(model: string, out: string, share: number): Promise<Conversion> {
  const command = ['convert', model, '--out', out, '--cache-share', String(share), '--json'];
  const child = spawn(process.execPath, ['--import', 'tsx', packageFile('lib', 'cli.ts'), ...command], { cwd: packageFile(), stdio: ['ignore', 'pipe', 'inherit'] });
  let printed = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => { printed += text; });
  const code = await new Promise<number | null>((resolve, reject) => child.on('error', reject).on('close', resolve));
  if (code !== 0) throw new Error(`demo: the conversion must end with exit code 0, got ${code}`);
  return JSON.parse(printed) as Conversion; // the command's documented output
}

/** Converts into `directory`; what an earlier demo left there goes only when the new one is whole. */
export async function convertModel(model: string, directory: string, share: number): Promise<Conversion> {
  refuseForeign(directory);
  const fresh = join(dirname(directory), `.${basename(directory)}.new`);
  rmSync(fresh, { recursive: true, force: true }); // of a demo that was killed
  mkdirSync(dirname(directory), { recursive: true });
  const conversion = await runConvert(model, fresh, share);
  rmSync(directory, { recursive: true, force: true });
  renameSync(fresh, directory);
  writeFileSync(recordOf(directory), identityOf(directory));
  return conversion;
}
