/** Values that wait for others: an engine that runs nodes as early as it can would keep them for long. */
import { at } from '../../kernels/at.ts';
import type { Dim, Emit } from '../../kernels/emit.ts';
import { productOfDims } from '../graph/dims.ts';

/** `x` bit by bit, but not before all of `others` are known: it travels beside one element of each. */
export function after<V>(g: Emit<V>, x: V, others: readonly V[]): V {
  if (others.length === 0) return x;
  const flat = (a: V): V => g.reshape(a, [productOfDims(g.shape(a))]);
  const first = g.constant({ dtype: 'int64', shape: [1], data: BigInt64Array.of(0n) });
  const lengths: readonly Dim[] = [productOfDims(g.shape(x)), others.length];
  const joined = g.concat(0, [flat(x), ...others.map((other) => g.gather(flat(other), first))]);
  return g.reshape(at(g.split(joined, 0, lengths), 0), g.shape(x));
}

/** x, but not before `other` is known; in one pass over x, where a -0 becomes 0 and an `other` that is not finite spoils x too. */
export function later<V>(g: Emit<V>, x: V, other: V): V {
  const first = g.constant({ dtype: 'int64', shape: [1], data: BigInt64Array.of(0n) });
  const some = g.gather(g.reshape(other, [productOfDims(g.shape(other))]), first);
  return g.add(x, g.sub(some, some));
}
