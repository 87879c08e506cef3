/**
 * Byte-pair encoding learnt from text (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword
 * Units"), on bytes as GPT-2 does: 256 pieces for the bytes, then the most frequent pair of pieces becomes a piece, again and again.
 */

/** GPT-2's words: nothing is merged across them. */
const WORD = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

const printable = (byte: number): boolean => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173 && byte < 256);

/** GPT-2's character for each byte: itself where it is printable, else one of the characters from U+0100 on, in order. */
export const byteCharacters: readonly string[] = Array.from({ length: 256 }, (_, byte) => byte).map((byte, _, bytes) =>
  String.fromCodePoint(printable(byte) ? byte : 256 + bytes.slice(0, byte).filter((earlier) => !printable(earlier)).length));

/** Words of texts, each spelled in the characters of its bytes, and how often they occur. */
export function countWords(texts: Iterable<string>): Map<string, number> {
  const counts = new Map<string, number>();
  for (const text of texts) for (const [word] of text.matchAll(WORD)) counts.set(word, (counts.get(word) ?? 0) + 1);
  return new Map([...counts].map(([word, count]) => [[...new TextEncoder().encode(word)].map((byte) => byteCharacters[byte]).join(''), count]));
}

export interface Bpe {
  /** The characters of the bytes in order of their code points, then one piece for each merge. */
  readonly pieces: readonly string[];
  readonly merges: readonly (readonly [string, string])[];
}

interface Word {
  symbols: readonly number[];
  readonly count: number;
}

/** Everything the search for the next merge looks at: how often each pair of neighbours occurs, and in which words. */
interface Pairs {
  readonly counts: Map<number, number>;
  readonly words: Map<number, Set<Word>>;
}

const BASE = 2 ** 20; // above any number of pieces, so that a pair is one number
const pairsOf = ({ symbols }: Word): number[] => symbols.slice(1).map((right, i) => (symbols[i] ?? 0) * BASE + right);

function count(pairs: Pairs, word: Word, sign: 1 | -1): void {
  for (const pair of pairsOf(word)) {
    pairs.counts.set(pair, (pairs.counts.get(pair) ?? 0) + sign * word.count);
    const words = pairs.words.get(pair) ?? new Set();
    if (sign > 0) pairs.words.set(pair, words.add(word));
    else words.delete(word);
  }
}

/** The most frequent pair; of equals the one of the earliest pieces. */
function mostFrequent({ counts }: Pairs): { readonly pair: number; readonly count: number } {
  let best = { pair: Infinity, count: 0 };
  for (const [pair, n] of counts) if (n > best.count || (n === best.count && pair < best.pair)) best = { pair, count: n };
  return best;
}

function merged(symbols: readonly number[], left: number, right: number, piece: number): number[] {
  const result: number[] = [];
  for (let i = 0; i < symbols.length; i++) {
    const here = symbols[i] === left && symbols[i + 1] === right;
    result.push(here ? piece : symbols[i] ?? 0);
    if (here) i++;
  }
  return result;
}

/** Learns `size` pieces, fewer when no pair occurs twice. `words`: see countWords. Errors: a size below the 256 bytes. */
export function trainBpe(words: ReadonlyMap<string, number>, size: number): Bpe {
  if (!Number.isInteger(size) || size < 256 || size >= BASE) throw new RangeError(`trainBpe: size must be a whole number from 256 to ${BASE - 1}, got ${size}`);
  const pieces = [...byteCharacters].sort();
  const idOf = new Map(pieces.map((piece, id) => [piece, id]));
  const pairs: Pairs = { counts: new Map(), words: new Map() };
  for (const [text, times] of words) count(pairs, { symbols: [...text].map((character) => idOf.get(character) ?? 0), count: times }, 1);
  const merges: [string, string][] = [];
  while (pieces.length < size) {
    const { pair, count: times } = mostFrequent(pairs);
    if (times < 2) break;
    const [left, right] = [Math.floor(pair / BASE), pair % BASE];
    const [a, b] = [pieces[left] ?? '', pieces[right] ?? ''];
    for (const word of [...(pairs.words.get(pair) ?? [])]) {
      count(pairs, word, -1);
      word.symbols = merged(word.symbols, left, right, pieces.length);
      count(pairs, word, 1);
    }
    pairs.counts.delete(pair);
    merges.push([a, b]);
    pieces.push(a + b);
  }
  return { pieces, merges };
}
