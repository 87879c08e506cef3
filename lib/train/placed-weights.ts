/** Weights where the optimiser works, so that an update copies nothing. */
import { optimiserKernel, type OptimiserKernel } from './optimiser-kernel.ts';
import type { Weights } from './trainer.ts';

/** Rows per weight that learns: itself, its gradient, two moments. */
const ROWS = 4;

/** Copies the weights that learn into the memory of a kernel with room for their training (see TrainerOptions.kernel); the others stay as they are. */
export function placeWeights(weights: Weights, trainable: readonly string[]): { readonly weights: Weights; readonly kernel: OptimiserKernel } {
  const learns = new Set(trainable);
  // The loss goes where the gradients do.
  const kernel = optimiserKernel([1, ...trainable.flatMap((name) => Array<number>(ROWS).fill(weights.get(name)?.data.length ?? 0))]);
  const placed = new Map([...weights].map(([name, tensor]) => {
    if (!learns.has(name)) return [name, tensor];
    const data = kernel.row(tensor.data.length);
    data.set(tensor.data);
    return [name, { ...tensor, data }];
  }));
  return { weights: placed, kernel };
}
