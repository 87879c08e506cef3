/** Large host constants through a temporary file: what the engine maps, JavaScript need not keep. */
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { tensorBytes } from '../tensor.ts';
import { allConstants, constantBytes } from './constants.ts';
import { isStored, type Constant, type HostTensor, type StoredTensor, type Subgraph } from './subgraph.ts';

/** Host constants from this size on stay out of the protobuf, which costs three transient copies and ends at 2 GiB. */
export const OUTSIDE_BYTES = 1 << 16;
/** Beside stored constants, that many bytes of host constants are still embedded rather than passed through a file. */
const EMBED_BYTES = 1 << 26;

const isLarge = (constant: Constant): constant is HostTensor => !isStored(constant) && constantBytes(constant) >= OUTSIDE_BYTES;

/** Whether large host constants go through a file: the engine takes constants from memory or from files, not from both. */
export function needsSpill(subgraph: Subgraph): boolean {
  const constants = allConstants(subgraph);
  return constants.some(isStored) && constants.filter(isLarge).reduce((sum, constant) => sum + constantBytes(constant), 0) > EMBED_BYTES;
}

export interface Spill {
  write(tensor: HostTensor): StoredTensor['file'];
  /** The file can go once the engine has mapped it. */
  remove(): void;
}

export function openSpill(temporaryDirectory: string): Spill {
  const directory = mkdtempSync(join(resolve(temporaryDirectory), 'constants-'));
  const path = join(directory, 'data');
  const file = openSync(path, 'w');
  let end = 0;
  return {
    write(tensor) {
      const bytes = tensorBytes(tensor), offset = end;
      for (let at = 0; at < bytes.length;) at += writeSync(file, bytes, at, Math.min(bytes.length - at, 1 << 30), offset + at);
      end = Math.ceil((offset + bytes.length) / 64) * 64;
      return { path, offset, bytes: bytes.length };
    },
    remove() {
      closeSync(file);
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

/**
 * The subgraph with its large host constants stored in a temporary file, where opening would put them there anyway
 * (`needsSpill`): whoever keeps nothing else of it has them in memory once less while the engine opens it.
 * Errors: a directory that is not there or full; nothing is left in it.
 */
export function spillConstants(subgraph: Subgraph, temporaryDirectory: string): { readonly subgraph: Subgraph; readonly done: () => void } {
  if (!needsSpill(subgraph)) return { subgraph, done: () => {} };
  let spill: Spill | null = null;
  try {
    const { write, remove } = spill = openSpill(temporaryDirectory);
    const stored = (constant: Constant): Constant => (isLarge(constant) ? { dtype: constant.dtype, shape: constant.shape, file: write(constant) } : constant);
    return { subgraph: { ...subgraph, constants: new Map([...subgraph.constants].map(([name, constant]) => [name, stored(constant)])) }, done: remove };
  } catch (error) {
    spill?.remove();
    throw new Error(`spillConstants: constants of ${subgraph.name} must fit into ${temporaryDirectory}, got ${error instanceof Error ? error.message : error}`, { cause: error });
  }
}
