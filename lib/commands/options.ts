/** Kinds of options; each reads a raw value or refuses it with the rule. */
import { mapValues } from '../map-values.ts';
import { cacheFormats } from '../models/cache-layout.ts';
import { UsageError, type OptionSpec } from './command.ts';

const nameOf = (flags: string): string => flags.replace(/^-\w, /, '').split(' ')[0] ?? flags;

/** A raw value in a message. */
export const shown = (raw: unknown): string => (typeof raw === 'string' ? raw : JSON.stringify(raw));

export interface NumberRange {
  readonly least?: number;
  readonly most?: number;
  /** `least` itself is refused. */
  readonly above?: boolean;
}

function rule({ least = -Infinity, most = Infinity, above = false }: NumberRange): string {
  const low = least === -Infinity ? '' : above ? ` above ${least}` : ` of ${least} or more`;
  return `${low}${most === Infinity ? '' : `${low === '' ? '' : ' and'} at most ${most}`}`;
}

function number(flags: string, help: string, range: NumberRange, whole: boolean): OptionSpec<number | undefined> {
  const { least = -Infinity, most = Infinity, above = false } = range;
  return {
    flags,
    help,
    read(raw) {
      if (raw === undefined) return undefined;
      const value = typeof raw === 'string' && raw.trim() !== '' ? Number(raw) : NaN;
      const inside = above ? value > least : value >= least;
      if (!Number.isFinite(value) || !inside || value > most || (whole && !Number.isSafeInteger(value))) {
        throw new UsageError(`${nameOf(flags)} must be a ${whole ? 'whole number' : 'number'}${rule(range)}, got ${shown(raw)}`);
      }
      return value;
    },
  };
}

/** A whole number in a range, or undefined. */
export const wholeNumber = (flags: string, help: string, range: NumberRange): OptionSpec<number | undefined> => number(flags, help, range, true);

/** A number in a range, or undefined. */
export const realNumber = (flags: string, help: string, range: NumberRange): OptionSpec<number | undefined> => number(flags, help, range, false);

/** A text, or undefined. */
export const text = (flags: string, help: string): OptionSpec<string | undefined> => ({ flags, help, read: (raw) => (typeof raw === 'string' ? raw : undefined) });

/** A text that must be given. */
export const requiredText = (flags: string, help: string): OptionSpec<string> => ({
  flags,
  help,
  read(raw) {
    if (typeof raw !== 'string') throw new UsageError(`${flags} must be given`);
    return raw;
  },
});

/** Texts, given once or several times; none when the option is absent. Flags end in `...>`. */
export const texts = (flags: string, help: string): OptionSpec<readonly string[]> => ({
  flags,
  help,
  read: (raw) => (Array.isArray(raw) ? raw.filter((value) => typeof value === 'string') : []),
});

/** Whether the option is there. */
export const flag = (flags: string, help: string): OptionSpec<boolean> => ({ flags, help, read: (raw) => raw === true });

/** True unless the option is there; flags are `--no-...`. */
export const off = (flags: string, help: string): OptionSpec<boolean> => ({ flags, help, read: (raw) => raw !== false });

/** One of several names; `fallback` when absent. */
export function choice<N extends string, F extends N | undefined>(flags: string, help: string, names: readonly N[], fallback: F): OptionSpec<N | F> {
  return {
    flags,
    help: `${help}: ${names.join(', ')}${fallback === undefined ? '' : ` (default ${fallback})`}`,
    read(raw) {
      if (raw === undefined) return fallback;
      const name = names.find((known) => known === raw);
      if (name === undefined) throw new UsageError(`${nameOf(flags)} must be one of ${names.join(', ')}, got ${shown(raw)}`);
      return name;
    },
  };
}

export const pairTableOption = text('--pair-table <FILE>', 'table of pair ranks or scores that some MHA2MLA checkpoints need (default: the file that config.json names)');

/** The keys of a table of rows. */
export const namesOf = <K extends string>(rows: Readonly<Record<K, unknown>>): K[] => Object.values(mapValues(rows, (_, name) => name));

export const threadsOption = wholeNumber('--threads <N>', 'threads of the engine (default: the cores, at most 8)', { least: 1 });
export const providerOption = choice('--provider <NAME>', 'where graphs run; cuda needs the provider library of onnxruntime beside it', ['cpu', 'cuda'] as const, 'cpu');
export const cacheOption = choice('--cache <TYPE>', 'type of the cached rows', namesOf(cacheFormats), 'f32');

/** Refuses options that exclude each other. */
export function refuseTogether(values: Readonly<Record<string, unknown>>, ...names: readonly string[]): void {
  const given = names.filter((name) => values[name] !== undefined && values[name] !== false);
  if (given.length > 1) throw new UsageError(`${given.map(flagOf).join(' and ')} exclude each other, got both`);
}

/** promptFile -> --prompt-file */
export const flagOf = (name: string): string => `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;

/** Files of calibration text, false for --no-calibration, or undefined. */
export const calibrationOption: OptionSpec<readonly string[] | false | undefined> = {
  flags: '--calibration <FILE...>',
  help: 'texts whose activations guide the conversion, UTF-8 (default: those that ship with the package)',
  off: { flags: '--no-calibration', help: 'convert by the weights alone' },
  read: (raw) => (raw === false ? false : Array.isArray(raw) ? raw.filter((value) => typeof value === 'string') : undefined),
};
