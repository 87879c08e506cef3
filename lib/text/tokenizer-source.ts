/**
 * Where a tokenizer comes from: the Hugging Face files of a directory, or the metadata of a GGUF file turned into them.
 */
import { readFile, readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { readGgufMetadata } from '../checkpoint/gguf.ts';
import { ggufTokenizer } from './gguf-tokenizer.ts';
import type { JsonObject } from './json.ts';
import { isJsonObject, listField, parseJsonObject, textField } from './json.ts';

export interface TokenizerSource {
  /** The file the tokenizer was read from, for errors. */
  readonly path: string;
  /** tokenizer.json */
  readonly tokenizer: JsonObject;
  /** tokenizer_config.json over special_tokens_map.json */
  readonly config: JsonObject;
  readonly chatTemplate: string | null;
  /** Name to text of everything that must stand beside a model for its tokenizer to be opened again. */
  readonly files: Readonly<Record<string, string>>;
}

const optionalFiles = ['tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json', 'chat_template.jinja', 'chat_template.json'];

async function textOf(path: string): Promise<string | null> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return null;
    throw error;
  }
}

/** `chat_template` is a string, or a list of named ones of which "default" counts. */
function templateField(config: JsonObject): string | null {
  const named = listField(config, 'chat_template').find((entry) => isJsonObject(entry) && entry['name'] === 'default');
  return isJsonObject(named) ? textField(named, 'template') : textField(config, 'chat_template');
}

async function fromDirectory(directory: string, tokenizerText: string): Promise<TokenizerSource> {
  const path = join(directory, 'tokenizer.json');
  const texts = await Promise.all(optionalFiles.map(async (name) => [name, await textOf(join(directory, name))] as const));
  const files: Record<string, string> = { 'tokenizer.json': tokenizerText };
  for (const [name, text] of texts) if (text !== null) files[name] = text;
  const object = (name: string): JsonObject => {
    const text = files[name];
    return text === undefined ? {} : parseJsonObject('openTokenizer', join(directory, name), text);
  };
  const config = { ...object('special_tokens_map.json'), ...object('tokenizer_config.json') };
  return {
    path,
    tokenizer: parseJsonObject('openTokenizer', path, tokenizerText),
    config,
    chatTemplate: files['chat_template.jinja'] ?? templateField(config) ?? templateField(object('chat_template.json')),
    files,
  };
}

async function fromGguf(path: string): Promise<TokenizerSource> {
  const { tokenizer, config } = ggufTokenizer(await readGgufMetadata(path), path);
  const tokens = Object.fromEntries(Object.entries(config).filter(([name, value]) => name.endsWith('_token') && typeof value === 'string'));
  return {
    path,
    tokenizer,
    config,
    chatTemplate: templateField(config),
    files: {
      'tokenizer.json': JSON.stringify(tokenizer),
      'tokenizer_config.json': `${JSON.stringify(config, null, 2)}\n`,
      'special_tokens_map.json': `${JSON.stringify(tokens, null, 2)}\n`,
    },
  };
}

/**
 * Reads the tokenizer at a path: a directory with tokenizer.json, a directory with exactly one .gguf file, or a .gguf file.
 * Template: chat_template.jinja, else tokenizer_config.json (a string, or the list entry named "default"), else
 * chat_template.json. Errors: nothing there to read, naming what was looked for.
 */
export async function readTokenizerSource(path: string): Promise<TokenizerSource> {
  const info = await stat(path).catch((error: unknown) => {
    throw new Error(`openTokenizer: path must exist, got ${path}`, { cause: error });
  });
  if (info.isFile()) {
    if (path.endsWith('.gguf')) return fromGguf(path);
    throw new Error(`openTokenizer: path must be a directory or a .gguf file, got ${path}`);
  }
  const text = await textOf(join(path, 'tokenizer.json'));
  if (text !== null) return fromDirectory(path, text);
  const names = await readdir(path);
  const [gguf, ...others] = names.filter((name) => name.endsWith('.gguf'));
  if (gguf !== undefined && others.length === 0) return fromGguf(join(path, gguf));
  throw new Error(`openTokenizer: directory must hold tokenizer.json or exactly one .gguf file, ${path} holds ${names.sort().join(', ') || 'nothing'}`);
}
