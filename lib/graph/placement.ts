/** Where the constants of a subgraph lie when onnxruntime opens it: inside the protobuf, in memory or in files. */
import { parse, relative, resolve, sep } from 'node:path';
import { tensorBytes } from '../tensor.ts';
import { allConstants } from './constants.ts';
import { needsSpill, openSpill, OUTSIDE_BYTES } from './spill.ts';
import { isStored } from './subgraph.ts';
import type { Constant, Subgraph } from './subgraph.ts';

/** Where the bytes of a constant lie; `location` is relative to the model's directory. */
export interface Placement { readonly location: string; readonly offset: number }

/** onnxruntime copies constants from memory into messages of this limit. */
const MEMORY_LIMIT = 2 ** 31 - 1;

export interface Placed {
  readonly place: (name: string, constant: Constant, depth: number) => Placement | null;
  readonly memory: { path: string; data: Uint8Array }[];
  /** Directory that locations are relative to; null when nothing lies in a file. */
  readonly root: string | null;
  readonly done: () => void;
}

/**
 * onnxruntime takes external constants either all from memory or all from files below one directory (it refuses
 * absolute locations). So: no stored constant -> memory. Otherwise files, relative to the file system's root, and large
 * host constants pass through a temporary file, which can go once the engine has mapped it.
 */
export function placeConstants(subgraph: Subgraph, temporaryDirectory: string): Placed {
  const constants = allConstants(subgraph);
  const stored = constants.filter(isStored);
  const memory: { path: string; data: Uint8Array }[] = [];
  if (stored.length === 0) {
    const place: Placed['place'] = (name, constant, depth) => {
      if (isStored(constant) || depth > 0 || constant.data.byteLength < OUTSIDE_BYTES) return null;
      if (constant.data.byteLength > MEMORY_LIMIT) {
        throw new Error(`openRuntime: host constants of ${subgraph.name} must stay below 2 GiB each, got ${constant.data.byteLength} bytes for ${name}; split or store it`);
      }
      const path = `memory/${memory.length}`;
      memory.push({ path, data: tensorBytes(constant) });
      return { location: path, offset: 0 };
    };
    return { place, memory, root: null, done: () => {} };
  }
  const root = parse(resolve(stored[0]!.file.path)).root;
  const spill = needsSpill(subgraph) ? openSpill(temporaryDirectory) : null;
  const place: Placed['place'] = (name, constant) => {
    if (!isStored(constant)) {
      if (spill === null || constant.data.byteLength < OUTSIDE_BYTES) return null;
      const { path, offset } = spill.write(constant);
      return { location: locationBelow(root, path), offset };
    }
    const path = resolve(constant.file.path);
    if (parse(path).root !== root) throw new Error(`openRuntime: stored constants of ${subgraph.name} must lie on one drive ${root}, got ${path} for ${name}`);
    return { location: locationBelow(root, path), offset: constant.file.offset };
  };
  return { place, memory, root, done: () => spill?.remove() };
}

/** `path` relative to `root`, the way ONNX spells it. */
export const locationBelow = (root: string, path: string): string => relative(root, path).split(sep).join('/');
