/** One file from the hub into the blobs of the cache: resumed where it stopped, checked before it counts. */
import { createHash } from 'node:crypto';
import type { Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, open, rename, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { setTimeout as wait } from 'node:timers/promises';
import { errorCode } from './atomic-write.ts';

export type Fetch = typeof fetch;

export interface HubFile {
  readonly path: string;
  readonly bytes: number;
  /** SHA-256 of the content, or git's SHA-1 of the blob for small files. */
  readonly checksum: { readonly algorithm: 'sha256' | 'git-sha1'; readonly hex: string };
}

export interface DownloadOptions {
  readonly fetch: Fetch;
  readonly signal: AbortSignal | undefined;
  /** Attempts in a row that bring no new bytes before giving up. */
  readonly attempts: number;
  readonly retryDelayMs: number;
  /** Bytes of this file that are on disk now. */
  readonly onBytes: (doneBytes: number) => void;
  readonly onRetry: (reason: string) => void;
}

/** The server answered, and the answer is no: trying again will not help. */
class Refused extends Error {}

const messageOf = (error: unknown): string => {
  if (!(error instanceof Error)) return String(error);
  return error.cause instanceof Error && error.cause.message !== '' ? `${error.message} (${error.cause.message})` : error.message;
};

async function sizeOf(path: string): Promise<number> {
  try {
    return (await stat(path)).size;
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return 0;
    throw error;
  }
}

function startHash(file: HubFile): Hash {
  if (file.checksum.algorithm === 'sha256') return createHash('sha256');
  return createHash('sha1').update(`blob ${file.bytes}\0`); // git names a blob by header and content
}

async function checksumOf(path: string, file: HubFile): Promise<string> {
  const hash = startHash(file);
  await pipeline(createReadStream(path), hash);
  return hash.digest('hex');
}

/** Where the body of an answer belongs in the file. Errors: an answer that is not the file, refused for good when 4xx. */
function bodyStart(response: Response, asked: number, file: HubFile): number {
  if (response.status === 206) {
    const range = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(response.headers.get('content-range') ?? '');
    if (range?.[1] !== undefined && Number(range[1]) === asked) return asked;
    throw new Error(`answer must start at byte ${asked}, got content-range ${String(response.headers.get('content-range'))}`);
  }
  if (response.status === 200) return 0; // a server without Range sends all of it again
  const text = `answer for ${file.path} must be 200 or 206, got ${response.status}`;
  const passing = response.status >= 500 || response.status === 408 || response.status === 429;
  throw passing ? new Error(text) : new Refused(text);
}

/** Asks for what is missing and appends it. Throws when the connection breaks; what arrived stays on disk. */
async function fetchRest(url: string, partial: string, file: HubFile, options: DownloadOptions): Promise<void> {
  const have = await sizeOf(partial);
  const response = await options.fetch(url, {
    headers: { 'Accept-Encoding': 'identity', ...(have > 0 ? { Range: `bytes=${have}-` } : {}) },
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  });
  let position: number;
  try {
    position = bodyStart(response, have, file);
  } catch (error) {
    await response.body?.cancel();
    throw error;
  }
  const handle = await open(partial, position === 0 ? 'w' : 'r+');
  try {
    const body: AsyncIterable<Uint8Array> | null = response.body;
    for await (const bytes of body ?? []) {
      if (position + bytes.length > file.bytes) throw new Refused(`${file.path} must have ${file.bytes} bytes, got more`);
      for (let written = 0; written < bytes.length; ) {
        const { bytesWritten } = await handle.write(bytes, written, bytes.length - written, position + written);
        written += bytesWritten;
      }
      position += bytes.length;
      options.onBytes(position);
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
  if (position < file.bytes) throw new Error(`connection ended at byte ${position} of ${file.bytes}`);
}

/**
 * Downloads a file to `blob`. What has arrived is kept in `blob`.incomplete, and the next call goes on from there (HTTP
 * Range). The checksum is taken over the whole file on disk; only then does it get its name.
 * Errors: the server refuses; too many attempts in a row without a byte; a wrong checksum, after which the bytes are gone;
 * the signal's reason.
 */
export async function downloadBlob(url: string, blob: string, file: HubFile, options: DownloadOptions): Promise<void> {
  const partial = `${blob}.incomplete`;
  await mkdir(dirname(blob), { recursive: true });
  if ((await sizeOf(partial)) > file.bytes) await rm(partial, { force: true });
  for (let failures = 0; (await sizeOf(partial)) < file.bytes || file.bytes === 0; ) {
    const before = await sizeOf(partial);
    try {
      await fetchRest(url, partial, file, options);
      break;
    } catch (error) {
      options.signal?.throwIfAborted();
      if (error instanceof Refused || errorCode(error) === 'ENOSPC') {
        throw new Error(`downloadModel: ${messageOf(error)}`, { cause: error });
      }
      failures = (await sizeOf(partial)) > before ? 1 : failures + 1;
      if (failures >= options.attempts) {
        const kept = await sizeOf(partial);
        throw new Error(
          `downloadModel: ${file.path} must arrive within ${options.attempts} attempts, got ${messageOf(error)}; ${kept} of ${file.bytes} bytes are kept, the next call goes on from there`,
          { cause: error },
        );
      }
      options.onRetry(`${file.path}: ${messageOf(error)}, trying again`);
      const stopWaiting = options.signal === undefined ? {} : { signal: options.signal };
      await wait(options.retryDelayMs * failures, undefined, stopWaiting).catch(() => options.signal?.throwIfAborted());
    }
  }
  const found = await checksumOf(partial, file);
  if (found !== file.checksum.hex) {
    await rm(partial, { force: true });
    throw new Error(`downloadModel: ${file.checksum.algorithm} of ${file.path} must be ${file.checksum.hex}, got ${found}; the bytes were thrown away`);
  }
  await rename(partial, blob);
}
