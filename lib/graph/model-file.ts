/** Subgraphs as .onnx files with their weights beside them. */
import { open, readFile, stat } from 'node:fs/promises';
import { basename, dirname, relative, resolve } from 'node:path';
import { writeFileAtomic } from '../atomic-write.ts';
import type { WriteOptions } from '../atomic-write.ts';
import { tensorBytes } from '../tensor.ts';
import { allConstants, constantBytes } from './constants.ts';
import { fromModel, toModel } from './onnx.ts';
import type { ModelOptions } from './onnx.ts';
import type { Placement } from './placement.ts';
import { locationBelow } from './placement.ts';
import { isStored } from './subgraph.ts';
import type { Constant, StoredTensor, Subgraph } from './subgraph.ts';

export interface WriteModelOptions extends Omit<ModelOptions, 'place'>, WriteOptions {
  /** Host constants from this many bytes on go to the weights file. Default 1024. */
  readonly outsideBytes?: number;
  /** Copies stored constants into the weights file too, so that the two files can travel alone. Default false. */
  readonly copyStored?: boolean;
}

/** Tensors start at multiples of this in the weights file, so that they can be mapped and used in place. */
const ALIGNMENT = 64;
const COPY_BYTES = 1 << 24;

/**
 * Writes `path` (ends in .onnx) and, where constants go outside, `<name>.data` beside it, streaming. Stored constants
 * are referred to where they lie, which must be below the model's directory unless `copyStored` is set; those in a
 * weights file that is being replaced are always copied. Each file appears whole or not at all, the weights first.
 */
export async function writeModel(subgraph: Subgraph, path: string, options: WriteModelOptions = {}): Promise<void> {
  const { outsideBytes = 1024, copyStored = false, signal, writeBytes, ...model } = options;
  if (!path.endsWith('.onnx')) throw new Error(`writeModel: the path must end in .onnx, got ${path}`);
  const target = resolve(path), directory = dirname(target);
  const dataName = `${basename(target, '.onnx')}.data`;
  const dataPath = resolve(directory, dataName);
  const placements = new Map<Constant, Placement>();
  const queue: { constant: Constant; offset: number }[] = [];
  let end = 0;
  const place = (name: string, constant: Constant): Placement | null => {
    const known = placements.get(constant);
    if (known !== undefined) return known;
    if (isStored(constant) && !copyStored && resolve(constant.file.path) !== dataPath) {
      const below = relative(directory, resolve(constant.file.path));
      if (below.startsWith('..') || resolve(below) === below) {
        throw new Error(`writeModel: stored constants must lie below ${directory} unless copyStored is set, got ${constant.file.path} for ${name}`);
      }
      return { location: locationBelow(directory, resolve(constant.file.path)), offset: constant.file.offset };
    }
    if (!isStored(constant) && constant.data.byteLength < outsideBytes) return null;
    const placement = { location: dataName, offset: end };
    placements.set(constant, placement);
    queue.push({ constant, offset: end });
    end = Math.ceil((end + constantBytes(constant)) / ALIGNMENT) * ALIGNMENT;
    return placement;
  };
  const bytes = toModel(subgraph, { ...model, place });
  if (queue.length > 0) {
    await writeFileAtomic(dataPath, async (sink) => {
      for (const { constant, offset } of queue) {
        await sink.write(new Uint8Array(offset - sink.position));
        if (isStored(constant)) await copyBytes(constant, (chunk) => sink.write(chunk));
        else await sink.write(tensorBytes(constant));
      }
    }, { signal, writeBytes });
  }
  await writeFileAtomic(target, bytes, { signal, writeBytes });
}

/** Reads a .onnx file. Weights beside it become stored constants and are not read; a file too short for them is refused. */
export async function readModel(path: string): Promise<Subgraph> {
  const subgraph = fromModel(await readFile(path), { directory: dirname(resolve(path)) });
  const sizes = new Map<string, number>();
  for (const { file } of allConstants(subgraph).filter(isStored)) {
    const size = sizes.get(file.path) ?? (await stat(file.path)).size;
    sizes.set(file.path, size);
    if (file.offset + file.bytes > size) {
      throw new Error(`readModel: ${file.path} must hold ${file.offset + file.bytes} bytes for ${path}, got ${size}`);
    }
  }
  return subgraph;
}

/** Hands over the bytes of a stored constant in chunks; throws when its file ends early. */
async function copyBytes({ file }: StoredTensor, take: (chunk: Uint8Array) => Promise<void>): Promise<void> {
  const source = await open(file.path, 'r');
  try {
    const chunk = new Uint8Array(Math.min(COPY_BYTES, file.bytes));
    for (let done = 0; done < file.bytes;) {
      const { bytesRead } = await source.read(chunk, 0, Math.min(chunk.length, file.bytes - done), file.offset + done);
      if (bytesRead === 0) throw new Error(`writeModel: ${file.path} must hold ${file.offset + file.bytes} bytes, got ${file.offset + done}`);
      await take(chunk.subarray(0, bytesRead));
      done += bytesRead;
    }
  } finally {
    await source.close();
  }
}
