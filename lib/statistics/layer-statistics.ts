/** What calibration text says of one attention layer. */
export interface LayerStatistics {
  readonly layer: number;
  /** Mean over tokens of the norm of every query pair before RoPE (which keeps norms): [heads, pairs per head]. */
  readonly queryPairNorms: Float64Array;
  /** The same of every key pair: [kvHeads, pairs per head]. */
  readonly keyPairNorms: Float64Array;
}
