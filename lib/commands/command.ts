/** What a command is: a record with its options and a function. Adding one is a file here and a row in index.ts. */
import type { Environment } from '../hub-cache.ts';

/** What a command may touch of the world around it. */
export interface CommandIo {
  /** Text for standard output: what was asked for, nothing else. */
  readonly out: (text: string) => void;
  /** Where progress and remarks go: standard error. */
  readonly stderr: NodeJS.WritableStream & { readonly isTTY?: boolean | undefined };
  /** Whether one JSON object is wanted on standard output, and nothing else. */
  readonly json: boolean;
  readonly signal: AbortSignal;
  /** Milliseconds. */
  readonly clock: () => number;
  readonly environment: Environment;
}

export interface CommandResult {
  /** Printed last with --json. */
  readonly json: Readonly<Record<string, unknown>>;
  /** Printed without --json; '' when the command has printed as it went. */
  readonly text: string;
}

/** One option: how it is spelled, and how its raw value (string, list of strings, true, false or undefined) is read. */
export interface OptionSpec<T> {
  /** As commander takes it, e.g. `--window <N>`. */
  readonly flags: string;
  readonly help: string;
  /** A second spelling that gives the raw value false: `--no-...`. */
  readonly off?: { readonly flags: string; readonly help: string };
  /** Errors: UsageError with the rule. */
  readonly read: (raw: unknown) => T;
}

export interface Command {
  readonly name: string;
  readonly summary: string;
  /** The one positional argument. */
  readonly argument: { readonly name: string; readonly help: string };
  /** Whether it takes decoding steps at length, so that large pages are worth a second process (huge-pages.ts). */
  readonly decodes?: boolean;
  /** By the name under which commander gives the value: the long flag in camel case. */
  readonly options: Readonly<Record<string, OptionSpec<unknown>>>;
  readonly run: (argument: string, raw: Readonly<Record<string, unknown>>, io: CommandIo) => Promise<CommandResult>;
}

/** The command line itself is wrong: exit code 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

type OptionValues<O extends Readonly<Record<string, OptionSpec<unknown>>>> = { readonly [K in keyof O]: ReturnType<O[K]['read']> };

/** A command whose `run` gets the values that its options read. */
export function defineCommand<O extends Readonly<Record<string, OptionSpec<unknown>>>>(command: Omit<Command, 'options' | 'run'> & {
  readonly options: O;
  readonly run: (argument: string, values: OptionValues<O>, io: CommandIo) => Promise<CommandResult>;
}): Command {
  return {
    ...command,
    run: (argument, raw, io) => {
      const values = Object.fromEntries(Object.entries(command.options).map(([name, option]) => [name, option.read(raw[name])]));
      return command.run(argument, values as OptionValues<O>, io); // the line above read every key of O by its own option
    },
  };
}

export const modelArgument = { name: 'MODEL', help: 'a model directory, a .gguf file or a Hub id (owner/name)' } as const;
