/** Making two symbolic shapes equal by giving symbols a meaning. */
import { sameDim, substituteDim, symbolsOfDim } from './dims.ts';
import type { Dim } from './subgraph.ts';

const isSymbol = (dim: Dim): dim is string => typeof dim === 'string' && symbolsOfDim(dim)[0] === dim;

/**
 * The substitution that makes every pair of lengths equal, the right symbol replaced by the left length where both
 * would do: unify([['p+s', 't']]) = { t: 'p+s' }. Pairs of sums wait until their symbols are known; those that never
 * become comparable are judged by `residual`. `refuse` gets the index of a pair that cannot be equal.
 */
export function unify(pairs: readonly (readonly [Dim, Dim])[], refuse: (index: number, left: Dim, right: Dim) => never): Readonly<Record<string, Dim>> {
  let solved: Record<string, Dim> = {};
  let open = pairs.map((pair, index) => ({ pair, index }));
  const bind = (symbol: string, dim: Dim): void => {
    solved = { ...Object.fromEntries(Object.entries(solved).map(([name, value]) => [name, substituteDim(value, { [symbol]: dim })])), [symbol]: dim };
  };
  for (let before = -1; open.length !== before;) {
    before = open.length;
    open = open.filter(({ pair, index }) => {
      const [left, right] = [substituteDim(pair[0], solved), substituteDim(pair[1], solved)];
      if (sameDim(left, right)) return false;
      if (isSymbol(right) && !symbolsOfDim(left).includes(right)) bind(right, left);
      else if (isSymbol(left) && !symbolsOfDim(right).includes(left)) bind(left, right);
      else if (typeof left === 'number' && typeof right === 'number') refuse(index, left, right);
      else return true;
      return false;
    });
  }
  return solved;
}
