/**
 * TransMLA's rotation over KV heads. RoPE turns all heads alike, so an orthogonal mixture of the heads' keys at one frequency
 * may be rotated before or after it: principal components over heads gather their energy in few. Folding treats
 * `fold` neighbouring frequencies as one, over heads and frequencies together, which is no longer exact.
 */
import { hermitianEighSmall } from '../linalg/hermitian-eigh.ts';
import { matrix, zeros, type Matrix } from '../linalg/matrix.ts';
import type { LayerStatistics } from '../statistics/layer-statistics.ts';
import { pairsPerHead, type AttentionLayer } from '../surgery/attention-layer.ts';
import type { PairTerm, PlanChoice, RopeComponent } from '../surgery/rope-plan.ts';
import { meanRotations } from './mean-rotation.ts';
import { anyComponents, required, type PlanStrategy } from './strategy.ts';

/** Numbers in one principal component analysis (KV heads x fold) while a fold is searched; a fold of one's own may be larger. */
const LARGEST_SEARCH = 256;

/** How many frequencies share one kept one, and of how many heads' worth. */
interface Shape {
  /** TransMLA's collapse: every so many-th frequency stays. */
  readonly collapse: number;
  /** Kept components per kept frequency. */
  readonly ropeHeads: number;
}

/** `fold` frequencies from `first` on, as one analysis over (g, f): index g * fold + f. */
interface FoldedGroup {
  readonly first: number;
  /** Energies of the components, descending. */
  readonly values: Float64Array;
  /** Column m is component m: [kvHeads fold, kvHeads fold]. */
  readonly vectors: Matrix;
}

/**
 * n components over all KV heads. n divides the pairs of a head (TransMLA's qk_mqa_dim / 2), or is a multiple of them.
 * The fold is given, or chosen per layer as the one with the least expected key error
 *   sum over components m of lambda_m sum over (g, f) of u_m[g, f]^2 (1 - Re E exp(i (theta_f - theta_m) distance)),
 * theta_m the frequency that m turns with (0 when it no longer turns), distances as attention looks at them (TransMLA
 * doubles the fold while the perplexity of the whole model falls). Kept whole with fold 1 it is exact.
 * Source: Meng et al. 2025 (TransMLA), sections 4.1 and 4.2; transmla/partial_rope.py.
 */
export const roRope: PlanStrategy = {
  paper: 'Meng et al. 2025 (TransMLA), RoRoPE and FreqFold',
  needsStatistics: true,
  counts: 'components',
  countRange: anyComponents,
  takesFold: true,
  plan(attention, { count, fold, statistics: given }) {
    const statistics = required('ro-rope', given);
    const shape = shapeOf(attention, count);
    const folds = fold === null ? foldsToSearch(attention, shape) : [checkedFold(attention, shape, fold)];
    const distances = averageDistances(statistics);
    const tried = folds.map((size) => {
      const groups = foldedGroups(attention, statistics, size);
      return { size, groups, error: folds.length === 1 ? 0 : expectedError(attention, groups, shape, size, distances) };
    });
    const { size, groups } = tried.reduce((best, one) => (one.error < best.error ? one : best));
    return choiceOf(attention, groups, shape, size);
  },
};

function shapeOf(attention: AttentionLayer, count: number): Shape {
  const pairs = pairsPerHead(attention);
  if (pairs % count === 0) return { collapse: pairs / count, ropeHeads: 1 };
  if (count % pairs === 0) return { collapse: 1, ropeHeads: count / pairs };
  throw new RangeError(`ro-rope: components must divide the ${pairs} pairs of a head or be a multiple of them for layer ${attention.layer}, got ${count}`);
}

/** Folds as TransMLA tries them: the collapse and its doubles. */
function foldsToSearch(attention: AttentionLayer, { collapse }: Shape): number[] {
  const pairs = pairsPerHead(attention);
  const folds: number[] = [];
  for (let fold = collapse; fold <= pairs && pairs % fold === 0; fold *= 2) {
    if (folds.length === 0 || fold * attention.kvHeads <= LARGEST_SEARCH) folds.push(fold);
  }
  return folds;
}

function checkedFold(attention: AttentionLayer, { collapse }: Shape, fold: number): number {
  const pairs = pairsPerHead(attention);
  if (!Number.isInteger(fold) || fold < 1 || fold % collapse !== 0 || pairs % fold !== 0) {
    throw new RangeError(`ro-rope: fold must be a multiple of ${collapse} that divides the ${pairs} pairs of a head for layer ${attention.layer}, got ${fold}`);
  }
  return fold;
}

/** Eigenvectors of E[re re^T + im im^T] of each group's keys before RoPE. */
function foldedGroups(attention: AttentionLayer, { keyMoment }: LayerStatistics, fold: number): FoldedGroup[] {
  const { kvHeads, headDim } = attention;
  const pairs = pairsPerHead(attention);
  const n = kvHeads * fold;
  return Array.from({ length: pairs / fold }, (_, i) => {
    const first = i * fold;
    const element = (index: number): number => Math.floor(index / fold) * headDim + first + (index % fold);
    const moment = (a: number, b: number): number => keyMoment.data[a * keyMoment.cols + b] ?? NaN;
    const covariance = matrix(n, n, Float64Array.from({ length: n * n }, (_, at) => {
      const [a, b] = [element(Math.floor(at / n)), element(at % n)];
      return moment(a, b) + moment(a + pairs, b + pairs);
    }));
    const { values, vectors } = hermitianEighSmall({ real: covariance, imaginary: zeros(n, n) });
    const order = Array.from({ length: n }, (_, m) => n - 1 - m); // ascending to descending
    return {
      first,
      values: Float64Array.from(order, (m) => Math.max(values[m] ?? NaN, 0)),
      vectors: matrix(n, n, Float64Array.from({ length: n * n }, (_, at) => vectors.real.data[at - (at % n) + (order[at % n] ?? 0)] ?? NaN)),
    };
  });
}

/** Pair whose frequency component m of a group turns with; null where it no longer turns. */
function pairOf(m: number, { first }: FoldedGroup, { collapse, ropeHeads }: Shape, fold: number): number | null {
  const perHead = fold / collapse;
  return m < ropeHeads * perHead ? first + (m % perHead) * collapse : null;
}

/** Share of attention at each distance, all heads alike. */
function averageDistances({ distances }: LayerStatistics): Matrix {
  const { rows, cols, data } = distances;
  const mean = new Float64Array(cols);
  data.forEach((share, at) => { mean[at % cols] = (mean[at % cols] ?? 0) + share / rows; });
  return matrix(1, cols, mean);
}

function expectedError({ frequencies }: AttentionLayer, groups: readonly FoldedGroup[], shape: Shape, fold: number, distances: Matrix): number {
  const turned = new Map<number, number>();
  const meanCosine = (frequency: number): number => {
    const known = turned.get(frequency);
    if (known !== undefined) return known;
    const cosine = meanRotations(distances, frequency).re[0] ?? NaN;
    turned.set(frequency, cosine);
    return cosine;
  };
  let error = 0;
  for (const group of groups) {
    const { first, values, vectors } = group;
    for (let m = 0; m < values.length; m++) {
      const pair = pairOf(m, group, shape, fold);
      const own = pair === null ? 0 : (frequencies[pair] ?? NaN);
      for (let row = 0; row < vectors.rows; row++) {
        const frequency = frequencies[first + (row % fold)] ?? NaN;
        error += (values[m] ?? NaN) * (vectors.data[row * vectors.cols + m] ?? NaN) ** 2 * (1 - meanCosine(frequency - own));
      }
    }
  }
  return error;
}

function choiceOf({ heads, kvHeads, frequencies }: AttentionLayer, groups: readonly FoldedGroup[], shape: Shape, fold: number): PlanChoice {
  const perGroup = heads / kvHeads;
  const components: RopeComponent[] = [];
  const rest: PairTerm[][] = [];
  for (const group of groups) {
    const { first, values, vectors } = group;
    for (let m = 0; m < values.length; m++) {
      const key = Array.from({ length: vectors.rows }, (_, row): PairTerm =>
        ({ head: Math.floor(row / fold), pair: first + (row % fold), re: vectors.data[row * vectors.cols + m] ?? NaN, im: 0 }));
      const pair = pairOf(m, group, shape, fold);
      if (pair === null) {
        rest.push(key);
        continue;
      }
      const query = key.flatMap((term) => Array.from({ length: perGroup }, (_, r): PairTerm => ({ ...term, head: term.head * perGroup + r })));
      components.push({ frequency: frequencies[pair] ?? NaN, key, query, back: key });
    }
  }
  return { components, scores: null, fold: [], rest };
}
