/** The training texts, out of three Debian packages that `dpkg -x` has unpacked: see README.md here. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync, inflateSync } from 'node:zlib';

const ascii: Readonly<Record<string, string>> = { '\u2018': "'", '\u2019': "'", '\u201c': '"', '\u201d': '"', '\u2014': '--', '\u2013': '-', '\u00a0': ' ', '\u2026': '...' };

/** Typographic quotes and dashes as ASCII; the lines of a paragraph joined, paragraphs parted by an empty line. */
export function paragraphs(text: string): string {
  const plain = text.replace(/[\u2018\u2019\u201c\u201d\u2014\u2013\u00a0\u2026]/g, (mark) => ascii[mark] ?? mark);
  return plain.split(/\n\s*\n/).map((block) => block.trim().replace(/\s+/g, ' ')).filter((block) => block !== '').join('\n\n');
}

const STRING_VECTOR = 16, STRING = 9;

/** The character vector in R's serialisation (XDR): type and length, then for each string its type, length and bytes. */
function characterVector(bytes: Buffer): string[] {
  const start = bytes.indexOf(Uint8Array.of(0, 0, 0, STRING_VECTOR));
  if (start < 0) throw new Error('characterVector: an R object must hold a character vector, got none');
  let at = start + 8;
  return Array.from({ length: bytes.readInt32BE(start + 4) }, () => {
    if (bytes.readUInt8(at + 3) !== STRING) throw new Error(`characterVector: a string must be at byte ${at}, got type ${bytes.readUInt8(at + 3)}`);
    const length = Math.max(0, bytes.readInt32BE(at + 4)); // -1 is NA
    at += 8 + length;
    return bytes.toString('utf8', at - length, at);
  });
}

/** The six novels of r-cran-janeaustenr, by their first line. */
export function readNovels(packages: string): ReadonlyMap<string, string> {
  const file = readFileSync(join(packages, 'usr/lib/R/site-library/janeaustenr/data/Rdata.rdb'));
  const novels = new Map<string, string>();
  for (let at = 0; at < file.length;) {
    const stream = file.subarray(at + 4); // behind the length of what it holds
    const { buffer, engine } = inflateSync(stream, { info: true }) as unknown as { readonly buffer: Buffer; readonly engine: { readonly bytesWritten: number } }; // @types/node lacks `info`
    const lines = characterVector(buffer);
    novels.set((lines[0] ?? '').trim().toUpperCase(), paragraphs(lines.join('\n')));
    at += 4 + engine.bytesWritten;
  }
  return novels;
}

/** The books of bible-kjv-text, each chapter a paragraph without the numbers of verses. */
export function readBible(packages: string): string[] {
  const file = readFileSync(join(packages, 'usr/lib/bible.data'));
  const compressed = file.subarray(file.indexOf(Uint8Array.of(0x1f, 0x9d))); // a table of blocks, then one stream of compress(1), which gzip reads
  const verses = execFileSync('gzip', ['-dc'], { input: compressed, maxBuffer: 2 ** 26, encoding: 'latin1' }).split('\n');
  const books = new Map<string, Map<string, string[]>>();
  for (const verse of verses) {
    const [, book, chapter, text] = /^(\d?[A-Za-z]+)(\d+):\d+ (.*)$/.exec(verse) ?? [];
    if (book === undefined || chapter === undefined || text === undefined) continue;
    const chapters = books.get(book) ?? new Map<string, string[]>();
    books.set(book, chapters.set(chapter, [...(chapters.get(chapter) ?? []), text]));
  }
  return [...books.values()].map((chapters) => [...chapters.values()].map((lines) => lines.join(' ')).join('\n\n'));
}

/** The Jargon File of jargon-text from its first entry on. */
export function readJargon(packages: string): string {
  const text = gunzipSync(readFileSync(join(packages, 'usr/share/doc/jargon-text/jargon.txt.gz'))).toString('utf8');
  return paragraphs(text.slice(text.indexOf(':abbrev: /')));
}
