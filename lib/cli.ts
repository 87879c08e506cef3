#!/usr/bin/env node
/** The command line. The only importer of commander: parses, runs one command, prints its result, sets the exit code. */
import { readFileSync, realpathSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Command as Program, CommanderError, Option } from 'commander';
import { UsageError, type Command, type CommandIo } from './commands/command.ts';
import { commands } from './commands/index.ts';
import { hugePageEnvironment, runAgain } from './huge-pages.ts';
import { packageFile } from './package-file.ts';

const NAME = 'attention-surgery';

export type CliIo = Omit<CommandIo, 'json'>;

/** Exit codes. */
const OK = 0;
const FAILED = 1;
const USAGE = 2;
const INTERRUPTED = 130;

const version = (): string => {
  const parsed: unknown = JSON.parse(readFileSync(packageFile('package.json'), 'utf8'));
  return typeof parsed === 'object' && parsed !== null && 'version' in parsed ? String(parsed.version) : 'unknown';
};

function addCommand(program: Program, command: Command, io: CliIo): void {
  const sub = program.command(command.name).summary(command.summary).description(command.summary)
    .argument(`<${command.argument.name}>`, command.argument.help);
  for (const [name, { flags, help, off }] of Object.entries(command.options)) {
    for (const option of [new Option(flags, help), ...(off === undefined ? [] : [new Option(off.flags, off.help)])]) {
      if (option.attributeName() !== name) throw new Error(`addCommand: option ${option.flags} of ${command.name} must be under ${option.attributeName()}, got ${name}`);
      sub.addOption(option);
    }
  }
  sub.option('--json', 'print one JSON object on standard output, and nothing else');
  sub.action(async (argument: string, raw: Readonly<Record<string, unknown>>) => {
    const json = raw.json === true;
    const result = await command.run(argument, raw, { ...io, json });
    if (json) io.out(`${JSON.stringify(result.json)}\n`);
    else if (result.text !== '') io.out(`${result.text}\n`);
  });
}

/**
 * Runs one command line (without the program's own name) and returns the exit code: 0 done, 1 failed, 2 wrong usage,
 * 130 stopped by the signal. Never throws; an error is one line on `io.stderr`, with its stack when DEBUG is set.
 */
export async function runCli(argv: readonly string[], io: CliIo): Promise<number> {
  const complain = (message: string): unknown => io.stderr.write(`${NAME}: ${message.trim().replace(/\s*\n\s*/g, ' ')}\n`);
  const program = new Program(NAME)
    .description('Turn a pretrained RoPE transformer into a Multi-head Latent Attention model, and measure what it costs and saves.')
    .version(version())
    .exitOverride()
    .configureOutput({
      writeOut: io.out,
      writeErr: (text) => io.stderr.write(text),
      outputError: (text) => complain(text.replace(/^error: /, '')),
    });
  for (const command of commands) addCommand(program, command, io);
  try {
    await program.parseAsync(argv, { from: 'user' });
    return OK;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? OK : USAGE; // commander has told the user
    if (io.signal.aborted) {
      complain('interrupted');
      return INTERRUPTED;
    }
    complain(error instanceof Error ? error.message : String(error));
    if ((io.environment.DEBUG ?? '') !== '' && error instanceof Error) io.stderr.write(`${error.stack ?? ''}\n`);
    return error instanceof UsageError ? USAGE : FAILED;
  }
}

async function main(): Promise<void> {
  const { [2]: name } = process.argv;
  const environment = commands.find((command) => command.name === name)?.decodes === true ? hugePageEnvironment() : null;
  if (environment !== null) {
    process.exitCode = await runAgain(environment);
    return;
  }
  const stop = new AbortController();
  // Once each: a second Ctrl-C ends the process at once.
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stop.abort(new Error(`stopped by ${signal}`)));
  // A reader that has seen enough (`| head`) is no error.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? OK : FAILED));
  process.exitCode = await runCli(process.argv.slice(2), {
    out: (text) => process.stdout.write(text),
    stderr: process.stderr,
    signal: stop.signal,
    clock: () => performance.now(),
    environment: process.env,
  });
}

// npm's bin is a link to this file.
const [, script] = process.argv;
if (script !== undefined && realpathSync(script) === fileURLToPath(import.meta.url)) await main();
