/** Tiny layers and models for tests: one attention layer of prime-sized axes, and the zoo's models by name. */
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readSafetensors } from '../../lib/checkpoint/safetensors.ts';
import type { AttentionLayer, Projection } from '../../lib/surgery/attention-layer.ts';
import { generator, normal } from './readings.ts';

export const zooPath = (name: string): string => new URL(`../data/zoo/${name}`, import.meta.url).pathname;

/** Zoo models of the Llama kind, each with one peculiarity. */
export const llamaZoo = ['llama-mha', 'llama-gqa-tied', 'llama-mqa', 'llama-bias', 'llama3-rope', 'llama-linear-rope', 'llama-yarn-rope', 'mistral', 'mistral-window'] as const;

export interface Golden {
  readonly ids: readonly (readonly number[])[]; // [b, s]
  readonly logits: Float32Array; // [b, s, vocab]
  readonly vocab: number;
}

/** Ids and logits that transformers computed. */
export async function readGolden(name: string): Promise<Golden> {
  const tensors = await readSafetensors(join(zooPath(name), 'golden.safetensors'));
  const [ids, logits] = [tensors.get('ids'), tensors.get('logits')];
  if (ids?.dtype !== 'int64' || logits?.dtype !== 'float32') throw new TypeError(`readGolden: ${name} must hold int64 ids and float32 logits`);
  const [rows = 0, tokens = 0] = ids.shape;
  const flat = Array.from(ids.data, Number);
  return { ids: Array.from({ length: rows }, (_, i) => flat.slice(i * tokens, (i + 1) * tokens)), logits: logits.data, vocab: logits.shape[2] ?? 0 };
}

/** The real model where it has been put, else null. */
export function realModelPath(): string | null {
  const path = new URL('../../.models/SmolLM2-135M-Instruct.Q4_1.gguf', import.meta.url).pathname;
  return existsSync(path) ? path : null;
}

export interface TinyLayerOptions {
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly headDim?: number;
  readonly hidden?: number;
  readonly bias?: boolean;
  readonly window?: number | null;
  readonly seed?: number;
}

/** A random attention layer; by default every axis has its own prime (headDim is twice one). */
export function tinyLayer({ heads = 6, kvHeads = 3, headDim = 14, hidden = 23, bias = false, window = null, seed = 1 }: TinyLayerOptions = {}): AttentionLayer {
  const random = generator(seed);
  const projection = (rows: number, cols: number): Projection =>
    ({ weight: normal([rows, cols], random, cols ** -0.5), bias: bias ? normal([rows], random, 0.3) : null });
  return {
    layer: 5, hidden, heads, kvHeads, headDim, window, maxPositions: 64, scale: headDim ** -0.5,
    frequencies: Float64Array.from({ length: headDim / 2 }, (_, i) => 1e4 ** ((-2 * i) / headDim)),
    query: projection(heads * headDim, hidden), key: projection(kvHeads * headDim, hidden),
    value: projection(kvHeads * headDim, hidden), output: projection(hidden, heads * headDim),
  };
}

/** Runs `work` with a directory that is gone afterwards. */
export async function withDirectory<T>(work: (directory: string) => Promise<T>): Promise<T> {
  const directory = await mkdtemp(join(tmpdir(), 'surgery-'));
  try {
    return await work(directory);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
