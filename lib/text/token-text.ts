/**
 * Token ids back to text, exactly and bit by bit.
 * The `decoder` of tokenizer.json is read into one of two rules: byte-level (every token is bytes) and pieces (tokens are
 * text, with `<0x0A>` tokens for single bytes). No spaces are cleaned up. Source: tokenizers 0.23, src/decoders/*.rs.
 */
import type { JsonObject } from './json.ts';
import { isJsonObject, listField, textField } from './json.ts';

/** Text that grows token by token. */
export interface TokenStream {
  /** The text that this token completes; '' while a character is still missing bytes. */
  push(id: number): string;
  /** What is still held back, as decode() would show it (U+FFFD for a broken character). Ends the stream. */
  end(): string;
}

type Replacements = readonly (readonly [from: string, to: string])[];

export interface TokenTextRule {
  readonly kind: 'bytes' | 'pieces';
  /** Text replaced inside every token, in order; the first token may have replacements of its own. */
  readonly replacements: Replacements;
  readonly firstReplacements: Replacements | null;
  /** Tokens spelled <0xNN> are single bytes. */
  readonly byteFallback: boolean;
  /** One text dropped at the very start, as often as it repeats, at most `count` times. */
  readonly stripStart: { readonly content: string; readonly count: number } | null;
}

const known = 'ByteLevel, Metaspace, or a Sequence of Replace, ByteFallback, Fuse, Strip';
const pieces: TokenTextRule = { kind: 'pieces', replacements: [], firstReplacements: null, byteFallback: false, stripStart: null };

const refuse = (got: string): Error => new Error(`tokenTextRule: decoder must be ${known}, got ${got}`);

function metaspace(rule: JsonObject): TokenTextRule {
  const mark = textField(rule, 'replacement') ?? '\u2581';
  return { ...pieces, replacements: [[mark, ' ']], firstReplacements: rule['prepend_scheme'] === 'never' ? null : [[mark, '']] };
}

function sequence(rules: readonly unknown[]): TokenTextRule {
  let result = pieces;
  for (const rule of rules) {
    if (!isJsonObject(rule)) throw refuse(String(rule));
    const type = textField(rule, 'type');
    if (type === 'Replace' && !result.byteFallback) {
      const from = isJsonObject(rule['pattern']) ? textField(rule['pattern'], 'String') : null;
      if (from === null) throw refuse(`Replace with pattern ${JSON.stringify(rule['pattern'])}`);
      result = { ...result, replacements: [...result.replacements, [from, textField(rule, 'content') ?? '']] };
    } else if (type === 'ByteFallback') {
      result = { ...result, byteFallback: true };
    } else if (type === 'Strip' && rule['stop'] === 0 && result.stripStart === null) {
      result = { ...result, stripStart: { content: textField(rule, 'content') ?? ' ', count: Number(rule['start'] ?? 0) } };
    } else if ((type === 'ByteLevel' || type === 'Metaspace') && rules.length === 1) {
      return tokenTextRule(rule);
    } else if (type !== 'Fuse') {
      throw refuse(`${String(type)} in ${JSON.stringify(rules)}`);
    }
  }
  return result;
}

/** Reads the `decoder` of a tokenizer.json. Errors: a decoder outside the two rules is refused, listing what is known. */
export function tokenTextRule(decoder: unknown): TokenTextRule {
  if (!isJsonObject(decoder)) throw refuse(String(decoder));
  const type = textField(decoder, 'type');
  if (type === 'ByteLevel') return { ...pieces, kind: 'bytes' };
  if (type === 'Metaspace') return metaspace(decoder);
  if (type === 'Sequence') return sequence(listField(decoder, 'decoders'));
  throw refuse(String(type));
}

/** GPT-2's table: printable characters stand for themselves, the other bytes for U+0100 upwards in order. */
const byteOfCharacter: ReadonlyMap<string, number> = (() => {
  const printable = (byte: number): boolean => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let next = 256;
  return new Map(Array.from({ length: 256 }, (_, byte) => [String.fromCharCode(printable(byte) ? byte : next++), byte]));
})();

const utf8 = new TextEncoder();

function bytesOf(token: string): Uint8Array {
  const bytes: number[] = [];
  for (const character of token) {
    const byte = byteOfCharacter.get(character);
    if (byte === undefined) return utf8.encode(token); // an added token in plain text
    bytes.push(byte);
  }
  return Uint8Array.from(bytes);
}

interface PieceStream {
  push(token: string): string;
  end(): string;
}

/** The byte-level rule: one run of bytes, broken ones marked as WHATWG and Rust both do. */
function byteStream(): PieceStream {
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  return {
    push: (token) => decoder.decode(bytesOf(token), { stream: true }),
    end: () => decoder.decode(),
  };
}

const strict = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function wholeText(bytes: readonly number[]): string | null {
  try {
    return strict.decode(Uint8Array.from(bytes));
  } catch {
    return null;
  }
}

/** Drops `content` from the front of a text that comes in parts, at most `count` times. */
function startStripper(strip: TokenTextRule['stripStart']): (text: string) => string {
  let left = strip?.count ?? 0;
  return (text) => {
    let rest = text;
    while (strip !== null && rest !== '' && left > 0) {
      const found = rest.startsWith(strip.content);
      left = found ? left - 1 : 0;
      if (found) rest = rest.slice(strip.content.length);
    }
    return rest;
  };
}

/**
 * The pieces rule. A run of byte tokens is text when it is valid as a whole, otherwise one U+FFFD per byte; `eager` gives
 * whole characters out before the run has ended.
 */
function pieceStream(rule: TokenTextRule, eager: boolean): PieceStream {
  const strip = startStripper(rule.stripStart);
  let run: number[] = [];
  let replacements = rule.firstReplacements ?? rule.replacements;
  const endRun = (): string => {
    const text = wholeText(run) ?? '\ufffd'.repeat(run.length);
    run = [];
    return text;
  };
  return {
    push(token) {
      const piece = replacements.reduce((text, [from, to]) => text.replaceAll(from, to), token);
      replacements = rule.replacements;
      const byte = rule.byteFallback ? /^<0x([0-9A-Fa-f]{2})>$/.exec(piece)?.[1] : undefined;
      if (byte === undefined) return strip(endRun() + piece);
      run.push(parseInt(byte, 16));
      return eager && wholeText(run) !== null ? strip(endRun()) : '';
    },
    end: () => strip(endRun()),
  };
}

/** Text of an id, or null for one to be left out (special, or outside the vocabulary). */
export type TokenOf = (id: number) => string | null;

/**
 * Starts a stream. Its pieces joined are what decodeTokens returns, but for a run of byte tokens that begins with whole
 * characters and ends broken: those characters are already out, where decodeTokens marks every byte of the run.
 */
export function tokenStream(rule: TokenTextRule, tokenOf: TokenOf): TokenStream {
  const stream = rule.kind === 'bytes' ? byteStream() : pieceStream(rule, true);
  return {
    push(id) {
      const token = tokenOf(id);
      return token === null ? '' : stream.push(token);
    },
    end: () => stream.end(),
  };
}

/** The text of ids, as the Rust library decodes them. */
export function decodeTokens(rule: TokenTextRule, tokenOf: TokenOf, ids: readonly number[]): string {
  const stream = rule.kind === 'bytes' ? byteStream() : pieceStream(rule, false);
  const parts: string[] = [];
  for (const id of ids) {
    const token = tokenOf(id);
    if (token !== null) parts.push(stream.push(token));
  }
  return parts.join('') + stream.end();
}
