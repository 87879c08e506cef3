import { at } from './at.ts';
import type { Dim, Emit } from './emit.ts';

/**
 * Normal equations of weighted least squares with a constant: features z [1, s, f] and a 1, residual r [1, s, d], weight
 * of each row [s, 1] -> gram sum w [z 1]^T [z 1] [f + 1, f + 1], cross sum w [z 1]^T r [f + 1, d]. s is a number.
 */
export function normalEquations<V>(g: Emit<V>, features: V, residual: V, weights: V): { gram: V; cross: V } {
  const tokens: Dim | undefined = at(g.shape(features), 1);
  if (typeof tokens !== 'number') throw new RangeError(`normalEquations: the number of rows must be known when recorded, got ${tokens}`);
  const one = g.constant({ dtype: 'float32', shape: [1, tokens, 1], data: new Float32Array(tokens).fill(1) });
  const root = g.sqrt(weights);
  const rows = g.mul(g.concat(2, [features, one]), root);
  return { gram: g.einsum('bsi,bsj->ij', rows, rows), cross: g.einsum('bsi,bsj->ij', rows, g.mul(residual, root)) };
}

/** Squared norm of each row: [1, s, d] -> [1, s, 1]. */
export const rowSquares = <V>(g: Emit<V>, a: V): V => g.sum(g.square(a));
