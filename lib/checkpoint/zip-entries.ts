/** Reading .zip archives whose entries are stored as they are, as PyTorch writes them. Source: APPNOTE.TXT of PKWARE, 4.3. */
import { fileBytes, readBytes } from './read-bytes.ts';

/** Where an entry's data lie in the archive. */
export interface ZipEntry {
  readonly name: string;
  readonly offset: number;
  readonly bytes: number;
}

const END = 0x06054b50;
const CENTRAL = 0x02014b50;
const LOCAL = 0x04034b50;
const END_BYTES = 22;
const CENTRAL_BYTES = 46;
const LOCAL_BYTES = 30;
const LONGEST_COMMENT = 0xffff;

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** The entries of an archive by name. Errors: no archive, a truncated one, one above 4 GiB, compressed or encrypted entries. */
export async function zipEntries(path: string): Promise<ReadonlyMap<string, ZipEntry>> {
  const refuse = (rule: string): Error => new Error(`zipEntries: ${path} ${rule}`);
  const total = await fileBytes(path);
  const tailStart = Math.max(0, total - END_BYTES - LONGEST_COMMENT);
  const tail = viewOf(await readBytes(path, tailStart, total - tailStart));
  let end = tail.byteLength - END_BYTES;
  while (end >= 0 && tail.getUint32(end, true) !== END) end--;
  if (end < 0) throw refuse('must be a zip archive, but has no end record');
  const [count, size, start] = [tail.getUint16(end + 10, true), tail.getUint32(end + 12, true), tail.getUint32(end + 16, true)];
  if (start === 0xffffffff || count === 0xffff) throw refuse('must be below 4 GiB and 65535 entries');
  if (start + size > tailStart + end) throw refuse(`must hold its directory at ${start}..${start + size}, but its end record lies at ${tailStart + end}`);
  const directory = await readBytes(path, start, size);
  const view = viewOf(directory);
  const entries = new Map<string, ZipEntry>();
  let at = 0;
  for (let i = 0; i < count; i++) {
    if (at + CENTRAL_BYTES > size || view.getUint32(at, true) !== CENTRAL) throw refuse(`must have ${count} directory records, got ${i}`);
    const [flags, method, stored, bytes] = [view.getUint16(at + 8, true), view.getUint16(at + 10, true), view.getUint32(at + 20, true), view.getUint32(at + 24, true)];
    const [nameBytes, extraBytes, commentBytes, local] = [view.getUint16(at + 28, true), view.getUint16(at + 30, true), view.getUint16(at + 32, true), view.getUint32(at + 42, true)];
    const name = new TextDecoder().decode(directory.subarray(at + CENTRAL_BYTES, at + CENTRAL_BYTES + nameBytes));
    if (method !== 0 || stored !== bytes || (flags & 1) !== 0) throw refuse(`must store its entries uncompressed and unencrypted, got ${name} by method ${method}`);
    const header = viewOf(await readBytes(path, local, LOCAL_BYTES));
    if (header.getUint32(0, true) !== LOCAL) throw refuse(`must have a header at ${local} for ${name}`);
    const offset = local + LOCAL_BYTES + header.getUint16(26, true) + header.getUint16(28, true);
    if (offset + bytes > start) throw refuse(`must hold ${name} at ${offset}..${offset + bytes}, before its directory at ${start}`);
    entries.set(name, { name, offset, bytes });
    at += CENTRAL_BYTES + nameBytes + extraBytes + commentBytes;
  }
  return entries;
}
