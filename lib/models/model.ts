import { existsSync } from 'node:fs';
import { dirname } from 'node:path';
import { findWeights, openCheckpoint, type Checkpoint } from '../checkpoint/checkpoint.ts';
import { readConfig, readConfigJson, readRawConfig, type ModelConfig } from '../checkpoint/config.ts';
import type { Constant, HostTensor } from '../graph/subgraph.ts';
import { openReleased } from '../released/index.ts';
import type { OpenReleasedOptions } from '../released/released.ts';
import { ropeFrequencies } from '../rope-frequencies.ts';
import type { ModelFamily } from './family.ts';
import { familyOf } from './index.ts';
import { parseMlaConfig, type MlaConfig } from './mla-config.ts';

/** A model on disk: what it is and where its tensors lie. Nothing is read before it is asked for. */
export interface Model {
  readonly path: string;
  readonly config: ModelConfig;
  readonly family: ModelFamily;
  readonly checkpoint: Checkpoint;
  /** Null for a source model. */
  readonly mla: MlaConfig | null;
  /** Radians per position of each RoPE pair. */
  readonly frequencies: Float64Array;
  /** Factor on the scores before softmax; yarn's attention factor (on both rotated sides) is part of it. */
  readonly scale: number;
  /** Whose format a converted checkpoint was released in; null for our own, and for source models. */
  readonly released: string | null;
}

/**
 * Opens a directory (Hugging Face layout, a converted model, or a checkpoint of MHA2MLA or TransMLA) or a .gguf file.
 * `options.pairTable` names the table without which some MHA2MLA checkpoints do not say what rotates.
 */
export async function openModel(path: string, options: OpenReleasedOptions = {}): Promise<Model> {
  if (!existsSync(path)) throw new Error(`openModel: MODEL must be a directory, a .gguf file or a Hub id, got ${path}, which does not exist`);
  const opened = await openWeights(path, options);
  const { config, checkpoint } = opened;
  const family = familyOf(config);
  const { frequencies, attentionFactor } = ropeFrequencies(config.rope, config.headDim);
  const mla = parseMlaConfig(config.raw.mla, config.layers);
  const scale = mla?.scale ?? attentionFactor ** 2 / Math.sqrt(config.headDim);
  return { path, config, family, checkpoint, mla, frequencies, scale, released: opened.released };
}

/** Weights and configuration in our layout, whatever layout the files have. */
async function openWeights(path: string, options: OpenReleasedOptions): Promise<Pick<Model, 'config' | 'checkpoint' | 'released'>> {
  const { file, format } = await findWeights(path);
  if (format === 'gguf') {
    const config = await readConfig(path);
    return { config, checkpoint: await openCheckpoint(path), released: null };
  }
  const raw = await readRawConfig(dirname(file));
  const checkpoint = await openCheckpoint(path);
  const released = await openReleased(raw, checkpoint, dirname(file), options);
  return { config: await readConfigJson(dirname(file), released?.raw ?? raw), checkpoint: released?.checkpoint ?? checkpoint, released: released?.format ?? null };
}

/** A weight as the graph can take it: mapped from its file where the bytes are usable as they lie, else read. */
export async function constantOf(checkpoint: Checkpoint, name: string, shape: readonly number[]): Promise<Constant> {
  checkShape(checkpoint, name, shape);
  return checkpoint.stored(name) ?? checkpoint.read(name);
}

/** A weight in memory, as float32. */
export async function weightOf(checkpoint: Checkpoint, name: string, shape: readonly number[]): Promise<HostTensor<'float32'>> {
  checkShape(checkpoint, name, shape);
  return checkpoint.read(name);
}

function checkShape(checkpoint: Checkpoint, name: string, shape: readonly number[]): void {
  const info = checkpoint.tensors.get(name);
  if (info === undefined) throw new RangeError(`openModel: tensor ${name} must be in ${checkpoint.path}, but it is missing`);
  if (info.shape.length !== shape.length || info.shape.some((n, i) => n !== shape[i])) {
    throw new RangeError(`openModel: tensor ${name} must have shape [${shape}] by the model's config, got [${info.shape}]`);
  }
}
