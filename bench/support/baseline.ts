/** A saved report to hold a later one against: exact figures gate, times advise. */
import { exactNames, type Row } from './rows.ts';

export type Baseline = Readonly<Record<string, readonly Row[]>>;

export interface Comparison {
  /** Exact figures that got larger, and rows that are gone: each a sentence. */
  readonly failures: readonly string[];
  /** Exact figures that got smaller, new rows, and times that moved by a quarter or more. */
  readonly advice: readonly string[];
}

const NOTABLE = 1.25;

/** Compares the cases that both have. */
export function compareReports(before: Baseline, after: Baseline): Comparison {
  const failures: string[] = [];
  const advice: string[] = [];
  for (const [name, rows] of Object.entries(after)) {
    const known = before[name];
    if (known === undefined) continue;
    const byWhat = new Map(rows.map((row) => [row.what, row]));
    for (const old of known) {
      const row = byWhat.get(old.what);
      byWhat.delete(old.what);
      if (row === undefined) failures.push(`${name}: ${old.what}: no longer measured`);
      else compareRows(`${name}: ${old.what}`, old, row, failures, advice);
    }
    for (const what of byWhat.keys()) advice.push(`${name}: ${what}: not in the baseline`);
  }
  return { failures, advice };
}

function compareRows(where: string, old: Row, row: Row, failures: string[], advice: string[]): void {
  for (const name of exactNames) {
    const [was, is] = [old.exact[name], row.exact[name]];
    if (was === undefined || is === undefined || was === is) continue;
    (is > was ? failures : advice).push(`${where}: ${name} ${was} -> ${is}`);
  }
  const [was, is] = [old.measured.medianMs, row.measured.medianMs];
  if (was === undefined || is === undefined) return;
  const ratio = is / was;
  if (ratio >= NOTABLE || ratio <= 1 / NOTABLE) advice.push(`${where}: ${was.toFixed(3)} -> ${is.toFixed(3)} ms (${ratio.toFixed(2)} x)`);
}
