import type { Emit } from './emit.ts';
import { rmsNorm } from './rms-norm.ts';
import { swiglu, type SwigluWeights } from './swiglu.ts';

export interface DecoderLayerWeights<V> {
  readonly attentionNorm: V; // [d]
  readonly mlpNorm: V; // [d]
  readonly mlp: SwigluWeights<V>;
}

/**
 * A pre-norm decoder layer around any attention: h = x + attention(norm(x)), y = h + swiglu(norm(h)). x: [b, s, d].
 */
export function decoderLayer<V, Rows>(
  g: Emit<V>, x: V, w: DecoderLayerWeights<V>, eps: number, attention: (normed: V) => { output: V; rows: Rows },
): { hidden: V; rows: Rows } {
  const { output, rows } = attention(rmsNorm(g, x, w.attentionNorm, eps));
  const h = g.add(x, output);
  return { hidden: g.add(h, swiglu(g, rmsNorm(g, h, w.mlpNorm, eps), w.mlp)), rows };
}
