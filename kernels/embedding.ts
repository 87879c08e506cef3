import type { Emit } from './emit.ts';

/** Row of `table` [vocab, d] per id: ids [b, s] -> [b, s, d]. */
export function embedding<V>(g: Emit<V>, ids: V, table: V): V {
  return g.gather(table, ids);
}
