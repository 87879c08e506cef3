import { openCheckpoint } from './checkpoint.ts';
import type { TensorSource } from './write-safetensors.ts';

/** The tensors of a file as sources for another: float32, each read when its turn to be written comes. */
export async function checkpointSources(file: string): Promise<TensorSource[]> {
  const checkpoint = await openCheckpoint(file);
  return [...checkpoint.tensors.values()].map(({ name, shape }) => ({ name, dtype: 'float32', shape, read: () => checkpoint.read(name) }));
}
