/** Messages to the text a chat model was trained on. The only importer of @huggingface/jinja. */
import { Environment, Interpreter, parse, tokenize } from '@huggingface/jinja';
import { isJsonObject } from './json.ts';

export interface ChatMessage {
  readonly role: string;
  readonly content: string;
}

export interface ChatOptions {
  readonly bosToken?: string | null | undefined;
  readonly eosToken?: string | null | undefined;
  /** End with the opening of an assistant message; default false. */
  readonly addGenerationPrompt?: boolean | undefined;
  /** The day that templates with `strftime_now` print; without it they see no clock and print their own default. */
  readonly now?: Date | undefined;
  /** More variables for the template, e.g. `tools` or `enable_thinking`. */
  readonly variables?: Readonly<Record<string, unknown>> | undefined;
}

const months = ['January', 'February', 'March', 'April', 'May', 'June', 'July', 'August', 'September', 'October', 'November', 'December'];

/** Python's strftime in English and UTC, so that the same date gives the same prompt everywhere. */
function strftime(date: Date, format: string): string {
  const two = (value: number): string => String(value).padStart(2, '0');
  const month = months[date.getUTCMonth()] ?? '';
  const fields: Readonly<Record<string, string>> = {
    Y: String(date.getUTCFullYear()),
    m: two(date.getUTCMonth() + 1),
    d: two(date.getUTCDate()),
    b: month.slice(0, 3),
    B: month,
    H: two(date.getUTCHours()),
    M: two(date.getUTCMinutes()),
    S: two(date.getUTCSeconds()),
    '%': '%',
  };
  return format.replace(/%(.)/g, (directive, name: string) => {
    const value = fields[name];
    if (value === undefined) throw new Error(`strftime_now: directive must be one of %${Object.keys(fields).join(', %')}, got ${directive}`);
    return value;
  });
}

/** Python's range, of numbers. */
function range(start: number, stop?: number, step = 1): number[] {
  if (step === 0) throw new Error('range: step must not be 0, got 0');
  const [from, to] = stop === undefined ? [0, start] : [start, stop];
  return Array.from({ length: Math.max(0, Math.ceil((to - from) / step)) }, (_, index) => from + index * step);
}

function refuse(message: string): never {
  throw new Error(message);
}

/** What every template sees. The package's own globals would bring the machine's clock, language and time zone. */
const globals: Readonly<Record<string, unknown>> = {
  true: true,
  false: false,
  none: null,
  True: true,
  False: false,
  None: null,
  range,
  raise_exception: refuse,
};

/**
 * Renders a chat template (Jinja, with trim_blocks and lstrip_blocks as transformers sets them) over messages.
 * The template sees messages, bos_token, eos_token, add_generation_prompt, raise_exception and `variables`.
 * Encode the result without adding BOS: templates write it themselves.
 * Errors: `renderChat: ...` for no template, a template that does not parse, and one that refuses these messages
 * (raise_exception), with its own words.
 */
export function renderChat(template: string | null, messages: readonly ChatMessage[], options: ChatOptions = {}): string {
  if (template === null) throw new Error('renderChat: the model must bring a chat template, got none');
  const { now } = options;
  const clock = now === undefined ? undefined : (format: string): string => strftime(now, format);
  let program;
  try {
    program = parse(tokenize(template, { lstrip_blocks: true, trim_blocks: true }));
  } catch (error) {
    throw new Error(`renderChat: chat template must be valid Jinja, got ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  }
  const environment = new Environment();
  const variables = {
    ...globals,
    strftime_now: clock,
    ...options.variables,
    messages,
    bos_token: options.bosToken ?? '',
    eos_token: options.eosToken ?? '',
    add_generation_prompt: options.addGenerationPrompt ?? false,
  };
  try {
    for (const [name, value] of Object.entries(variables)) environment.set(name, value);
    const result: unknown = new Interpreter(environment).run(program);
    if (!isJsonObject(result) || typeof result['value'] !== 'string') throw new Error('a result that is not text');
    return result['value'];
  } catch (error) {
    const roles = messages.map((message) => message.role).join(', ');
    throw new Error(`renderChat: chat template must accept the messages (${roles}), got ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  }
}
