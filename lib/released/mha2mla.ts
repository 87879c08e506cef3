/** What both formats of MHA2MLA have in common: from a choice of pairs to a checkpoint in our layout. */
import { existsSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { parseConfig, type ModelConfig } from '../checkpoint/config.ts';
import type { MlaConfig } from '../models/mla-config.ts';
import { ropeFrequencies } from '../rope-frequencies.ts';
import { relayLayer, type Mha2MlaNames } from './mha2mla-layer.ts';
import { highestPairs, readPairTable } from './pair-table.ts';
import { relaidCheckpoint } from './relaid-checkpoint.ts';
import { without, type OpenReleasedOptions, type Released } from './released.ts';

/** Which pairs rotate. */
export type PairChoice =
  | { /** The same in every layer and head. */ readonly pairs: readonly number[] }
  | { /** The best by a table, read from `table` unless the caller names another. */ readonly count: number; readonly table: string | null };

export interface Mha2MlaFormat {
  readonly format: string;
  /** Keys of config.json that are this format's own. */
  readonly blocks: readonly string[];
  readonly strategy: string;
  readonly choice: PairChoice;
  readonly permutedQuery: boolean;
  readonly names: (layer: number) => Mha2MlaNames;
  /** What the checkpoint was made of, as far as it says. */
  readonly source: string | null;
  readonly factor: string;
}

/** The checkpoint in our layout. Errors: a pair table that is missing or of wrong shape, missing tensors. */
export async function relayMha2Mla(
  raw: Readonly<Record<string, unknown>>, checkpoint: Checkpoint, directory: string, options: OpenReleasedOptions, own: Mha2MlaFormat,
): Promise<Released> {
  const plain = without(raw, ...own.blocks, 'mla');
  const config = parseConfig(plain, join(directory, 'config.json'));
  if (config.modelType === 'qwen3') throw new Error(`openReleased: ${directory}: ${own.format} with norms per head (qwen3) is not read`);
  const { frequencies, attentionFactor } = ropeFrequencies(config.rope, config.headDim);
  const kept = await keptPairs(config, directory, options, own);
  const layers = Array.from({ length: config.layers }, (_, layer) =>
    relayLayer(checkpoint, layer, config, frequencies, { names: own.names(layer), kept: kept(layer), permutedQuery: own.permutedQuery }));
  const mla: MlaConfig = {
    version: 1, scale: attentionFactor ** 2 / Math.sqrt(config.headDim),
    layers: layers.map((layer) => layer.config),
    plan: { strategy: own.strategy, pairs: kept(0)[0]?.length ?? 0 },
    factor: { strategy: own.factor, rank: layers[0]?.config.rank ?? 1, singularValues: 'up' },
    source: { name: own.source ?? basename(directory), architecture: config.architecture, fingerprint: 'unknown' },
  };
  return {
    format: own.format, raw: { ...plain, mla },
    checkpoint: relaidCheckpoint(checkpoint, layers.flatMap(({ relaid }) => relaid), (name) => !name.includes('.self_attn.')),
  };
}

async function keptPairs({ layers, kvHeads, headDim }: ModelConfig, directory: string, options: OpenReleasedOptions, { choice, format }: Mha2MlaFormat): Promise<(layer: number) => number[][]> {
  const all = headDim / 2;
  const perHead = (pairsOf: (kvHead: number) => number[]): number[][] => Array.from({ length: kvHeads }, (_, kvHead) => pairsOf(kvHead));
  const check = (count: number): void => {
    if (!Number.isInteger(count) || count < 1 || count > all) throw new RangeError(`openReleased: ${directory}: ${format} must rotate 1..${all} pairs per head, got ${count}`);
  };
  if ('pairs' in choice) {
    check(choice.pairs.length);
    const bad = choice.pairs.find((pair) => !Number.isInteger(pair) || pair < 0 || pair >= all);
    if (bad !== undefined) throw new RangeError(`openReleased: ${directory}: pairs of ${format} must be 0..${all - 1}, got ${bad}`);
    return () => perHead(() => [...choice.pairs]);
  }
  check(choice.count);
  const path = options.pairTable ?? (choice.table === null ? null : join(directory, basename(choice.table)));
  if (path === null || !existsSync(path)) {
    throw new Error(`openReleased: ${directory}: which pairs rotate stands in a table outside this checkpoint (${choice.table ?? 'not named'}); put that file of the MHA2MLA repository beside config.json or give its path as pair table${path === null ? '' : `, ${path} does not exist`}`);
  }
  const table = await readPairTable(path, { layers, kvHeads, headDim });
  return (layer) => perHead((kvHead) => highestPairs(table[layer] ?? new Float64Array(0), kvHead, all, choice.count));
}
