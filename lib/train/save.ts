/** Saves of a training run: directories that appear whole, each enough to go on from with not a bit's difference. */
import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { errorCode, writeDirectoryAtomic, writeFileAtomic } from '../atomic-write.ts';
import { readSafetensors } from '../checkpoint/safetensors.ts';
import { tensorSources, writeSafetensors } from '../checkpoint/write-safetensors.ts';
import type { HostTensor } from '../../kernels/emit.ts';
import type { AdamWState } from './adamw.ts';
import type { Weights } from './trainer.ts';

/** Everything that decides the weights, by name; a run is only continued under the same. */
export const recipeSchema = z.record(z.string(), z.union([z.string(), z.number(), z.null()]));

const schema = z.object({
  version: z.literal(1),
  step: z.int().nonnegative(),
  recipe: recipeSchema,
  /** Length of metrics.jsonl when this was saved. */
  metricsBytes: z.int().nonnegative(),
  /** Moving mean of the loss, and its lowest so far. */
  smoothed: z.number().nullable(),
  lowest: z.number().nullable(),
});

export type SaveState = z.infer<typeof schema>;
export type Recipe = SaveState['recipe'];

const savePattern = /^step-(\d+)$/;
const saveName = (step: number): string => `step-${String(step).padStart(8, '0')}`;

/** Steps that were saved in `directory`, ascending. */
async function savedSteps(directory: string): Promise<number[]> {
  const names = await readdir(directory).catch((error: unknown) => {
    if (errorCode(error) === 'ENOENT') return [];
    throw error;
  });
  return names.flatMap((name) => savePattern.exec(name)?.[1] ?? []).map(Number).sort((a, b) => a - b);
}

export interface Saved {
  readonly path: string;
  readonly state: SaveState;
}

/** The newest save, or null. Errors: one that is not readable. */
export async function findSave(directory: string): Promise<Saved | null> {
  const step = (await savedSteps(directory)).at(-1);
  if (step === undefined) return null;
  const path = join(directory, saveName(step));
  const parsed = schema.safeParse(JSON.parse(await readFile(join(path, 'state.json'), 'utf8')));
  if (!parsed.success) throw new TypeError(`findSave: ${path}/state.json must be a save of this version: ${z.prettifyError(parsed.error)}`);
  return { path, state: parsed.data };
}

/** Weights that learn and the optimiser's memory, of a save. Errors: a tensor that is missing or has another shape. */
export async function loadSave({ path, state }: Saved, weights: Weights, trainable: readonly string[]): Promise<{ weights: Map<string, HostTensor<'float32'>>; optimiser: AdamWState }> {
  const tensors = await readSafetensors(join(path, 'state.safetensors'));
  const read = (kind: string, name: string): HostTensor<'float32'> => {
    const tensor = tensors.get(`${kind}/${name}`);
    const shape = weights.get(name)?.shape;
    if (tensor?.dtype !== 'float32' || tensor.shape.join() !== shape?.join()) {
      throw new Error(`loadSave: ${kind} of ${name} in ${path} must be float32 [${shape}], got ${tensor?.dtype} [${tensor?.shape}]`);
    }
    return tensor;
  };
  const optimiser = { step: state.step, first: new Map(trainable.map((name) => [name, read('first', name).data])), second: new Map(trainable.map((name) => [name, read('second', name).data])) };
  return { weights: new Map([...weights].map(([name, tensor]) => [name, trainable.includes(name) ? read('weight', name) : tensor])), optimiser };
}

/** Saves, then removes older saves: at every moment the newest whole one is there. Returns its path. */
export async function writeSave(directory: string, state: SaveState, weights: Weights, trainable: readonly string[], optimiser: AdamWState): Promise<string> {
  await mkdir(directory, { recursive: true });
  // What a killed run left half-written.
  for (const name of await readdir(directory)) if (/^\.step-.*\.partial-/.test(name)) await rm(join(directory, name), { recursive: true, force: true });
  const older = await savedSteps(directory);
  const path = join(directory, saveName(state.step));
  const row = (kind: string, name: string, data: Float32Array | undefined): [string, HostTensor][] => {
    const shape = weights.get(name)?.shape;
    return shape === undefined || data === undefined ? [] : [[`${kind}/${name}`, { dtype: 'float32', shape, data }]];
  };
  await writeDirectoryAtomic(path, async (temporary) => {
    await writeSafetensors(join(temporary, 'state.safetensors'), tensorSources(trainable.flatMap((name) => [
      ...row('weight', name, weights.get(name)?.data), ...row('first', name, optimiser.first.get(name)), ...row('second', name, optimiser.second.get(name)),
    ])));
    await writeFileAtomic(join(temporary, 'state.json'), `${JSON.stringify(state, null, 1)}\n`);
  });
  for (const step of older) if (step !== state.step) await rm(join(directory, saveName(step)), { recursive: true, force: true });
  return path;
}

/** Refuses to go on under another recipe: names the first difference. `caller` begins the message. */
export function checkRecipe(caller: string, saved: Recipe, now: Recipe, path: string): void {
  const differs = [...new Set([...Object.keys(saved), ...Object.keys(now)])].find((name) => saved[name] !== now[name]);
  if (differs !== undefined) throw new Error(`${caller}: ${differs} must be ${saved[differs] ?? 'absent'} to go on from ${path}, got ${now[differs] ?? 'none'}`);
}
