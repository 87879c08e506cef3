/** CARE's adjusted ranks: layers whose spectrum falls slowly get more of a common budget. */

export interface AdjustedRanksOptions {
  /** Rank that every layer would have; the budget is this times the layers. */
  readonly rank: number;
  /** Rank a layer has at least. Default half of `rank`, and 1 or more. */
  readonly least?: number;
  /** Rank a layer has at most, besides the length of its spectrum. Default twice `rank`. */
  readonly most?: number;
}

/**
 * Every layer starts with `least`; then each further rank goes to the layer where it takes most of what is left,
 *   s_{r+1}^2 / sum over m > r of s_m^2  x  sqrt((L - l) / ((L + 1) / 2))  /  sqrt(r / least),
 * s the layer's singular values, r its rank so far, l its index among L layers (errors of early layers travel further).
 * Errors: bounds that leave no way to spend the budget. Source: CARE 2026, section 3.3, with the two factors of its code.
 */
export function adjustedRanks(spectra: readonly ArrayLike<number>[], { rank, least = Math.max(1, Math.floor(rank / 2)), most = 2 * rank }: AdjustedRanksOptions): number[] {
  const layers = spectra.length;
  for (const [name, value] of Object.entries({ rank, least, most })) {
    if (!Number.isInteger(value) || value < 1) throw new RangeError(`adjustedRanks: ${name} must be 1 or more, got ${value}`);
  }
  if (least > rank || most < rank) throw new RangeError(`adjustedRanks: least and most must lie around rank ${rank}, got ${least} and ${most}`);
  const squares = spectra.map((spectrum) => Array.from(spectrum, (s) => s ** 2));
  const short = squares.findIndex((list) => list.length < least);
  if (short >= 0) throw new RangeError(`adjustedRanks: layer ${short} must have at least ${least} singular values, got ${squares[short]?.length}`);
  const left = squares.map((list) => list.slice(least).reduce((a, b) => a + b, 0));
  const total = squares.map((list) => list.reduce((a, b) => a + b, 0));
  const ranks = new Array<number>(layers).fill(least);
  const gain = (layer: number): number => {
    const [r = 0, list = []] = [ranks[layer], squares[layer]];
    if (r >= most || r >= list.length) return -1;
    const rest = Math.max(left[layer] ?? 0, 1e-12 * (total[layer] ?? 0));
    if (rest === 0) return 0;
    return (((list[r] ?? 0) / rest) * Math.sqrt((layers - layer) / ((layers + 1) / 2))) / Math.sqrt(r / least);
  };
  for (let spent = layers * least; spent < layers * rank; spent++) {
    let best = -1;
    let bestGain = -1;
    for (let layer = 0; layer < layers; layer++) {
      const own = gain(layer);
      if (own > bestGain) [best, bestGain] = [layer, own];
    }
    if (best < 0) break; // every layer has all it can use
    left[best] = (left[best] ?? 0) - (squares[best]?.[ranks[best] ?? 0] ?? 0);
    ranks[best] = (ranks[best] ?? 0) + 1;
  }
  return ranks;
}
