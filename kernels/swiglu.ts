import type { Emit } from './emit.ts';
import { linear, type Linear } from './linear.ts';

export interface SwigluWeights<V> {
  readonly gate: Linear<V>; // [f, d]
  readonly up: Linear<V>; // [f, d]
  readonly down: Linear<V>; // [d, f]
}

/** y = down(silu(gate(x)) * up(x)), silu(a) = a sigmoid(a). x: [b, s, d] -> [b, s, d]. Source: Shazeer 2020, section 2. */
export function swiglu<V>(g: Emit<V>, x: V, w: SwigluWeights<V>): V {
  const gate = linear(g, x, w.gate); // [b, s, f]
  const silu = g.mul(gate, g.sigmoid(gate));
  return linear(g, g.mul(silu, linear(g, x, w.up)), w.down);
}
