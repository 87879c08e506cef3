import type { Matrix } from '../linalg/matrix.ts';
import type { AttentionLayer } from '../surgery/attention-layer.ts';

/** Where statistics come from; statistics of another model, tokenizer or text are told apart by it. */
export interface StatisticsIdentity {
  /** `fingerprintOf` the source model. */
  readonly model: string;
  /** `Tokenizer.fingerprint`. */
  readonly tokenizer: string;
  readonly texts: readonly { readonly name: string; readonly sha256: string }[];
  /** Tokens behind the moments and pair norms: whole windows. */
  readonly tokens: number;
  /** Tokens behind the statistics of attention: the first windows of those. */
  readonly attentionTokens: number;
  /** Tokens of one window. Positions start at 0 in each. */
  readonly window: number;
}

/**
 * What calibration text says of one attention layer, as means over tokens in float64. x is the layer's input: the hidden
 * state behind its norm, [hidden]. Positions are those inside a window.
 */
export interface LayerStatistics {
  readonly layer: number;
  readonly identity: StatisticsIdentity;
  /** E[x x^T], not centred: [hidden, hidden]. */
  readonly secondMoment: Matrix;
  /** E[x]: [hidden]. */
  readonly mean: Float64Array;
  /** E||q_h pair k|| before RoPE (which keeps norms), biases included: [heads, pairs per head]. */
  readonly queryPairNorms: Float64Array;
  /** E||k_g pair k||: [kvHeads, pairs per head]. */
  readonly keyPairNorms: Float64Array;
  /** E[q_h q_h^T] before RoPE, biases and head norms included, per head below each other: [heads headDim, headDim]. */
  readonly queryMoments: Matrix;
  /** E[k k^T] before RoPE over all KV heads at once: [kvHeads headDim, kvHeads headDim]. */
  readonly keyMoment: Matrix;
  /**
   * Share of a head's attention at each distance between query and key, without key 0 (the attention sink) and query 0:
   * [heads, window], every row sums to 1.
   */
  readonly distances: Matrix;
  /**
   * tau_h = E_i sum_j P_ij ||W_o,h (v_j - vbar_i)||^2 with vbar_i = sum_j P_ij v_j: how much the layer's output moves with
   * the scores of head h. [heads], in squared units of attention output.
   */
  readonly outputSensitivity: Float64Array;
  /** E_i sum_j P_ij x_j: the mean input that head h attends to. [heads, hidden]. */
  readonly meanAttended: Matrix;
}

/** Refuses statistics that cannot be those of this layer, by number and shape. */
export function checkStatistics(caller: string, attention: AttentionLayer, statistics: LayerStatistics): void {
  const { layer, hidden, heads, kvHeads, headDim } = attention;
  if (statistics.layer !== layer) throw new RangeError(`${caller}: statistics must be those of layer ${layer}, got layer ${statistics.layer}`);
  const lengths: readonly [string, number, number][] = [
    ['secondMoment', statistics.secondMoment.data.length, hidden * hidden], ['mean', statistics.mean.length, hidden],
    ['queryPairNorms', statistics.queryPairNorms.length, (heads * headDim) / 2], ['keyPairNorms', statistics.keyPairNorms.length, (kvHeads * headDim) / 2],
    ['queryMoments', statistics.queryMoments.data.length, heads * headDim ** 2], ['keyMoment', statistics.keyMoment.data.length, (kvHeads * headDim) ** 2],
    ['distances', statistics.distances.rows, heads], ['outputSensitivity', statistics.outputSensitivity.length, heads],
    ['meanAttended', statistics.meanAttended.data.length, heads * hidden],
  ];
  for (const [name, got, wanted] of lengths) {
    if (got !== wanted) throw new RangeError(`${caller}: statistics.${name} of layer ${layer} must have ${wanted} ${name === 'distances' ? 'rows' : 'numbers'}, got ${got}`);
  }
}
