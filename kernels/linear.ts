import { at } from './at.ts';
import type { Emit } from './emit.ts';

/** A projection as checkpoints store it: weight [out, in], bias [out] or null. */
export interface Linear<V> {
  readonly weight: V;
  readonly bias: V | null;
}

/** y = x weight^T + bias. x: [b, s, in] -> [b, s, out]. */
export function linear<V>(g: Emit<V>, x: V, { weight, bias }: Linear<V>): V {
  const y = g.einsum('bsi,oi->bso', x, weight);
  return bias === null ? y : g.add(y, bias);
}

/** `linear` whose output is seen as heads: [b, s, groups * width] -> [b, s, ...groups, width]. */
export function linearHeads<V>(g: Emit<V>, x: V, projection: Linear<V>, groups: readonly number[], width: number): V {
  return g.reshape(linear(g, x, projection), [at(g.shape(x), 0), at(g.shape(x), 1), ...groups, width]);
}
