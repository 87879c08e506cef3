/**
 * Files and directories that appear whole or not at all: written under a temporary name beside the target, fsynced,
 * renamed. Failure or abort removes the temporary and leaves whatever was there before.
 */
import { randomUUID } from 'node:crypto';
import { mkdir, open, readdir, rename, rm, rmdir } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';

/** Writes bytes at a position and returns how many were taken. Replaceable, so that a test can play a full disk. */
export type WriteBytes = (file: FileHandle, bytes: Uint8Array, position: number) => Promise<number>;

export interface WriteOptions {
  /** Stops between chunks; the temporary is removed and the signal's reason thrown. */
  readonly signal?: AbortSignal | undefined;
  readonly writeBytes?: WriteBytes | undefined;
}

/** The open end of a file being written, front to back. */
export interface FileSink {
  /** Bytes written so far. */
  readonly position: number;
  write(bytes: Uint8Array): Promise<void>;
}

const writeToDisk: WriteBytes = async (file, bytes, position) =>
  (await file.write(bytes, 0, bytes.byteLength, position)).bytesWritten;

/** Bytes handed to the system at once; an abort is noticed after at most this much. */
const CHUNK_BYTES = 2 ** 25;

const temporaryName = (path: string): string => join(dirname(path), `.${basename(path)}.partial-${randomUUID()}`);

function failure(name: string, path: string, cause: unknown): Error {
  return new Error(`${name}: ${path} was not written: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
}

/**
 * Writes one file through `fill`, replacing an existing file only when all of it is on disk.
 * Errors: `writeFileAtomic: PATH was not written: REASON`, e.g. ENOSPC; errors thrown by `fill` and the signal's reason
 * pass through unchanged.
 */
export async function writeFileAtomic(
  path: string,
  fill: ((sink: FileSink) => Promise<void>) | Uint8Array | string,
  options: WriteOptions = {},
): Promise<void> {
  const { signal, writeBytes = writeToDisk } = options;
  signal?.throwIfAborted();
  const target = resolve(path);
  const temporary = temporaryName(target);
  const onDisk = <T>(work: Promise<T>): Promise<T> =>
    work.catch((cause: unknown) => {
      throw failure('writeFileAtomic', target, cause);
    });
  const file = await onDisk(open(temporary, 'wx'));
  try {
    let position = 0;
    const sink: FileSink = {
      get position() {
        return position;
      },
      async write(bytes) {
        for (let done = 0; done < bytes.byteLength; ) {
          signal?.throwIfAborted();
          const taken = await onDisk(writeBytes(file, bytes.subarray(done, done + CHUNK_BYTES), position));
          if (taken <= 0) throw failure('writeFileAtomic', target, new Error(`no progress at byte ${position}`));
          done += taken;
          position += taken;
        }
      },
    };
    if (typeof fill === 'function') await fill(sink);
    else await sink.write(typeof fill === 'string' ? new TextEncoder().encode(fill) : fill);
    signal?.throwIfAborted();
    await onDisk(file.sync());
    await onDisk(file.close());
    await onDisk(rename(temporary, target));
  } catch (error) {
    await file.close().catch(() => undefined); // may be closed already
    await rm(temporary, { force: true });
    throw error;
  }
  await syncDirectory(dirname(target));
}

/**
 * Makes a directory whose content `fill` writes; it appears under its name only when `fill` has returned. Files are to be
 * written with writeFileAtomic, which fsyncs them.
 * Errors: `path` exists and is not an empty directory (nothing is written); errors of `fill` pass through.
 */
export async function writeDirectoryAtomic(
  path: string,
  fill: (temporaryDirectory: string) => Promise<void>,
  options: Pick<WriteOptions, 'signal'> = {},
): Promise<void> {
  options.signal?.throwIfAborted();
  const target = resolve(path);
  const existed = await refuseOccupied(target);
  const temporary = temporaryName(target);
  await mkdir(dirname(target), { recursive: true });
  await mkdir(temporary).catch((cause: unknown) => {
    throw failure('writeDirectoryAtomic', target, cause);
  });
  try {
    await fill(temporary);
    options.signal?.throwIfAborted();
    await syncDirectory(temporary);
    if (existed) await rmdir(target); // refuses, and so protects, what appeared in it meanwhile
    await rename(temporary, target);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    throw error;
  }
  await syncDirectory(dirname(target));
}

/**
 * Refuses a path that holds something already, before any work is done for it; returns whether an empty directory
 * stands there.
 */
export async function refuseOccupied(path: string): Promise<boolean> {
  try {
    const [first] = await readdir(path);
    if (first !== undefined) throw new Error(`refuseOccupied: output directory must be empty or absent, ${path} holds ${first}`);
    return true;
  } catch (error) {
    const code = errorCode(error);
    if (code === 'ENOENT') return false;
    if (code === 'ENOTDIR') throw new Error(`refuseOccupied: output must be a directory, ${path} is a file`, { cause: error });
    throw error;
  }
}

/** The `code` of a system error (ENOENT, ENOSPC, ...), or null. */
export function errorCode(error: unknown): string | null {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : null;
}

/** Makes a rename durable. Some systems cannot open or sync a directory; the file itself is safe there too. */
async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r').catch(() => null);
  if (directory === null) return;
  await directory.sync().catch(() => undefined);
  await directory.close();
}
