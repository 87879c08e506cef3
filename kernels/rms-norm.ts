import type { Emit } from './emit.ts';

/**
 * y = x / sqrt(mean(x^2) + eps) * weight, over the last axis.
 * x: [..., d], weight: [d]. Spelled out in the order that onnxruntime recognises and fuses.
 * Source: Zhang and Sennrich 2019, section 3.
 */
export function rmsNorm<V>(g: Emit<V>, x: V, weight: V, eps: number): V {
  const rms = g.sqrt(g.shift(g.mean(g.square(x)), eps)); // [..., 1]
  return g.mul(g.div(x, rms), weight);
}
