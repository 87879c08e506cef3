// Our own scripts as plain JavaScript, as an installed package runs: a TypeScript loader would take 80 MB and be counted as ours.
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const here = (name) => fileURLToPath(new URL(name, import.meta.url));

/** Compiles ours.ts, train_ours.ts and what they import; gives the path of one of them. */
export function compiled(name) {
  execFileSync(process.execPath, [here('../../node_modules/typescript/bin/tsc'), '-p', here('tsconfig.json')], { stdio: ['ignore', 'inherit', 'inherit'] });
  return here(`../../node_modules/.cache/peers/bench/peers/${name}.js`);
}
