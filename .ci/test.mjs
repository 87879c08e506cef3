// Runs tap over the arguments (default: all tests), shows its output as it comes, and ends with one plain line:
// `N passed, N failed`. Skipped tests are counted aloud. Exit status: tap's, and 1 when nothing ran.
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const tap = fileURLToPath(new URL('../node_modules/tap/dist/esm/run.mjs', import.meta.url));
const child = spawn(process.execPath, [tap, '--reporter=tap', ...process.argv.slice(2)], { stdio: ['ignore', 'pipe', 'inherit'] });
let tail = '';
child.stdout.on('data', (chunk) => {
  process.stdout.write(chunk);
  tail = (tail + chunk).slice(-20_000);
});
child.on('close', (code) => {
  const totals = [...tail.matchAll(/^# \{ (total: .*) \}$/gm)].at(-1)?.[1] ?? '';
  const count = (kind) => Number(new RegExp(`\\b${kind}: (\\d+)`).exec(totals)?.[1] ?? 0);
  const skipped = count('skip') + count('todo');
  if (skipped > 0) console.log(`${skipped} skipped: they need the real model in .models/ or files that are not part of the repository`);
  const failed = Math.max(count('fail'), code === 0 ? 0 : 1);
  console.log(`${count('pass')} passed, ${failed} failed`);
  process.exitCode = code === 0 && count('total') > 0 ? 0 : 1;
});
