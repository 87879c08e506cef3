import type { Emit, HostTensor } from './emit.ts';

/** cos and sin of position times frequency, one row per position: each [positions, n]. */
export interface RopeTable<V> {
  readonly cos: V;
  readonly sin: V;
}

/** The rows of a RopeTable that belong to the tokens at hand: each [s, n]. */
export type RopeAngles<V> = RopeTable<V>;

/**
 * Host tables for positions 0..positions-1 and n frequencies (radians per position). The angle is taken in float64
 * and only its cosine is rounded, so that position 100,000 is as exact as position 1.
 */
export function ropeTables(frequencies: ArrayLike<number>, positions: number): RopeTable<HostTensor<'float32'>> {
  const n = frequencies.length;
  const cos = new Float32Array(positions * n);
  const sin = new Float32Array(positions * n);
  for (let position = 0; position < positions; position++) {
    for (let i = 0; i < n; i++) {
      const angle = position * (frequencies[i] ?? 0);
      cos[position * n + i] = Math.cos(angle);
      sin[position * n + i] = Math.sin(angle);
    }
  }
  const shape = [positions, n];
  return { cos: { dtype: 'float32', shape, data: cos }, sin: { dtype: 'float32', shape, data: sin } };
}

/** positions: [s] -> the angles of those tokens. */
export function ropeAngles<V>(g: Emit<V>, table: RopeTable<V>, positions: V): RopeAngles<V> {
  return { cos: g.gather(table.cos, positions), sin: g.gather(table.sin, positions) };
}

/**
 * Rotary position embedding in the half-split layout: pair k is (x[k], x[k + n]).
 * x: [b, s, heads, 2n or more], of which the first 2n rotate; angles of n frequencies. Source: Su et al. 2021, section 3.2; layout as in HF `rotate_half`.
 */
export function rope<V>(g: Emit<V>, x: V, angles: RopeAngles<V>): V {
  return g.rotate(x, angles.cos, angles.sin);
}
