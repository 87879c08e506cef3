/** How results are printed: a table for people, the ceiling they are held against, a last line of JSON for machines. */
import { readFileSync } from 'node:fs';
import { cpus, type } from 'node:os';
import { packageFile } from '../../lib/index.ts';
import type { CaseResult } from './case.ts';
import type { Ceiling } from './ceiling.ts';
import type { CaseOptions } from './options.ts';
import { tableOf, type Row } from './rows.ts';
import { markdownTable } from './table.ts';

export interface Report {
  readonly versions: Readonly<Record<string, string>>;
  readonly machine: string;
  readonly threads: number;
  /** What was asked for; the rest were defaults. */
  readonly given: Readonly<Partial<CaseOptions>>;
  readonly ceiling: Ceiling;
  readonly cases: Readonly<Record<string, readonly Row[]>>;
}

/** Versions of what runs, and of what computes. */
export function versions(): Report['versions'] {
  const read = (path: string): string => (JSON.parse(readFileSync(path, 'utf8')) as { readonly version: string }).version; // package.json of npm
  return { 'attention-surgery': read(packageFile('package.json')), 'onnxruntime-node': read(packageFile('node_modules', 'onnxruntime-node', 'package.json')), node: process.versions.node };
}

/** What runs it, in words. */
export const machineName = (): string => `${cpus()[0]?.model.trim() ?? 'unknown processor'}, ${cpus().length} cores, ${type()}`;

export const ceilingLine = ({ gemm, byteGemm, read }: Ceiling): string =>
  `ceiling in this run: float32 products ${gemm.toFixed(0)} GFLOP/s, products of bytes ${byteGemm.toFixed(0)} GOP/s, reading ${read.toFixed(1)} GB/s`;

/** One case for people. */
export function caseText(name: string, { rows, notes }: CaseResult): string {
  const { head, cells } = tableOf(rows);
  return [`## ${name}`, '', markdownTable(head, cells), ...notes.map((note) => `\n${note}`), ''].join('\n');
}
