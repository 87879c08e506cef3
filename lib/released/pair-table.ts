/** MHA2MLA's tables of pair ranks or scores, which say what its 2-norm checkpoints rotate. */
import { readTorchTensor } from '../checkpoint/torch-pickle.ts';

/** Importance of every pair, the larger the more: one [kvHeads, pairs per head] per layer. */
export type PairTable = readonly Float64Array[];

export interface PairTableShape {
  readonly layers: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

/**
 * Reads a table that torch.save wrote. Floats [layers, kvHeads, headDim / 2] are scores (legacy, qk_tensor_*.pth); whole
 * numbers [layers, kvHeads, headDim] are ranks with 0 for the best, the same for both members of a pair (main branch,
 * *_rank.pth), and come back negated. Errors: as readTorchTensor; a table of another shape, ranks that differ in a pair.
 */
export async function readPairTable(path: string, { layers, kvHeads, headDim }: PairTableShape): Promise<PairTable> {
  const { dtype, shape, data } = await readTorchTensor(path);
  const pairs = headDim / 2;
  const scores = dtype.startsWith('float');
  const width = scores ? pairs : headDim;
  const wanted = [layers, kvHeads, width];
  if (dtype.includes('16') || dtype === 'bool' || shape.join() !== wanted.join()) {
    throw new RangeError(`readPairTable: ${path} must hold float scores [${layers}, ${kvHeads}, ${pairs}] or whole ranks [${layers}, ${kvHeads}, ${headDim}], got ${dtype} [${shape}]`);
  }
  return Array.from({ length: layers }, (_, layer) => Float64Array.from({ length: kvHeads * pairs }, (_, i) => {
    const at = (layer * kvHeads + Math.floor(i / pairs)) * width + (i % pairs);
    const value = Number(data[at]);
    if (!Number.isFinite(value)) throw new RangeError(`readPairTable: ${path} must hold finite numbers, got ${value} for layer ${layer}`);
    if (scores) return value;
    if (Number(data[at + pairs]) !== value) throw new RangeError(`readPairTable: ${path} must give both members of a pair the same rank, got ${value} and ${data[at + pairs]} for layer ${layer}`);
    return -value;
  }));
}

/** The `count` pairs of one KV head with the highest scores, ascending. */
export function highestPairs(scores: Float64Array, kvHead: number, pairs: number, count: number): number[] {
  const score = (pair: number): number => scores[kvHead * pairs + pair] ?? NaN;
  return Array.from({ length: pairs }, (_, pair) => pair).sort((a, b) => score(b) - score(a) || a - b).slice(0, count).sort((a, b) => a - b);
}
