/**
 * Measurements. `npm run bench` lists the cases, `npm run bench -- CASE [options]` runs one, `all` every one that needs no
 * model. --save FILE keeps the report, --compare FILE holds the cases of a saved one against now: exact figures that grew
 * end with exit code 1.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { cases } from './cases/index.ts';
import { compareReports } from './support/baseline.ts';
import type { BenchCase, CaseContext } from './support/case.ts';
import { measureCeiling } from './support/ceiling.ts';
import { readOptions, UsageError, type CaseOptions, type Invocation } from './support/options.ts';
import { caseText, ceilingLine, machineName, versions, type Report } from './support/report.ts';
import type { Row } from './support/rows.ts';

const usage = (): string => [
  'npm run bench -- CASE [options], CASE one of:', '',
  ...Object.entries(cases).map(([name, { summary, defaults }]) => `  ${name.padEnd(14)}${summary}\n${' '.repeat(16)}${Object.keys(defaults).map((option) => `--${option}`).join(' ')}`),
  `  ${'all'.padEnd(14)}all of them, on --preset NAME, without those that need a model`, '',
  'Every case: --threads N, --runs N, --json (one JSON object and nothing else), --save FILE, --compare FILE (alone: the cases of FILE).',
].join('\n');

/** The cases to run, with the options of each. */
function chosen({ case: name, given, compare }: Invocation, baseline: Report | null): [string, BenchCase, Partial<CaseOptions>][] {
  const every = Object.entries(cases).filter(([, { smoke }]) => smoke !== null);
  if (name === 'all' || (name === null && compare !== null)) {
    const wrong = Object.keys(given).find((option) => option !== 'preset' || baseline !== null);
    if (wrong !== undefined) throw new UsageError(baseline === null ? `all cases take --preset only, got --${wrong}` : `a comparison takes the options of its baseline, got --${wrong}`);
    return every.filter(([found]) => baseline === null || baseline.cases[found] !== undefined).map(([found, one]) => [found, one, baseline?.given ?? given]);
  }
  const one = cases[name ?? ''];
  if (name === null || one === undefined) throw new UsageError(`CASE must be one of ${Object.keys(cases).join(', ')}, got ${name}`);
  const wrong = Object.keys(given).find((option) => !Object.hasOwn(one.defaults, option));
  if (wrong !== undefined) throw new UsageError(`${name} takes ${Object.keys(one.defaults).map((option) => `--${option}`).join(', ')}, got --${wrong}`);
  return [[name, one, given]];
}

/** Measured figures have no more digits than they are worth; whole numbers stay as they are. */
const fiveDigits = (_key: string, value: unknown): unknown => (typeof value === 'number' && !Number.isInteger(value) ? Number(value.toPrecision(5)) : value);

async function main(argv: readonly string[]): Promise<void> {
  const invocation = readOptions(argv);
  const { threads, runs, json, save, compare } = invocation;
  const say = (text: string): void => { if (!json) console.log(text); };
  if (invocation.case === null && compare === null) {
    console.log(usage());
    return;
  }
  const baseline = compare === null ? null : JSON.parse(readFileSync(compare, 'utf8')) as Report; // written by --save
  const wanted = chosen(invocation, baseline);
  const ceiling = await measureCeiling({ threads });
  const context: CaseContext = { threads, runs, ceiling, now: () => performance.now() };
  say(`${machineName()}; ${threads} threads; ${Object.entries(versions()).map((entry) => entry.join(' ')).join(', ')}\n${ceilingLine(ceiling)}\n`);
  const found: Record<string, readonly Row[]> = {};
  for (const [name, one, given] of wanted) {
    const result = await one.run(given, context);
    say(caseText(name, result));
    found[name] = result.rows;
  }
  const report: Report = { versions: versions(), machine: machineName(), threads, given: baseline?.given ?? invocation.given, ceiling, cases: found };
  if (save !== null) writeFileSync(save, `${JSON.stringify(report, fiveDigits, 1)}\n`);
  const comparison = baseline === null ? null : compareReports(baseline.cases, report.cases);
  if (comparison !== null) {
    for (const line of comparison.advice) say(`advice: ${line}`);
    for (const line of comparison.failures) say(`worse: ${line}`);
    say(`${comparison.failures.length} exact figures got worse\n`);
    if (comparison.failures.length > 0) process.exitCode = 1;
  }
  console.log(JSON.stringify(comparison === null ? report : { ...report, comparison }));
}

main(process.argv.slice(2)).catch((error: unknown) => {
  console.error(`bench: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = error instanceof UsageError ? 2 : 1;
});
