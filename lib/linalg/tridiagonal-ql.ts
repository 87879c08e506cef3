/** Eigenvalues and vectors of a small symmetric tridiagonal matrix by implicit QL (EISPACK tql2). O(n^3). */
import type { Tridiagonal } from './tridiagonalise.ts';

/** Eigenvalues ascending; row k of `rows` (n x n) is the unit eigenvector of value k. */
export interface TridiagonalEigen {
  readonly values: Float64Array;
  readonly rows: Float64Array;
}

const maxSweeps = 60; // 2 or 3 are usual; tql2 itself stops at 30

/** Throws when an eigenvalue does not settle in 60 sweeps, which needs NaN or infinite input. */
export function tridiagonalQl(t: Tridiagonal): TridiagonalEigen {
  const n = t.diagonal.length;
  const d = t.diagonal.slice();
  const e = new Float64Array(n); // e[i] couples i and i+1
  e.set(t.offDiagonal.subarray(1));
  const z = new Float64Array(n * n); // row k becomes eigenvector k
  for (let i = 0; i < n; i++) z[i * n + i] = 1;
  for (let first = 0; first < n; first++) {
    for (let sweep = 0; ; sweep++) {
      const last = endOfBlock(d, e, first);
      if (last === first) break;
      if (sweep === maxSweeps) throw new Error(`tridiagonalQl: eigenvalue ${first} of ${n} did not settle in ${maxSweeps} sweeps`);
      qlSweep(d, e, z, n, first, last);
    }
  }
  return sorted(d, z, n);
}

/** The first index m >= first whose coupling to m+1 is negligible. */
function endOfBlock(d: Float64Array, e: Float64Array, first: number): number {
  let m = first;
  while (m < d.length - 1 && Math.abs(e[m]!) > Number.EPSILON * (Math.abs(d[m]!) + Math.abs(d[m + 1]!))) m++;
  return m;
}

/** One sweep of plane rotations from `last` up to `first`, shifted by Wilkinson's estimate of eigenvalue `first`. */
function qlSweep(d: Float64Array, e: Float64Array, z: Float64Array, n: number, first: number, last: number): void {
  let g = (d[first + 1]! - d[first]!) / (2 * e[first]!);
  let r = Math.hypot(g, 1);
  g = d[last]! - d[first]! + e[first]! / (g + (g >= 0 ? r : -r));
  let sine = 1;
  let cosine = 1;
  let p = 0;
  for (let i = last - 1; i >= first; i--) {
    const f = sine * e[i]!;
    const b = cosine * e[i]!;
    r = Math.hypot(f, g);
    e[i + 1] = r;
    if (r === 0) {
      // underflow: the block has split here, start again
      d[i + 1]! -= p;
      e[last] = 0;
      return;
    }
    sine = f / r;
    cosine = g / r;
    g = d[i + 1]! - p;
    r = (d[i]! - g) * sine + 2 * cosine * b;
    p = sine * r;
    d[i + 1] = g + p;
    g = cosine * r - b;
    rotateRows(z, n, i, cosine, sine);
  }
  d[first]! -= p;
  e[first] = g;
  e[last] = 0;
}

function rotateRows(z: Float64Array, n: number, i: number, cosine: number, sine: number): void {
  for (let a = i * n, b = a + n; a < i * n + n; a++, b++) {
    const x = z[a]!;
    const y = z[b]!;
    z[a] = cosine * x - sine * y;
    z[b] = sine * x + cosine * y;
  }
}

function sorted(d: Float64Array, z: Float64Array, n: number): TridiagonalEigen {
  const order = Array.from(d.keys()).sort((a, b) => d[a]! - d[b]!);
  const rows = new Float64Array(n * n);
  order.forEach((from, to) => rows.set(z.subarray(from * n, from * n + n), to * n));
  return { values: Float64Array.from(order, (k) => d[k]!), rows };
}
