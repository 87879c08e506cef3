/** Where training tokens come from: text, JSON lines, or files of raw token numbers. */
import { open, readFile, stat } from 'node:fs/promises';
import { errorCode } from '../atomic-write.ts';
import { isJsonObject } from '../text/json.ts';
import type { Tokenizer } from '../text/tokenizer.ts';

/** A row of tokens that can be read anywhere. */
export interface TokenSource {
  readonly name: string;
  /** Tokens in all. */
  readonly length: number;
  /** Tokens from..from+count-1. */
  read(from: number, count: number): Promise<Uint32Array>;
}

/** What a path is read as. */
export type TokenFormat = 'text' | 'jsonl' | 'uint16' | 'uint32';

/** By the end of the name: .jsonl and .ndjson; .u16, .uint16, .u32, .uint32; anything else is text. */
export function tokenFormatOf(path: string): TokenFormat {
  if (/\.(jsonl|ndjson)$/i.test(path)) return 'jsonl';
  if (/\.(u16|uint16)$/i.test(path)) return 'uint16';
  if (/\.(u32|uint32)$/i.test(path)) return 'uint32';
  return 'text';
}

export interface TokenSourceOptions {
  /** Opened when a text has to be cut into tokens. */
  readonly tokenizer: () => Promise<Pick<Tokenizer, 'encode'>>;
  /** Entries of the vocabulary: every token must be below it. */
  readonly vocab: number;
  /** Put behind every document of a .jsonl; null: nothing is. */
  readonly endOfText: number | null;
  /** Default: by the name's end. */
  readonly format?: TokenFormat;
}

const unreadable = (path: string) => (error: unknown): never => {
  throw new Error(`openTokenSource: data must be a readable file, got ${path} (${errorCode(error) ?? String(error)})`, { cause: error });
};

/** Tokens that are in memory. */
export const tokenSource = (name: string, tokens: Uint32Array): TokenSource => ({ name, length: tokens.length, read: async (from, count) => tokens.slice(from, from + count) });

function sourceOf(path: string, tokens: Uint32Array, vocab: number): TokenSource {
  if (tokens.length === 0) throw new Error(`openTokenSource: data must hold tokens, got none in ${path}`);
  checkVocabulary(path, tokens, vocab, 0);
  return tokenSource(path, tokens);
}

function checkVocabulary(name: string, tokens: Uint32Array, vocab: number, from: number): void {
  const bad = tokens.findIndex((token) => token >= vocab);
  if (bad >= 0) throw new RangeError(`openTokenSource: tokens of ${name} must be 0..${vocab - 1}, got ${tokens[bad]} at ${from + bad}`);
}

async function readUtf8(path: string): Promise<string> {
  const bytes = await readFile(path).catch(unreadable(path));
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (error) {
    throw new Error(`openTokenSource: data must be UTF-8 text, got other bytes in ${path}; token files end in .u16 or .u32`, { cause: error });
  }
}

/** The `text` of every line of a .jsonl; empty lines are passed over. */
function documentsOf(path: string, content: string): string[] {
  return content.split('\n').flatMap((line, i) => {
    if (line.trim() === '') return [];
    const fail = (got: string): never => { throw new Error(`openTokenSource: line ${i + 1} of ${path} must be a JSON object with a string \`text\`, got ${got}`); };
    let parsed: unknown;
    try {
      parsed = JSON.parse(line);
    } catch {
      return fail(line.slice(0, 40));
    }
    return isJsonObject(parsed) && typeof parsed.text === 'string' ? [parsed.text] : fail(line.slice(0, 40));
  });
}

/** Raw little-endian numbers, read where they lie; each piece is checked as it is read. */
async function rawTokens(path: string, width: 2 | 4, vocab: number): Promise<TokenSource> {
  const info = await stat(path).catch(unreadable(path));
  if (info.size === 0) throw new Error(`openTokenSource: data must hold tokens, got an empty file ${path}`);
  if (info.size % width !== 0) throw new Error(`openTokenSource: ${path} must hold whole tokens of ${width} bytes, got ${info.size} bytes`);
  return {
    name: path,
    length: info.size / width,
    async read(from, count) {
      const bytes = new Uint8Array(count * width);
      const file = await open(path, 'r').catch(unreadable(path));
      try {
        const { bytesRead } = await file.read(bytes, 0, bytes.length, from * width);
        if (bytesRead !== bytes.length) throw new Error(`openTokenSource: ${path} must stay as it was, got ${bytesRead} of ${bytes.length} bytes at ${from * width}`);
      } finally {
        await file.close();
      }
      const tokens = width === 2 ? Uint32Array.from(new Uint16Array(bytes.buffer)) : new Uint32Array(bytes.buffer);
      checkVocabulary(path, tokens, vocab, from);
      return tokens;
    },
  };
}

/**
 * Opens one file of training data. Text and JSON lines are cut into tokens at once; token files are read piece by piece.
 * Errors, by file: unreadable, empty, not UTF-8, a line without text, half a token, tokens outside the vocabulary.
 */
export async function openTokenSource(path: string, { tokenizer, vocab, endOfText, format = tokenFormatOf(path) }: TokenSourceOptions): Promise<TokenSource> {
  if (format === 'uint16' || format === 'uint32') return rawTokens(path, format === 'uint16' ? 2 : 4, vocab);
  const content = await readUtf8(path);
  if (content.trim() === '') throw new Error(`openTokenSource: data must hold text, got an empty file ${path}`);
  const { encode } = await tokenizer();
  if (format === 'text') return sourceOf(path, Uint32Array.from(encode(content)), vocab);
  return sourceOf(path, Uint32Array.from(documentsOf(path, content).flatMap((text) => [...encode(text), ...(endOfText === null ? [] : [endOfText])])), vocab);
}
