import type { AttentionLayer, Projection } from '../../lib/index.ts';
import type { Shape } from './presets.ts';
import { randomProjection } from './random-weights.ts';

/** A source attention layer with random weights. */
export function randomAttention({ hidden, heads, kvHeads, headDim }: Shape): AttentionLayer {
  const projection = (out: number, input: number): Projection => ({ weight: randomProjection(out, input), bias: null });
  const [all, rows] = [heads * headDim, kvHeads * headDim];
  return {
    layer: 0, hidden, heads, kvHeads, headDim, window: null, maxPositions: 64, scale: headDim ** -0.5,
    frequencies: Float64Array.from({ length: headDim / 2 }, (_, i) => 10000 ** (-2 * i / headDim)),
    query: projection(all, hidden), key: projection(rows, hidden), value: projection(rows, hidden), output: projection(hidden, all),
  };
}

/** Pairs per KV head that keep rotating: a sixteenth of the head, the library's default for plans that choose pairs. */
export const keptPairs = ({ headDim }: Pick<Shape, 'headDim'>): number => Math.max(1, Math.floor(headDim / 16));

/**
 * Factorising keys without rotation and values [m, d] at rank R: 4 m d R FLOPs, one product with the matrix to find a space of
 * R dimensions and one to factorise in it, which no method can do without.
 */
export function factorWork(shape: Shape, rank: number): { readonly what: string; readonly flops: number; readonly bytes: number } {
  const rows = shape.kvHeads * (2 * shape.headDim - 2 * keptPairs(shape));
  return { what: `${rows} x ${shape.hidden}, rank ${rank}`, flops: 4 * rows * shape.hidden * rank, bytes: 4 * rows * shape.hidden };
}
