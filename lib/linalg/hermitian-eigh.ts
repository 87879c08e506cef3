/** Eigendecomposition of a complex Hermitian matrix; for small ones (up to a few hundred), in plain loops but the middle. */
import { tridiagonalEigh, type TridiagonalEigen } from './divide-and-conquer.ts';
import { largestOfLower, powerOfTwoScale } from './eigh.ts';
import type { Gemm } from './gemm.ts';
import { transpose, zeros, type Matrix } from './matrix.ts';
import { tridiagonalQl } from './tridiagonal-ql.ts';

/** real + i imaginary, both of one size. */
export interface ComplexMatrix {
  readonly real: Matrix;
  readonly imaginary: Matrix;
}

export interface HermitianEigen {
  /** Real, ascending. */
  readonly values: Float64Array;
  /** Column k is the unit eigenvector of value k; each is defined up to a phase. */
  readonly vectors: ComplexMatrix;
}

/**
 * A = V diag(values) V^* for a complex Hermitian matrix [n, n]; V^* is the conjugate transpose.
 *
 * Only the lower triangle is read, and the diagonal's imaginary part is taken as zero. Householder reflectors
 * I - tau v v^* leave a Hermitian tridiagonal matrix, a diagonal of phases makes it real, `tridiagonalEigh` solves
 * it. Residual and orthogonality are of order n * 2.2e-16. Throws when the parts are not square, of different size,
 * or not finite.
 */
export async function hermitianEigh(a: ComplexMatrix, { gemm }: { readonly gemm: Gemm }): Promise<HermitianEigen> {
  const reduced = reduceChecked('hermitianEigh', a);
  return backTransform(reduced, await tridiagonalEigh(reduced, gemm));
}

/**
 * The same at once, without waiting: the middle by implicit QL, in plain loops. For many small matrices (up to about 100).
 */
export function hermitianEighSmall(a: ComplexMatrix): HermitianEigen {
  const reduced = reduceChecked('hermitianEighSmall', a);
  return backTransform(reduced, tridiagonalQl(reduced));
}

interface Reduced {
  readonly diagonal: Float64Array;
  readonly offDiagonal: Float64Array;
  readonly phases: ComplexVector;
  readonly reflectors: Reflector[];
  readonly scale: number;
}

function reduceChecked(caller: string, a: ComplexMatrix): Reduced {
  const scale = powerOfTwoScale(Math.max(largestOfLower(caller, a.real), largestOfLower(caller, a.imaginary)));
  if (a.imaginary.rows !== a.real.rows) {
    throw new RangeError(`${caller}: real and imaginary part must have one size, got ${a.real.rows} and ${a.imaginary.rows}`);
  }
  return { ...reduce(scaledCopy(a, scale)), scale };
}

/** Vectors of the tridiagonal matrix -> vectors of the Hermitian one. */
function backTransform({ phases, reflectors, scale }: Reduced, { values, rows }: TridiagonalEigen): HermitianEigen {
  const n = values.length;
  const z = transpose({ rows: n, cols: n, data: rows }).data;
  const vectors: ComplexMatrix = { real: zeros(n, n), imaginary: zeros(n, n) };
  for (let r = 0; r < n; r++) {
    for (let c = 0; c < n; c++) {
      vectors.real.data[r * n + c] = phases.real[r]! * z[r * n + c]!;
      vectors.imaginary.data[r * n + c] = phases.imaginary[r]! * z[r * n + c]!;
    }
  }
  for (const reflector of reflectors) applyReflector(reflector, vectors);
  return { values: values.map((x) => x * scale), vectors };
}

interface ComplexVector {
  readonly real: Float64Array;
  readonly imaginary: Float64Array;
}

/** I - tau v v^* on the first v.length coordinates. */
interface Reflector {
  readonly v: ComplexVector;
  readonly tau: number;
}

const complexVector = (length: number): ComplexVector => ({ real: new Float64Array(length), imaginary: new Float64Array(length) });

/** The full matrix from its lower triangle, divided by `scale`. */
function scaledCopy(a: ComplexMatrix, scale: number): ComplexMatrix {
  const n = a.real.rows;
  const block: ComplexMatrix = { real: zeros(n, n), imaginary: zeros(n, n) };
  for (let r = 0; r < n; r++) {
    for (let c = 0; c <= r; c++) {
      const real = a.real.data[r * n + c]! / scale;
      const imaginary = r === c ? 0 : a.imaginary.data[r * n + c]! / scale;
      block.real.data[r * n + c] = block.real.data[c * n + r] = real;
      block.imaginary.data[r * n + c] = imaginary;
      block.imaginary.data[c * n + r] = -imaginary;
    }
  }
  return block;
}

/** A = Q P T P^* Q^* with T real tridiagonal, P = diag(phases), Q the product of the reflectors, first one in the list rightmost. */
function reduce(block: ComplexMatrix): { diagonal: Float64Array; offDiagonal: Float64Array; phases: ComplexVector; reflectors: Reflector[] } {
  const n = block.real.rows;
  const diagonal = new Float64Array(n);
  const offDiagonal = new Float64Array(n);
  const couplings = complexVector(n); // element (i-1, i) of the Hermitian tridiagonal matrix
  const reflectors: Reflector[] = [];
  for (let i = n - 1; i > 0; i--) {
    diagonal[i] = block.real.data[i * n + i]!;
    const v = complexVector(i);
    for (let j = 0; j < i; j++) {
      v.real[j] = block.real.data[j * n + i]!;
      v.imaginary[j] = block.imaginary.data[j * n + i]!;
    }
    const length = Math.hypot(...v.real, ...v.imaginary);
    offDiagonal[i] = length;
    if (length === 0) continue;
    // column -> -phase * length in its last element, the sign that adds instead of cancelling
    const pivot = Math.hypot(v.real[i - 1]!, v.imaginary[i - 1]!);
    const phaseReal = pivot > 0 ? v.real[i - 1]! / pivot : 1;
    const phaseImaginary = pivot > 0 ? v.imaginary[i - 1]! / pivot : 0;
    couplings.real[i] = -phaseReal;
    couplings.imaginary[i] = -phaseImaginary;
    v.real[i - 1]! += phaseReal * length;
    v.imaginary[i - 1]! += phaseImaginary * length;
    const reflector: Reflector = { v, tau: 1 / (length * (length + pivot)) }; // 2 / v^* v
    reflectors.push(reflector);
    transformBlock(block, reflector);
  }
  if (n > 0) diagonal[0] = block.real.data[0]!;
  return { diagonal, offDiagonal, phases: accumulatePhases(couplings), reflectors: reflectors.reverse() };
}

/** P with P^* (tridiagonal) P real: P_i = P_(i-1) times the conjugate phase of coupling i. */
function accumulatePhases(couplings: ComplexVector): ComplexVector {
  const n = couplings.real.length;
  const phases = complexVector(n);
  for (let i = 0; i < n; i++) {
    const x = i > 0 ? phases.real[i - 1]! : 1;
    const y = i > 0 ? phases.imaginary[i - 1]! : 0;
    const coupled = couplings.real[i] !== 0 || couplings.imaginary[i] !== 0;
    const c = coupled ? couplings.real[i]! : 1;
    const s = coupled ? -couplings.imaginary[i]! : 0;
    const length = Math.hypot(x * c - y * s, x * s + y * c); // keeps |P_i| = 1 along the chain
    phases.real[i] = (x * c - y * s) / length;
    phases.imaginary[i] = (x * s + y * c) / length;
  }
  return phases;
}

/** Leading block A -> H A H as A - v w^* - w v^*, with p = tau A v and w = p - (tau / 2) (v^* p) v. */
function transformBlock(block: ComplexMatrix, { v, tau }: Reflector): void {
  const m = v.real.length;
  const n = block.real.cols;
  const [re, im] = [block.real.data, block.imaginary.data];
  const w = complexVector(m);
  let product = 0; // v^* p, real because A is Hermitian
  for (let r = 0; r < m; r++) {
    let x = 0;
    let y = 0;
    for (let c = 0, k = r * n; c < m; c++, k++) {
      x += re[k]! * v.real[c]! - im[k]! * v.imaginary[c]!;
      y += re[k]! * v.imaginary[c]! + im[k]! * v.real[c]!;
    }
    w.real[r] = tau * x;
    w.imaginary[r] = tau * y;
    product += v.real[r]! * tau * x + v.imaginary[r]! * tau * y;
  }
  const half = 0.5 * tau * product;
  for (let r = 0; r < m; r++) {
    w.real[r]! -= half * v.real[r]!;
    w.imaginary[r]! -= half * v.imaginary[r]!;
  }
  for (let r = 0; r < m; r++) {
    const [vr, vi, wr, wi] = [v.real[r]!, v.imaginary[r]!, w.real[r]!, w.imaginary[r]!];
    for (let c = 0, k = r * n; c < m; c++, k++) {
      re[k]! -= vr * w.real[c]! + vi * w.imaginary[c]! + wr * v.real[c]! + wi * v.imaginary[c]!;
      im[k]! -= vi * w.real[c]! - vr * w.imaginary[c]! + wi * v.real[c]! - wr * v.imaginary[c]!;
    }
  }
}

/** X -> (I - tau v v^*) X in place. */
function applyReflector({ v, tau }: Reflector, x: ComplexMatrix): void {
  const n = x.real.cols;
  const sums = complexVector(n); // v^* X
  for (let r = 0; r < v.real.length; r++) {
    const [vr, vi] = [v.real[r]!, v.imaginary[r]!];
    for (let c = 0, k = r * n; c < n; c++, k++) {
      sums.real[c]! += vr * x.real.data[k]! + vi * x.imaginary.data[k]!;
      sums.imaginary[c]! += vr * x.imaginary.data[k]! - vi * x.real.data[k]!;
    }
  }
  for (let r = 0; r < v.real.length; r++) {
    const [vr, vi] = [tau * v.real[r]!, tau * v.imaginary[r]!];
    for (let c = 0, k = r * n; c < n; c++, k++) {
      x.real.data[k]! -= vr * sums.real[c]! - vi * sums.imaginary[c]!;
      x.imaginary.data[k]! -= vr * sums.imaginary[c]! + vi * sums.real[c]!;
    }
  }
}
