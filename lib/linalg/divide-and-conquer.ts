/**
 * Eigenvalues and vectors of a symmetric tridiagonal matrix by divide and conquer (Cuppen 1981; Gu and Eisenstat 1995;
 * LAPACK dstedc): T = [T1 0; 0 T2] + rho u u^T, both halves solved first, then joined in their eigenbasis, where
 * the correction is D + rho z z^T. Vectors are kept as rows, so that choosing, rotating and ordering them moves
 * contiguous memory.
 */
import { freeMemory } from '../free-memory.ts';
import type { Gemm } from './gemm.ts';
import { secularEigen } from './secular.ts';
import { tridiagonalQl, type TridiagonalEigen } from './tridiagonal-ql.ts';
import type { Tridiagonal } from './tridiagonalise.ts';

export type { TridiagonalEigen } from './tridiagonal-ql.ts';

const smallestSplit = 48; // below, plain QL is faster

/** Eigenvalues ascending, eigenvectors as rows, of a tridiagonal matrix of finite numbers. */
export async function tridiagonalEigh(t: Tridiagonal, gemm: Gemm): Promise<TridiagonalEigen> {
  const n = t.diagonal.length;
  if (n <= smallestSplit) return tridiagonalQl(t);
  const middle = n >> 1;
  const coupling = t.offDiagonal[middle]!;
  const rho = Math.abs(coupling);
  const top = { diagonal: t.diagonal.slice(0, middle), offDiagonal: t.offDiagonal.slice(0, middle) };
  const bottom = { diagonal: t.diagonal.slice(middle), offDiagonal: t.offDiagonal.slice(middle) };
  top.diagonal[middle - 1]! -= rho;
  bottom.diagonal[0]! -= rho;
  return join(await tridiagonalEigh(top, gemm), await tridiagonalEigh(bottom, gemm), rho, coupling < 0 ? -1 : 1, gemm);
}

/** Which half of the coordinates a vector lives in; a rotation between the halves fills both. */
type Support = 'top' | 'bottom' | 'both';

/** Eigenpairs of diag(top, bottom) + rho u u^T with u = (last unit vector, sign * first unit vector). */
async function join(
  top: TridiagonalEigen, bottom: TridiagonalEigen, rho: number, sign: number, gemm: Gemm,
): Promise<TridiagonalEigen> {
  const n1 = top.values.length;
  const n2 = bottom.values.length;
  const n = n1 + n2;
  const d = new Float64Array(n);
  d.set(top.values);
  d.set(bottom.values, n1);
  const basis = new Float64Array(n * n);
  for (let i = 0; i < n1; i++) basis.set(top.rows.subarray(i * n1, i * n1 + n1), i * n);
  for (let i = 0; i < n2; i++) basis.set(bottom.rows.subarray(i * n2, i * n2 + n2), (n1 + i) * n + n1);
  // z = basis u / sqrt(2): both parts are unit vectors, being a column of an orthogonal matrix
  const z = new Float64Array(n);
  for (let i = 0; i < n1; i++) z[i] = top.rows[i * n1 + n1 - 1]! * Math.SQRT1_2;
  for (let i = 0; i < n2; i++) z[n1 + i] = sign * bottom.rows[i * n2]! * Math.SQRT1_2;
  freeMemory([top.rows, bottom.rows]);

  const support = Array.from({ length: n }, (_, i): Support => (i < n1 ? 'top' : 'bottom'));
  const { kept, deflated } = deflate(d, z, 2 * rho, basis, support);
  const solved = secularEigen(Float64Array.from(kept, (i) => d[i]!), Float64Array.from(kept, (i) => z[i]!), 2 * rho);

  const sources = [
    ...Array.from(solved.values, (value, j) => ({ value, row: j, solved: true })),
    ...deflated.map((i) => ({ value: d[i]!, row: i, solved: false })),
  ].sort((a, b) => a.value - b.value);
  const upper = await combine(solved.rows, kept, basis, n, 0, n1, (i) => support[i] !== 'bottom', gemm);
  const lower = await combine(solved.rows, kept, basis, n, n1, n, (i) => support[i] !== 'top', gemm);
  const rows = new Float64Array(n * n);
  sources.forEach((source, to) => {
    if (!source.solved) {
      rows.set(basis.subarray(source.row * n, source.row * n + n), to * n);
      return;
    }
    rows.set(upper.subarray(source.row * n1, source.row * n1 + n1), to * n);
    rows.set(lower.subarray(source.row * n2, source.row * n2 + n2), to * n + n1);
  });
  freeMemory([basis, solved.rows, upper, lower]);
  return { values: Float64Array.from(sources, (source) => source.value), rows };
}

/**
 * Sets aside the pairs that the correction leaves as they are to working accuracy: those with a tiny z, and one of
 * every two nearly equal d after a rotation that moves all of z to the other. Changes d, z, basis and support;
 * the kept indices are ascending in d.
 */
function deflate(
  d: Float64Array, z: Float64Array, rho: number, basis: Float64Array, support: Support[],
): { kept: number[]; deflated: number[] } {
  const n = d.length;
  const largest = (values: Float64Array): number => values.reduce((max, x) => Math.max(max, Math.abs(x)), 0);
  const tolerance = 8 * Number.EPSILON * Math.max(largest(d), rho * largest(z));
  const kept: number[] = [];
  const deflated: number[] = [];
  for (const i of Array.from(d.keys()).sort((a, b) => d[a]! - d[b]!)) {
    if (rho * Math.abs(z[i]!) <= tolerance) {
      deflated.push(i);
      continue;
    }
    const previous = kept.at(-1);
    if (previous !== undefined) {
      const length = Math.hypot(z[previous]!, z[i]!);
      const cosine = z[i]! / length;
      const sine = z[previous]! / length;
      const gap = d[i]! - d[previous]!;
      if (Math.abs(gap * cosine * sine) <= tolerance) {
        z[i] = length;
        z[previous] = 0;
        rotateRows(basis, n, previous, i, cosine, sine);
        if (support[previous] !== support[i]) support[previous] = support[i] = 'both';
        const [low, high] = [d[previous]!, d[i]!];
        d[previous] = low * cosine * cosine + high * sine * sine;
        d[i] = low * sine * sine + high * cosine * cosine;
        kept.pop();
        deflated.push(previous);
      }
    }
    kept.push(i);
  }
  return { kept, deflated };
}

/** Rows i and j of the basis become c i - s j and s i + c j. */
function rotateRows(basis: Float64Array, n: number, i: number, j: number, cosine: number, sine: number): void {
  for (let a = i * n, b = j * n; a < i * n + n; a++, b++) {
    const x = basis[a]!;
    const y = basis[b]!;
    basis[a] = cosine * x - sine * y;
    basis[b] = sine * x + cosine * y;
  }
}

/** Columns from..to-1 of (secular vectors) x (kept basis rows), leaving out the rows that are zero there. */
async function combine(
  vectors: Float64Array, kept: readonly number[], basis: Float64Array, n: number, from: number, to: number,
  reaches: (basisRow: number) => boolean, gemm: Gemm,
): Promise<Float64Array> {
  const k = kept.length;
  const used = Array.from(kept.keys()).filter((j) => reaches(kept[j]!));
  if (used.length === 0) return new Float64Array(k * (to - from));
  const left = new Float64Array(k * used.length);
  for (let r = 0, out = 0; r < k; r++) for (const j of used) left[out++] = vectors[r * k + j]!;
  const right = new Float64Array(used.length * (to - from));
  used.forEach((j, row) => right.set(basis.subarray(kept[j]! * n + from, kept[j]! * n + to), row * (to - from)));
  const product = await gemm.multiply(
    { rows: k, cols: used.length, data: left },
    { rows: used.length, cols: to - from, data: right },
  );
  freeMemory([left, right]);
  return product.data;
}
