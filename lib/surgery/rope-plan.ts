/**
 * What keeps rotating. A plan is a list of components, never a mask: a component has one frequency and is a complex
 * combination of key pairs, and each query head has its own combination for it. Pair (head, k) is read as the complex
 * number x[k] + i x[k + headDim / 2], which RoPE multiplies by exp(i frequency position); a score is Re(q conj(k)).
 *
 *   r_c      = sum key_c[g, k] K[g, k]                     the cached rope key, rotated by frequency_c
 *   q_{h,c}  = sum query_c[h, k] Q[h, k]                   how head h looks at it
 *   Kn[g, k] = K[g, k] - sum_c back_c[g, k] r_c            the remainder, which no longer rotates
 *   Qn[h, k] = fold[h, k] Q[h, k]                          with the mean rotation it loses (1 where nothing is folded)
 */
import type { Subgraph } from '../graph/subgraph.ts';

/** One complex coefficient on one pair of one head (a KV head for keys, a query head for queries). */
export interface PairTerm {
  readonly head: number;
  readonly pair: number;
  readonly re: number;
  readonly im: number;
}

export interface RopeComponent {
  /** Radians per position. */
  readonly frequency: number;
  readonly key: readonly PairTerm[];
  readonly query: readonly PairTerm[];
  readonly back: readonly PairTerm[];
}

export interface RopePlan {
  readonly layer: number;
  readonly strategy: string;
  readonly components: readonly RopeComponent[];
  /** Importance of every source pair by the strategy's own measure: [kvHeads, pairs per head]; null where it has none. */
  readonly scores: Float64Array | null;
  /** Share of the rotating pairs that the plan keeps rotating: components / (kvHeads x pairs per head). */
  readonly keptShare: number;
  /** The remainder's fold; terms that are absent are 1. */
  readonly fold: readonly PairTerm[];
  readonly rest?: PlanChoice['rest'];
  /**
   * Elements of each KV head that the remainder still uses, ascending: pairs that rotate as they are leave nothing
   * behind. All lists have the same length.
   */
  readonly nopeElements: readonly (readonly number[])[];
  /** hidden [b, s, d], positions [s] -> qRope [b, s, h, 2n], kRope [b, s, 2n], qNope [b, s, h, headDim], kNope [b, s, g, headDim]. */
  readonly subgraph: Subgraph;
}

/** What a strategy decides; the rest of a RopePlan follows from it. */
export interface PlanChoice {
  readonly components: readonly RopeComponent[];
  readonly scores: Float64Array | null;
  readonly fold: readonly PairTerm[];
  /** Combinations of key pairs, orthonormal and orthogonal to the components, that span the remainder; absent where its pairs do. */
  readonly rest?: readonly (readonly PairTerm[])[];
}

/** A pair of one KV head kept as it is, at its own frequency: MHA2MLA's kind of component. */
export function singlePair(kvHead: number, pair: number, frequency: number, queryHeadsPerKvHead: number): RopeComponent {
  const unit = (head: number): PairTerm => ({ head, pair, re: 1, im: 0 });
  return {
    frequency,
    key: [unit(kvHead)],
    back: [unit(kvHead)],
    query: Array.from({ length: queryHeadsPerKvHead }, (_, i) => unit(kvHead * queryHeadsPerKvHead + i)),
  };
}

const isUnit = (term: PairTerm | undefined, head: number, pair: number): boolean =>
  term !== undefined && term.head === head && term.pair === pair && term.re === 1 && term.im === 0;

/** Whether every KV head keeps as many of its own pairs as they are, in the order of the KV heads. */
export function keepsOwnPairs({ kvHeads, heads }: { readonly heads: number; readonly kvHeads: number }, { components }: Pick<PlanChoice, 'components'>): boolean {
  const perHead = components.length / kvHeads;
  const perGroup = heads / kvHeads;
  return Number.isInteger(perHead) && components.every(({ key, query, back }, i) => {
    const [head, pair] = [Math.floor(i / perHead), key[0]?.pair ?? -1];
    return key.length === 1 && back.length === 1 && isUnit(key[0], head, pair) && isUnit(back[0], head, pair)
      && query.every((term) => isUnit(term, term.head, pair) && Math.floor(term.head / perGroup) === head);
  });
}
