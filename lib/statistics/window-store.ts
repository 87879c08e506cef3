/** The hidden states of all windows between two layers: in memory, or in one file each where they are large. */
import { mkdir, open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { readBytes } from '../checkpoint/read-bytes.ts';

/** One boundary between layers. Each window holds the same number of float32 elements. */
export interface WindowStore {
  read(window: number): Promise<Float32Array>;
  write(window: number, data: Float32Array): Promise<void>;
  /** All that was written is safe; nothing more will be. */
  finish(): Promise<void>;
  discard(): Promise<void>;
}

export function memoryStore(): WindowStore {
  const held = new Map<number, Float32Array>();
  return {
    async read(window) {
      const data = held.get(window);
      if (data === undefined) throw new RangeError(`memoryStore: window ${window} must have been written`);
      return data;
    },
    async write(window, data) { held.set(window, data); },
    async finish() {},
    async discard() { held.clear(); },
  };
}

/** Windows behind each other in a file; `elements` float32 each. */
export function fileStore(path: string, elements: number): WindowStore {
  const bytes = elements * Float32Array.BYTES_PER_ELEMENT;
  let writing: Awaited<ReturnType<typeof open>> | null = null;
  const close = async (): Promise<void> => {
    const file = writing;
    writing = null;
    await file?.close();
  };
  return {
    async read(window) {
      const raw = await readBytes(path, window * bytes, bytes);
      const aligned = raw.byteOffset % Float32Array.BYTES_PER_ELEMENT === 0 ? raw : raw.slice();
      return new Float32Array(aligned.buffer, aligned.byteOffset, elements);
    },
    async write(window, data) {
      writing ??= await open(path, 'w');
      const raw = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
      for (let done = 0; done < raw.byteLength;) {
        done += (await writing.write(raw, done, raw.byteLength - done, window * bytes + done)).bytesWritten;
      }
    },
    async finish() {
      await writing?.sync();
      await close();
    },
    async discard() {
      await close();
      await rm(path, { force: true });
    },
  };
}

/** Makes the store of each boundary: boundary l is the input of layer l. */
export type StoreMaker = (boundary: number) => WindowStore;

/** In files below `directory`, which is made. */
export async function fileStores(directory: string, elements: number): Promise<StoreMaker> {
  await mkdir(directory, { recursive: true });
  return (boundary) => fileStore(join(directory, `hidden-${boundary}.f32`), elements);
}
