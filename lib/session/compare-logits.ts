/** How far two sets of logits [positions, vocab] are apart. */
import type { HostTensor } from '../graph/subgraph.ts';

export interface LogitComparison {
  /** Largest |a - b| over all logits. */
  readonly maxAbsDifference: number;
  /** Mean over positions of KL(softmax b || softmax a), nats. */
  readonly meanKl: number;
  /** Share of positions with the same likeliest token (the lowest id among equals). */
  readonly top1Agreement: number;
  readonly positions: number;
}

type Logits = HostTensor<'float32'>;

/** Largest |a - b|. Errors: different shapes, a number that is not finite. */
export function largestDifference(a: Logits, b: Logits): number {
  if (a.shape.join() !== b.shape.join()) throw new RangeError(`largestDifference: logits must have equal shapes, got [${a.shape}] and [${b.shape}]`);
  let largest = 0;
  for (let i = 0; i < a.data.length; i++) {
    const difference = Math.abs((a.data[i] ?? NaN) - (b.data[i] ?? NaN));
    if (!Number.isFinite(difference)) throw new RangeError(`largestDifference: logits must be finite, got ${a.data[i]} and ${b.data[i]} at element ${i}`);
    if (difference > largest) largest = difference;
  }
  return largest;
}

/** Compares logits with a reference, both [positions, vocab]; sums in float64. Errors: as largestDifference. */
export function compareLogits(logits: Logits, reference: Logits): LogitComparison {
  const maxAbsDifference = largestDifference(logits, reference);
  const [positions = 0, vocab = 0] = logits.shape;
  let kl = 0;
  let agree = 0;
  for (let i = 0; i < positions; i++) {
    const ours = logits.data.subarray(i * vocab, (i + 1) * vocab);
    const theirs = reference.data.subarray(i * vocab, (i + 1) * vocab);
    kl += divergence(theirs, ours);
    if (argmax(ours) === argmax(theirs)) agree++;
  }
  return { maxAbsDifference, meanKl: kl / positions, top1Agreement: agree / positions, positions };
}

/** One comparison over the positions of several. */
export function mergeComparisons(parts: readonly LogitComparison[]): Omit<LogitComparison, 'positions'> {
  const positions = parts.reduce((sum, part) => sum + part.positions, 0);
  const mean = (of: (part: LogitComparison) => number): number => parts.reduce((sum, part) => sum + of(part) * part.positions, 0) / positions;
  return {
    maxAbsDifference: Math.max(...parts.map((part) => part.maxAbsDifference)),
    meanKl: mean((part) => part.meanKl),
    top1Agreement: mean((part) => part.top1Agreement),
  };
}

function argmax(values: Float32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if ((values[i] ?? 0) > (values[best] ?? 0)) best = i;
  return best;
}

function logSumExp(values: Float32Array): number {
  const top = values[argmax(values)] ?? 0;
  let sum = 0;
  for (const value of values) sum += Math.exp(value - top);
  return top + Math.log(sum);
}

/** KL(softmax p || softmax q) in nats; rounding below zero is shown as zero. */
function divergence(p: Float32Array, q: Float32Array): number {
  const shift = logSumExp(q) - logSumExp(p);
  const top = logSumExp(p);
  let sum = 0;
  for (let i = 0; i < p.length; i++) {
    const logit = p[i] ?? 0;
    sum += Math.exp(logit - top) * (logit - (q[i] ?? 0) + shift);
  }
  return Math.max(0, sum);
}
