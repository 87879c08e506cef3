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
import { anyComponents, required, type PlanStrategy } from './strategy.ts';

/** How many frequencies share one kept one, and of how many heads' worth. */
interface Shape {
  /** TransMLA's collapse: every so many-th frequency stays. */
  readonly collapse: number;
  /** Kept components per kept frequency. */
  readonly ropeHeads: number;
}

/** The fewest components that TransMLA's layout allows (divisors of a head's pairs, and their multiples) for at least `count`. */
export function roRopeShape(attention: Pick<AttentionLayer, 'headDim'>, count: number): Shape {
  const pairs = pairsPerHead(attention);
  if (count >= pairs) return { collapse: 1, ropeHeads: Math.ceil(count / pairs) };
  let collapse = Math.floor(pairs / count);
  while (pairs % collapse !== 0) collapse--;
  return { collapse, ropeHeads: 1 };
}

/** Folds as TransMLA tries them: the collapse and its doubles. */
export function roRopeFolds(attention: Pick<AttentionLayer, 'headDim'>, count: number): number[] {
  const pairs = pairsPerHead(attention);
  const folds: number[] = [];
  for (let fold = roRopeShape(attention, count).collapse; pairs % fold === 0; fold *= 2) folds.push(fold);
  return folds;
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
 * n components over all KV heads. TransMLA's n (its qk_mqa_dim / 2) divides the pairs of a head; a multiple of them keeps
 * the same for more than one head's worth; any other n is the next larger of these less the components of least energy.
 * Fold default: twice the least possible, which was best on SmolLM2-135M for 32 and for 16 components, and 1 where more than
 * one head's worth is kept (`searchFold` tries all, as TransMLA does). Kept whole with fold 1 it is exact.
 * Source: Meng et al. 2025 (TransMLA), sections 4.1 and 4.2; transmla/partial_rope.py.
 */
export const roRope: PlanStrategy = {
  paper: 'Meng et al. 2025 (TransMLA), RoRoPE and FreqFold',
  needsStatistics: true,
  counts: 'components',
  countRange: anyComponents,
  takesFold: true,
  plan(attention, { count, fold, statistics: given }) {
    const shape = roRopeShape(attention, count);
    const size = fold === null ? defaultFold(attention, shape) : checkedFold(attention, shape, fold);
    return choiceOf(attention, foldedGroups(attention, required('ro-rope', given), size), shape, size, count);
  },
};

function defaultFold(attention: AttentionLayer, { collapse, ropeHeads }: Shape): number {
  const twice = 2 * collapse;
  return ropeHeads === 1 && pairsPerHead(attention) % twice === 0 ? twice : collapse;
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

/** Every group's component that turns, with the frequency's pair; the `count` of most energy. */
function turning(groups: readonly FoldedGroup[], shape: Shape, fold: number, count: number): ReadonlyMap<FoldedGroup, ReadonlyMap<number, number>> {
  const all = groups.flatMap((group) => Array.from(group.values, (energy, m) => ({ group, m, energy, pair: pairOf(m, group, shape, fold) })));
  const allowed = all.flatMap(({ pair, ...rest }) => (pair === null ? [] : [{ ...rest, pair }])).sort((a, b) => b.energy - a.energy).slice(0, count);
  return new Map(groups.map((group) => [group, new Map(allowed.filter((one) => one.group === group).map(({ m, pair }) => [m, pair]))]));
}

function choiceOf({ heads, kvHeads, frequencies }: AttentionLayer, groups: readonly FoldedGroup[], shape: Shape, fold: number, count: number): PlanChoice {
  const perGroup = heads / kvHeads;
  const kept = turning(groups, shape, fold, count);
  const components: RopeComponent[] = [];
  const rest: PairTerm[][] = [];
  for (const group of groups) {
    const { first, values, vectors } = group;
    for (let m = 0; m < values.length; m++) {
      const key = Array.from({ length: vectors.rows }, (_, row): PairTerm =>
        ({ head: Math.floor(row / fold), pair: first + (row % fold), re: vectors.data[row * vectors.cols + m] ?? NaN, im: 0 }));
      const pair = kept.get(group)?.get(m);
      if (pair === undefined) {
        rest.push(key);
        continue;
      }
      const query = key.flatMap((term) => Array.from({ length: perGroup }, (_, r): PairTerm => ({ ...term, head: term.head * perGroup + r })));
      components.push({ frequency: frequencies[pair] ?? NaN, key, query, back: key });
    }
  }
  return { components, scores: null, fold: [], rest };
}
