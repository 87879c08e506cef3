/**
 * What a rotation does on average to a head: chi_h(w) = sum over distances D of share_h(D) e^{i w D}, the characteristic
 * function of the distances it attends to. Turning by phi instead of theta loses 1 - |chi(theta - phi)|^2 of a pair when
 * the query is multiplied by chi(theta - phi).
 */
import type { Matrix } from '../linalg/matrix.ts';

export interface Complex {
  readonly re: number;
  readonly im: number;
}

/** chi_h(w) of every head: real and imaginary parts, [heads]. `distances` are shares [heads, window]. */
export function meanRotations({ rows: heads, cols: window, data }: Matrix, frequency: number): { re: Float64Array; im: Float64Array } {
  const [re, im] = [new Float64Array(heads), new Float64Array(heads)];
  const [stepRe, stepIm] = [Math.cos(frequency), Math.sin(frequency)];
  let [cos, sin] = [1, 0];
  for (let distance = 0; distance < window; distance++) {
    // Turned step by step, and set right now and then: rounding grows by one unit a step.
    if (distance % 64 === 0) [cos, sin] = [Math.cos(frequency * distance), Math.sin(frequency * distance)];
    for (let head = 0; head < heads; head++) {
      const share = data[head * window + distance]!;
      re[head]! += share * cos;
      im[head]! += share * sin;
    }
    [cos, sin] = [cos * stepRe - sin * stepIm, cos * stepIm + sin * stepRe];
  }
  return { re, im };
}
