/**
 * Choosing scale and zero point of one block of weights, so that w ~ scale * (code - zero) with whole codes 0..top.
 * `importance` are non-negative factors on the squared error of each element: E[x^2] of the input it multiplies, when
 * that is known.
 */

/** Scale and zero point of a block; written by a rounding. */
export interface BlockFit {
  scale: number;
  zero: number;
}

/** Fits the first `count` elements of `block`; `top` is the highest code (15 or 255). */
export type BlockRounding = (block: Float64Array, importance: Float64Array, count: number, top: number, fit: BlockFit) => void;

/** Parts of the full range that the search tries: clipping the extremes buys finer steps for everything else. */
const SHRINK = [1, 0.93, 0.86, 0.79, 0.72];

/** Symmetric: the zero point is the middle code, the element of largest magnitude becomes code 0, the end with one step more. */
function nearestSymmetric(block: Float64Array, _importance: Float64Array, count: number, top: number, fit: BlockFit): void {
  let extreme = 0;
  for (let i = 0; i < count; i++) if (Math.abs(block[i]!) > Math.abs(extreme)) extreme = block[i]!;
  fit.zero = (top + 1) / 2;
  fit.scale = Math.fround(-extreme / fit.zero);
}

/** Asymmetric: the codes cover the range from the lowest to the highest element, and 0. */
function nearestAsymmetric(block: Float64Array, _importance: Float64Array, count: number, top: number, fit: BlockFit): void {
  let low = 0, high = 0;
  for (let i = 0; i < count; i++) {
    const v = block[i]!;
    if (v < low) low = v;
    if (v > high) high = v;
  }
  fit.scale = Math.fround((high - low) / top);
  fit.zero = fit.scale === 0 ? 0 : Math.min(top, Math.max(0, Math.round(-low / fit.scale)));
}

/**
 * For each shrunk scale: round, then the scale of least weighted squared error for those codes, in closed form:
 * s = sum(h w q) / sum(h q^2), error = sum(h w^2) - sum(h w q)^2 / sum(h q^2), with q = code - zero. The best is kept.
 */
function searched(start: BlockRounding): BlockRounding {
  return (block, importance, count, top, fit) => {
    start(block, importance, count, top, fit);
    const { scale, zero } = fit;
    if (scale === 0) return;
    const middle = zero - (top + 1) / 2;
    let best = -1;
    for (let step = 0; step < SHRINK.length; step++) {
      const shrink = SHRINK[step]!, inverse = 1 / (scale * shrink);
      // The centre of the range keeps its code when the range shrinks.
      const z = middle === 0 ? zero : Math.min(top, Math.max(0, Math.round((top + 1) / 2 + middle / shrink)));
      const shift = z + 0.5;
      let product = 0, square = 0;
      for (let i = 0; i < count; i++) {
        const w = block[i]!, h = importance[i]!;
        let q = (w * inverse + shift) | 0;
        q = (q < 0 ? 0 : q > top ? top : q) - z;
        product += h * w * q;
        square += h * q * q;
      }
      const gain = square === 0 ? 0 : (product * product) / square;
      if (gain > best) {
        best = gain;
        fit.scale = Math.fround(square === 0 ? scale : product / square);
        fit.zero = z;
      }
    }
  };
}

/** The roundings by name; `search` names are those of least squared error, 3 to 4 times slower to fit. */
export const blockRoundings = {
  /** Middle zero point, range covered. No zero points are stored. */
  'nearest-symmetric': nearestSymmetric,
  /** Zero point per block, range covered. */
  'nearest-asymmetric': nearestAsymmetric,
  /** Middle zero point, range shrunk where that lowers the squared error. No zero points are stored. */
  'search-symmetric': searched(nearestSymmetric),
  /** Zero point per block, range shrunk where that lowers the squared error. */
  'search-asymmetric': searched(nearestAsymmetric),
} as const satisfies Readonly<Record<string, BlockRounding>>;

export type BlockRoundingName = keyof typeof blockRoundings;

/** Whether a rounding always uses the middle code as zero point. */
export const isSymmetric = (name: BlockRoundingName): boolean => name.endsWith('-symmetric');
