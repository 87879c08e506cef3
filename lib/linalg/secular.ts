/**
 * Eigenvalues and vectors of D + rho z z^T, D diagonal: the merging step of divide and conquer.
 *
 * The eigenvalues are the roots of f(x) = 1/rho + sum_i z_i^2 / (d_i - x), one in each interval (d_j, d_(j+1)), the
 * last in (d_(k-1), d_(k-1) + rho |z|^2). Each root is kept as an offset from its nearer pole, so that d_i - x has full
 * relative accuracy. Gu and Eisenstat (SIAM J. Matrix Anal. Appl. 16, 1995): the computed roots are the exact ones
 * for a nearby z, and vectors made from that z are orthogonal however close the roots lie.
 */

export interface SecularEigen {
  /** Ascending. */
  readonly values: Float64Array;
  /** Row j is the unit eigenvector of value j, k x k. */
  readonly rows: Float64Array;
}

const maxSteps = 100; // about 5 are usual; bisection alone would need about 60

/** `d` strictly ascending, `z` a unit vector without zeros, rho > 0. */
export function secularEigen(d: Float64Array, z: Float64Array, rho: number): SecularEigen {
  const k = d.length;
  const values = new Float64Array(k);
  const gaps = new Float64Array(k * k); // gaps[j * k + i] = d_i - value_j, later row j becomes vector j
  const squares = z.map((x) => x * x);
  for (let j = 0; j < k; j++) {
    const { origin, offset } = findRoot(d, squares, rho, j);
    values[j] = d[origin]! + offset;
    for (let i = 0; i < k; i++) gaps[j * k + i] = d[i]! - d[origin]! - offset;
  }
  toVectors(gaps, d, z);
  return { values, rows: gaps };
}

/** Root j as d[origin] + offset. */
function findRoot(d: Float64Array, squares: Float64Array, rho: number, j: number): { origin: number; offset: number } {
  const k = d.length;
  if (k === 1) return { origin: 0, offset: rho * squares[0]! };
  const last = j === k - 1;
  let origin = j;
  let low = 0;
  let high = rho;
  if (!last) {
    // the sign of f in the middle of the interval tells which pole is nearer
    const middle = (d[j + 1]! - d[j]!) / 2;
    const value = secularTerms(d, squares, d[j]!, middle, j);
    if (1 / rho + value.below + value.above >= 0) high = middle;
    else [origin, low, high] = [j + 1, -middle, 0];
  }
  let offset = (low + high) / 2;
  for (let step = 0; step < maxSteps; step++) {
    const terms = secularTerms(d, squares, d[origin]!, offset, j);
    const f = 1 / rho + terms.below + terms.above;
    if (f > 0) high = offset;
    else low = offset;
    if (Math.abs(f) <= 8 * Number.EPSILON * (1 / rho + Math.abs(terms.below) + Math.abs(terms.above))) break;
    if (high - low <= 2 * Number.EPSILON * Math.max(Math.abs(low), Math.abs(high))) break;
    const here = d[j]! - d[origin]! - offset;
    const next = last ? lastStep(f, terms.belowSlope, here) : middleStep(f, terms, here, d[j + 1]! - d[origin]! - offset);
    const candidate = offset + next;
    const inside = candidate > low && candidate < high; // false for NaN too
    const moved = inside ? candidate : (low + high) / 2;
    if (moved === offset) break;
    offset = moved;
  }
  return { origin, offset };
}

interface SecularTerms {
  /** Sum over the poles i <= j, and its derivative. */
  readonly below: number;
  readonly belowSlope: number;
  /** Sum over the poles i > j, and its derivative. */
  readonly above: number;
  readonly aboveSlope: number;
}

function secularTerms(d: Float64Array, squares: Float64Array, origin: number, offset: number, j: number): SecularTerms {
  let below = 0;
  let belowSlope = 0;
  for (let i = 0; i <= j; i++) {
    const inverse = 1 / (d[i]! - origin - offset);
    const term = squares[i]! * inverse;
    below += term;
    belowSlope += term * inverse;
  }
  let above = 0;
  let aboveSlope = 0;
  for (let i = j + 1; i < d.length; i++) {
    const inverse = 1 / (d[i]! - origin - offset);
    const term = squares[i]! * inverse;
    above += term;
    aboveSlope += term * inverse;
  }
  return { below, belowSlope, above, aboveSlope };
}

/** Step to the root of c + a / (d_j - x) + b / (d_(j+1) - x), which agrees with both halves of f here in value and slope. */
function middleStep(f: number, terms: SecularTerms, here: number, next: number): number {
  const c = f - here * terms.belowSlope - next * terms.aboveSlope;
  const linear = (here + next) * f - here * next * (terms.belowSlope + terms.aboveSlope);
  const constant = here * next * f;
  // c s^2 - linear s + constant = 0, in the form without cancellation
  const root = Math.sqrt(Math.max(0, linear * linear - 4 * constant * c));
  if (linear > 0) return (2 * constant) / (linear + root);
  return c === 0 ? constant / linear : (linear - root) / (2 * c);
}

/** Beyond the last pole one term is left: c + a / (d_j - x). */
function lastStep(f: number, slope: number, here: number): number {
  return here + (here * here * slope) / (f - here * slope);
}

/** Replaces row j of gaps by the unit eigenvector of value j. */
function toVectors(gaps: Float64Array, d: Float64Array, z: Float64Array): void {
  const k = d.length;
  const nearby = new Float64Array(k); // z_i^2 for which the computed values are exact, as a product of ratios near 1
  for (let i = 0; i < k; i++) nearby[i] = gaps[i * k + i]!;
  for (let j = 0; j < k; j++) {
    const dj = d[j]!;
    const row = j * k;
    for (let i = 0; i < j; i++) nearby[i]! *= gaps[row + i]! / (d[i]! - dj);
    for (let i = j + 1; i < k; i++) nearby[i]! *= gaps[row + i]! / (d[i]! - dj);
  }
  for (let i = 0; i < k; i++) nearby[i] = Math.sign(z[i]!) * Math.sqrt(Math.abs(nearby[i]!));
  for (let row = 0; row < k * k; row += k) {
    let sum = 0;
    for (let i = 0; i < k; i++) {
      const x = nearby[i]! / gaps[row + i]!;
      gaps[row + i] = x;
      sum += x * x;
    }
    const scale = 1 / Math.sqrt(sum);
    for (let i = 0; i < k; i++) gaps[row + i]! *= scale;
  }
}
