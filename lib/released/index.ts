/** Checkpoints that others released, opened as if they were ours. */
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { deepseek } from './deepseek.ts';
import { mha2mlaLegacy } from './mha2mla-legacy.ts';
import { mha2mlaMain } from './mha2mla-main.ts';
import type { OpenReleasedOptions, Released, ReleasedFormat } from './released.ts';

const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null;

/** MHA2MLA's baselines are ordinary models and say so; partial RoPE on whole keys is not read, and must not pass for full RoPE. */
function refuseUnfactorised({ RoPE: legacy, mha2mla: main }: Readonly<Record<string, unknown>>, directory: string): void {
  const fail = (block: string): never => {
    throw new TypeError(`openReleased: ${directory}: block ${block} of config.json says that the model was converted, but its tensors are those of ordinary attention`);
  };
  if (isRecord(legacy) && (legacy.partial_rope_version ?? 0) !== 0) fail('RoPE');
  if (isRecord(main) && main.is_baseline !== true) fail('mha2mla');
}

export const releasedFormats: readonly ReleasedFormat[] = [mha2mlaMain, mha2mlaLegacy, deepseek];

/**
 * The model in our layout, or null when it is of no such format (an ordinary or an already converted model). Nothing is read
 * but tables; tensors are put in order when they are asked for. Errors: each format's own, by name.
 */
export async function openReleased(
  raw: Readonly<Record<string, unknown>>, checkpoint: Checkpoint, directory: string, options: OpenReleasedOptions = {},
): Promise<Released | null> {
  const format = releasedFormats.find(({ recognises }) => recognises(raw, checkpoint));
  if (format !== undefined) return format.open(raw, checkpoint, directory, options);
  refuseUnfactorised(raw, directory);
  if (options.pairTable !== undefined) throw new TypeError(`openReleased: a pair table belongs to an MHA2MLA checkpoint, but ${directory} is none`);
  return null;
}
