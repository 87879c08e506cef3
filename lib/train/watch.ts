/** Whether training still goes well: the moving mean of the loss, and where a number that is none came from. */
import type { HostTensor } from '../../kernels/emit.ts';
import { prune } from '../graph/compose.ts';
import { openRuntime, type RuntimeOptions } from '../graph/runtime.ts';
import type { Objective } from './objective.ts';
import type { Feeds, Weights } from './trainer.ts';

export interface LossWatch {
  readonly smoothed: number | null;
  readonly lowest: number | null;
}

/** Weight of one loss in the moving mean. */
const SHARE = 0.1;

export function watchLoss({ smoothed, lowest }: LossWatch, loss: number): LossWatch {
  const mean = smoothed === null ? loss : (1 - SHARE) * smoothed + SHARE * loss;
  return { smoothed: mean, lowest: lowest === null ? mean : Math.min(lowest, mean) };
}

/** A loss explodes when it is above four times the lowest moving mean, and 4 more: no good run jumps that far. */
export const explodes = ({ lowest }: LossWatch, loss: number): boolean => lowest !== null && loss > 4 * lowest + 4;

const allFinite = (tensor: HostTensor | undefined): boolean => tensor?.dtype === 'float32' && tensor.data.every(Number.isFinite);

/** `a hidden state in front of layer 3`: the first that is not finite when the batch is run again; null where all are. */
export async function firstBadState({ subgraph, checkpoints }: Objective, weights: Weights, feeds: Feeds, runtime: RuntimeOptions): Promise<string | null> {
  const bad = [...weights].find(([, { data }]) => !data.every(Number.isFinite));
  if (bad !== undefined) return `weight ${bad[0]}`;
  if (checkpoints.length === 0) return null;
  const forward = await openRuntime(prune(subgraph, checkpoints, { keepInputs: false }), { memoryPattern: false, ...runtime });
  try {
    const all: Feeds = { ...Object.fromEntries(weights), ...feeds };
    const outputs = await forward.run(Object.fromEntries(forward.inputs.flatMap((name) => (all[name] === undefined ? [] : [[name, all[name]]]))));
    const layer = checkpoints.findIndex((name) => !allFinite(outputs[name]));
    return layer < 0 ? null : layer === 0 ? 'the embedded tokens' : `layer ${layer - 1}`;
  } finally {
    await forward.release();
  }
}
