/** Reading one range of a file: open, pread, close. */
import { open, stat } from 'node:fs/promises';

/** Largest single read; Linux takes just under 2 GiB at a time. */
const CHUNK_BYTES = 2 ** 30;

/**
 * Bytes [offset, offset + bytes) of a file. No handle stays open.
 * Errors: the file ends before the range does.
 */
export async function readBytes(path: string, offset: number, bytes: number): Promise<Uint8Array> {
  const file = await open(path, 'r');
  try {
    const into = new Uint8Array(bytes);
    for (let done = 0; done < bytes; ) {
      const { bytesRead } = await file.read(into, done, Math.min(bytes - done, CHUNK_BYTES), offset + done);
      if (bytesRead === 0) throw new Error(`readBytes: ${path} ends at byte ${offset + done}, ${bytes} bytes at ${offset} were asked for`);
      done += bytesRead;
    }
    return into;
  } finally {
    await file.close();
  }
}

/** Length of a file in bytes. */
export const fileBytes = async (path: string): Promise<number> => (await stat(path)).size;
