import { spawn } from 'node:child_process';
import { packageFile } from '../lib/index.ts';

/** Runs a command as a user would, so that its defaults are those of the command line. Returns what it printed; progress goes to the terminal. */
export async function runCommand(words: readonly string[]): Promise<string> {
  const child = spawn(process.execPath, ['--import', 'tsx', packageFile('lib', 'cli.ts'), ...words], { cwd: packageFile(), stdio: ['ignore', 'pipe', 'inherit'] });
  let printed = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => { printed += text; });
  const code = await new Promise<number | null>((resolve, reject) => child.on('error', reject).on('close', resolve));
  if (code !== 0) throw new Error(`runCommand: ${words[0]} must end with exit code 0, got ${code}`);
  return printed;
}
