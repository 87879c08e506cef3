/**
 * Values that cost less to make again than to keep: the way back reads a copy that is made when it is needed, from operands
 * that are kept anyway. Of a gated MLP only the two projections stay in memory, not their sigmoid, product and product again.
 * Source: Chen et al. 2016, "Training deep nets with sublinear memory cost", section 3, on cheap operations.
 */
import type { Emit } from '../../kernels/emit.ts';
import type { Tracked } from './ledger.ts';
import { later } from './waiting.ts';

export interface MadeAgain<V> {
  /** Remembers how `of` is made again; `make` is given a cotangent that its work has to wait for. */
  note(of: Tracked<V>, make: (cotangent: V) => V): void;
  /** The value of `of` for the way back, made again at most once. */
  value(of: Tracked<V>, cotangent: V): V;
  /** The values of operands that are multiplied: one that has not been made again waits, the smallest, so that the product does. */
  factors(of: readonly Tracked<V>[], cotangent: V): V[];
}

export function madeAgain<V>(g: Emit<V>): MadeAgain<V> {
  const makers = new Map<Tracked<V>, (cotangent: V) => V>(), made = new Map<Tracked<V>, V>();
  const value = (of: Tracked<V>, cotangent: V): V => {
    const make = makers.get(of);
    if (make === undefined) return of.value;
    const known = made.get(of) ?? make(cotangent);
    made.set(of, known);
    return known;
  };
  /** Symbols count as long. */
  const size = (of: Tracked<V>): number => g.shape(of.value).reduce<number>((product, dim) => product * (typeof dim === 'number' ? dim : 1e6), 1);
  return {
    note: (of, make) => { makers.set(of, make); },
    value,
    factors(of, cotangent) {
      if (of.some((one) => makers.has(one))) return of.map((one) => value(one, cotangent));
      const smallest = of.reduce((a, b) => (size(b) < size(a) ? b : a));
      return of.map((one) => (one === smallest ? later(g, one.value, cotangent) : one.value));
    },
  };
}
