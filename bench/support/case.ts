/** What a case of the bench is: a file in bench/cases with a record of this kind, and a row in its index. */
import type { Ceiling } from './ceiling.ts';
import type { CaseOptions, OptionName } from './options.ts';
import type { Row } from './rows.ts';

export interface CaseContext {
  readonly threads: number;
  readonly runs: number;
  /** What this machine can do, measured once for all cases of a run. */
  readonly ceiling: Ceiling;
  readonly now: () => number;
}

export interface CaseResult {
  readonly rows: readonly Row[];
  /** Sentences below the table. */
  readonly notes: readonly string[];
}

export interface BenchCase {
  /** One line for the list of cases. */
  readonly summary: string;
  /** Options the case takes, and what they are when not given; others are refused. */
  readonly defaults: Readonly<Partial<CaseOptions>>;
  /** What the tests run it with, on the tiny preset; null where it needs a whole model. */
  readonly smoke: Readonly<Partial<CaseOptions>> | null;
  readonly run: (options: Readonly<Partial<CaseOptions>>, context: CaseContext) => Promise<CaseResult>;
}

/** A case whose `run` gets every option it has a default for. */
export function defineCase<K extends OptionName>(definition: Omit<BenchCase, 'defaults' | 'run'> & {
  readonly defaults: Readonly<Pick<CaseOptions, K>>;
  readonly run: (options: Readonly<Pick<CaseOptions, K>>, context: CaseContext) => Promise<CaseResult>;
}): BenchCase {
  return { ...definition, run: (given, context) => definition.run({ ...definition.defaults, ...given }, context) };
}
