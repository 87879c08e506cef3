import type { Constant, HostTensor } from '../graph/subgraph.ts';
import { constantValues } from '../passes/constant-weight.ts';
import { mlaTensorName } from './mla-config.ts';
import type { Model } from './model.ts';

/**
 * The same model with rope keys of even size: the two elements of every rotating component are divided by the norm of
 * their weights, queries multiplied by it. No score changes, but a row with one step for all its elements is no longer
 * as coarse as its largest component asks for; in the frequency bank that is ten times as large as the others.
 * Layers with a norm per head are left alone: there the size of a key is the norm's.
 */
export function levelRopeKeys(model: Model, constants: ReadonlyMap<string, Constant>): ReadonlyMap<string, Constant> {
  const levelled = new Map(constants);
  for (const [layer, { frequencies, headNorm }] of (model.mla?.layers ?? []).entries()) {
    const key = constants.get(`${mlaTensorName(layer, 'keyRope')}.weight`);
    if (key === undefined || headNorm !== undefined) continue;
    const components = frequencies.length, { kvHeads, heads } = model.config;
    const sizes = pairNorms(constantValues(key), components);
    const scaleRows = (tensor: 'keyRope' | 'queryRope', factorOf: (row: number, rows: number) => number): void => {
      for (const name of ['weight', 'bias'].map((ending) => `${mlaTensorName(layer, tensor)}.${ending}`)) {
        const constant = constants.get(name);
        if (constant !== undefined) levelled.set(name, rowsTimes(constantValues(constant), factorOf));
      }
    };
    scaleRows('keyRope', (row) => 1 / sizes[row % components]!);
    scaleRows('queryRope', (row, rows) => {
      // Heads hold all components, or those of their own KV head only (kernels/partial-rope.ts).
      const own = rows / heads / 2, head = Math.floor(row / (2 * own));
      return sizes[(row % own) + (own === components ? 0 : Math.floor(head / (heads / kvHeads)) * own)]!;
    });
  }
  return levelled;
}

/** Norm of the two rows of each component of [2n, d], 1 where both are zero. */
function pairNorms({ data }: HostTensor<'float32'>, components: number): Float64Array {
  const squares = new Float64Array(components), width = data.length / (2 * components);
  data.forEach((value, at) => { squares[Math.floor(at / width) % components]! += value * value; });
  return squares.map((square) => (square === 0 ? 1 : Math.sqrt(square)));
}

/** Every row of a matrix or element of a vector times its factor. */
function rowsTimes({ data, shape }: HostTensor<'float32'>, factorOf: (row: number, rows: number) => number): HostTensor<'float32'> {
  const rows = shape[0] ?? 1, width = data.length / rows;
  return { dtype: 'float32', shape, data: data.map((value, at) => value * factorOf(Math.floor(at / width), rows)) };
}
