/** The options of the bench: what each reads, and what it is when absent. */
import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';
import { cacheFormats, weightFormats, type CacheFormat, type WeightFormatName } from '../../lib/index.ts';
import { isPresetName, presets, type PresetName } from './presets.ts';

/** What cases may take beside --threads and --runs; each says which. */
export interface CaseOptions {
  readonly preset: PresetName;
  /** Cached tokens, or the length of prompts. */
  readonly contexts: readonly number[];
  /** Shares of the source's cache that are left, 0..1. */
  readonly shares: readonly number[];
  readonly caches: readonly CacheFormat[];
  readonly weights: readonly WeightFormatName[];
  /** Groups of KV heads with a latent of their own; 'auto' is what the cost rule chooses. */
  readonly groups: readonly (number | 'auto')[];
  /** Rotating components; null: as many as a conversion to that share keeps. */
  readonly components: number | null;
  /** None: what the shares leave. */
  readonly ranks: readonly number[];
  readonly model: string | null;
  readonly source: string | null;
}
export type OptionName = keyof CaseOptions;

export interface Invocation {
  /** Null lists the cases; 'all' runs each. */
  readonly case: string | null;
  readonly given: Readonly<Partial<CaseOptions>>;
  readonly threads: number;
  /** Timed runs of each contender at most. */
  readonly runs: number;
  readonly json: boolean;
  readonly save: string | null;
  readonly compare: string | null;
}

/** The command line is wrong. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

function list<T>(flag: string, read: (item: string) => T | undefined, rule: string) {
  return (text: string): readonly T[] => text.split(',').map((item) => read(item.trim()) ?? refuse(`--${flag} must be ${rule} with commas between, got ${text}`));
}

const refuse = (message: string): never => { throw new UsageError(message); };
const whole = (text: string): number | undefined => (/^\d+$/.test(text) && Number(text) > 0 ? Number(text) : undefined);
const share = (text: string): number | undefined => (Number(text) > 0 && Number(text) <= 1 ? Number(text) : undefined);
const isCache = (text: string): text is CacheFormat => Object.hasOwn(cacheFormats, text);
const isWeightFormat = (text: string): text is WeightFormatName => Object.hasOwn(weightFormats, text);
const one = (flag: string, text: string): number => whole(text) ?? refuse(`--${flag} must be a whole number of 1 or more, got ${text}`);

const readers: { readonly [K in OptionName]: (text: string) => CaseOptions[K] } = {
  preset: (text) => (isPresetName(text) ? text : refuse(`--preset must be one of ${Object.keys(presets).join(', ')}, got ${text}`)),
  contexts: list('contexts', whole, 'whole numbers'),
  shares: list('shares', share, 'numbers above 0 and at most 1'),
  caches: list('caches', (text) => (isCache(text) ? text : undefined), `some of ${Object.keys(cacheFormats).join(', ')}`),
  weights: list('weights', (text) => (isWeightFormat(text) ? text : undefined), `some of ${Object.keys(weightFormats).join(', ')}`),
  groups: list('groups', (text) => (text === 'auto' ? text : whole(text)), 'whole numbers or auto'),
  components: (text) => one('components', text),
  ranks: list('ranks', whole, 'whole numbers'),
  model: (text) => text,
  source: (text) => text,
};

const optionNames = ['preset', 'contexts', 'shares', 'caches', 'weights', 'groups', 'components', 'ranks', 'model', 'source'] as const satisfies readonly OptionName[];

/** Reads a command line. Errors: UsageError with the rule. */
export function readOptions(argv: readonly string[]): Invocation {
  const string = { type: 'string' } as const;
  const parsed = (() => {
    try {
      return parseArgs({
        args: [...argv], allowPositionals: true,
        options: {
          preset: string, contexts: string, shares: string, caches: string, weights: string, groups: string, components: string, ranks: string, model: string, source: string,
          threads: string, runs: string, save: string, compare: string, json: { type: 'boolean' },
        },
      });
    } catch (error) {
      return refuse(error instanceof Error ? error.message : String(error));
    }
  })();
  const { values, positionals } = parsed;
  if (positionals.length > 1) refuse(`one case at a time, got ${positionals.join(' ')}`);
  const given = Object.assign({}, ...optionNames.map((name) => {
    const text = values[name];
    return text === undefined ? {} : { [name]: readers[name](text) };
  })) as Partial<CaseOptions>; // every value comes from the reader of its own name
  return {
    case: positionals[0] ?? null, given,
    threads: values.threads === undefined ? Math.min(availableParallelism(), 8) : one('threads', values.threads),
    runs: values.runs === undefined ? 12 : one('runs', values.runs),
    json: values.json === true, save: values.save ?? null, compare: values.compare ?? null,
  };
}
