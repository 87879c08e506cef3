import type { Gemm } from '../linalg/gemm.ts';
import type { Matrix } from '../linalg/matrix.ts';
import type { LayerStatistics } from '../statistics/layer-statistics.ts';
import type { AttentionLayer } from '../surgery/attention-layer.ts';
import type { RopePlan } from '../surgery/rope-plan.ts';

/** Which side of the product carries the singular values; the product is the same. */
export const placements = {
  /** down has orthonormal rows: what the MHA2MLA code does. */
  up: { down: () => 1, up: (s: number) => s },
  /** Square root on both sides: what the MHA2MLA paper says. */
  sqrt: { down: Math.sqrt, up: Math.sqrt },
  /** up has orthonormal columns. */
  down: { down: (s: number) => s, up: () => 1 },
} as const satisfies Record<string, { readonly down: (s: number) => number; readonly up: (s: number) => number }>;
export type SingularValuePlacement = keyof typeof placements;

/** Rows of the queries [h n, d] and their bias [h n], zeros where there is none. */
export interface QueryRows {
  readonly weight: Matrix;
  readonly bias: Float64Array;
}

export interface FactorInput {
  readonly attention: AttentionLayer;
  readonly plan: RopePlan;
  /** Null when none were given; never null where the strategy needs them. */
  readonly statistics: LayerStatistics | null;
  /** What the plan leaves of the queries, fold included: the same elements per head as keyNope. Not scaled. Made anew when asked for: the caller's own. */
  readonly queryNope: () => QueryRows;
  /** What the plan leaves of the keys. */
  readonly keyNope: Matrix; // [g n, d], n may be 0
  /** The keys' bias in those rows; zeros where there is none. */
  readonly keyNopeBias: Float64Array; // [g n]
  readonly value: Matrix; // [g v, d]
  readonly rank: number;
  /** Channels for keys, where keys and values have a latent each; the first of `rank`. */
  readonly keyRank: number;
  readonly singularValues: SingularValuePlacement;
  readonly gemm: Gemm;
  readonly seed: number;
}

/** latent = down x; k = keyUp latent; v = valueUp latent. */
export interface FactorMatrices {
  readonly down: Matrix; // [c, d]
  readonly keyUp: Matrix; // [g n, c]
  readonly valueUp: Matrix; // [g v, c]
  /** Singular values that were kept and, where they are known, dropped; descending. */
  readonly spectrum: Float64Array;
  /** What the layer's output must be given back for values the latent leaves out: [hidden], added to o_proj's bias. */
  readonly outputBias?: Float64Array;
}

/** A way to factorise keys and values. Adding one is a file and a row in index.ts. */
export interface FactorStrategy {
  readonly paper: string;
  /** Whether it must be given statistics of calibration text. */
  readonly needsStatistics: boolean;
  /** Whether keys and values have a latent each, so that a key rank can be asked for. Default no. */
  readonly separate?: boolean;
  /** Least and largest rank for a layer of the given row counts and hidden width. */
  readonly rankRange: (keyRows: number, valueRows: number, hidden: number) => readonly [least: number, most: number];
  readonly factor: (input: FactorInput) => Promise<FactorMatrices>;
}
