/**
 * Sums over the tokens of one window that calibration takes from an attention layer. Dimension key as in attention.ts;
 * d hidden, k pairs per head. A window is one batch (b = 1) without cached rows: its keys are its own tokens.
 */
import { at } from './at.ts';
import type { Dim, Emit } from './emit.ts';

/** x: [1, s, d] -> sum of x x^T [d, d] and sum of x [d]. */
export function momentSums<V>(g: Emit<V>, x: V): { second: V; first: V } {
  return { second: g.einsum('bsi,bsj->ij', x, x), first: g.einsum('bsi->i', x) };
}

/** Heads [1, s, h, 2k] in the half-split layout -> sum over tokens of the norm of every pair: [h, k]. */
export function pairNormSums<V>(g: Emit<V>, heads: V): V {
  const half = Number(at(g.shape(heads), 3)) / 2;
  const [real, imaginary] = g.split(heads, 3, [half, half]);
  if (real === undefined || imaginary === undefined) throw new RangeError('pairNormSums: heads must have an even width');
  return g.einsum('bshk->hk', g.sqrt(g.add(g.square(real), g.square(imaginary))));
}

/** Attention each key receives, summed over queries: weights [1, g, r, s, t] -> [g, r, t]. */
export const attentionMass = <V>(g: Emit<V>, weights: V): V => g.einsum('bgrst->grt', weights);

/** Sum over queries i of sum_j P_ij x_j: mass [g, r, t], x [1, t, d] -> [g, r, d]. */
export const attendedInputSums = <V>(g: Emit<V>, mass: V, x: V): V => g.einsum('grt,btd->grd', mass, x);

/**
 * Attention by distance from query to key, summed over queries, without query 0 and key 0 (which many models use as a
 * sink): weights [1, g, r, t, t] -> [g, r, t], where column 0 is distance 0 and column c > 0 is distance t - c. t is a
 * number. Rows laid one element short of their stride line the diagonals up as columns.
 */
export function distanceSums<V>(g: Emit<V>, weights: V): V {
  const [, kvHeads, perGroup, , keys] = g.shape(weights);
  if (typeof kvHeads !== 'number' || typeof perGroup !== 'number' || typeof keys !== 'number') {
    throw new RangeError(`distanceSums: weights must have lengths known when recorded, got [${g.shape(weights)}]`);
  }
  const n = keys - 1;
  const inner = withoutFirst(g, withoutFirst(g, weights, 3, keys), 4, keys); // [1, g, r, n, n]
  const padding = g.constant({ dtype: 'float32', shape: [1, kvHeads, perGroup, n], data: new Float32Array(kvHeads * perGroup * n) });
  const flat = g.concat(3, [g.reshape(inner, [1, kvHeads, perGroup, n * n]), padding]);
  return g.einsum('bgrnc->grc', g.reshape(flat, [1, kvHeads, perGroup, n, n + 1]));
}

const withoutFirst = <V>(g: Emit<V>, a: V, axis: number, length: number): V => at(g.split(a, axis, [1, length - 1]), 1);

/**
 * Sum over queries i of sum_j P_ij ||W_o (v_j - vbar_i)||^2, per head: how far the output moves with the scores.
 * mass [g, r, t], value [1, t, g, v], attended [1, s, g, r, v] (vbar), output weight [d, g, r, v] -> [g, r].
 */
export function outputSensitivitySums<V>(g: Emit<V>, mass: V, value: V, attended: V, output: V): V {
  const metric = g.einsum('dgrv,dgrw->grvw', output, output);
  const seen = g.mul(g.einsum('btgv,grvw->btgrw', value, metric), fiveAxes(g, value));
  const mean = g.mul(g.einsum('bsgrv,grvw->bsgrw', attended, metric), attended);
  return g.sub(g.einsum('grt,btgrw->gr', mass, seen), g.einsum('bsgrw->gr', mean));
}

/** [b, t, g, v] -> [b, t, g, 1, v]. */
function fiveAxes<V>(g: Emit<V>, value: V): V {
  const [b, t, groups, width] = g.shape(value);
  const shape: Dim[] = [at([b], 0) ?? 1, t ?? 1, groups ?? 1, 1, width ?? 1];
  return g.reshape(value, shape);
}
