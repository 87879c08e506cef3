/** Reshape and Transpose with what makes most of them vanish: they move past other words, meet, and cancel. */
import { at } from '../../kernels/at.ts';
import { productOfDims, sameDim } from './dims.ts';
import type { Dim } from './subgraph.ts';
import { int, ints, type Tape, type Value } from './tape.ts';

export interface Movement {
  reshape(a: Value, shape: readonly Dim[]): Value;
  transpose(a: Value, order: readonly number[]): Value;
  /**
   * Operands before their last Reshape, where an operator that works element by element (or, with `rowwise`, along the
   * last axis) gives the same numbers there. Of two, the second may be a row that is repeated along all axes but the last.
   * Null where it does not.
   */
  beforeReshape(operands: readonly Value[], rowwise: boolean): readonly Value[] | null;
}

export const sameShape = (a: readonly Dim[], b: readonly Dim[]): boolean => a.length === b.length && a.every((dim, i) => sameDim(dim, at(b, i)));

export function movement({ one, integers, lengths }: Tape): Movement {
  const reshapedFrom = new Map<string, Value>();
  const transposedFrom = new Map<string, { readonly source: Value; readonly order: readonly number[] }>();

  /** A Reshape: literals, -1 for the only symbol or 0 to copy aligned axes, else a computed vector (where 0 means 0). */
  const reshapeNode = (a: Value, to: readonly Dim[]): Value => {
    const literal = (symbol: number): Value => integers(to.map((dim) => (typeof dim === 'number' ? dim : symbol)));
    if (!to.includes(0)) {
      if (to.filter((dim) => typeof dim !== 'number').length === 1) return one('Reshape', [a, literal(-1)], to);
      if (to.every((dim, i) => typeof dim === 'number' || a.shape[i] === dim)) return one('Reshape', [a, literal(0)], to);
    }
    return one('Reshape', [a, lengths(to)], to, { allowzero: int(1) });
  };

  const reshape = (a: Value, shape: readonly Dim[]): Value => {
    const source = reshapedFrom.get(a.name) ?? a;
    if (!sameDim(productOfDims(a.shape), productOfDims(shape))) throw new RangeError(`reshape: [${shape}] must have as many elements as [${a.shape}]`);
    if (sameShape(a.shape, shape)) return a;
    if (sameShape(source.shape, shape)) return source;
    const reshaped = reshapeNode(source, shape);
    reshapedFrom.set(reshaped.name, source);
    return reshaped;
  };
  const transpose = (a: Value, order: readonly number[]): Value => {
    if (order.every((axis, i) => axis === i)) return a;
    const from = transposedFrom.get(a.name);
    if (from !== undefined) return transpose(from.source, order.map((axis) => at(from.order, axis)));
    const shape = order.map((axis) => at(a.shape, axis));
    // Moving axes of length 1 only, or keeping the order of the others, changes no byte.
    const moving = order.filter((axis) => a.shape[axis] !== 1);
    if (moving.every((axis, i) => i === 0 || axis > at(moving, i - 1))) return reshape(a, shape);
    const transposed = one('Transpose', [a], shape, { perm: ints(order) });
    transposedFrom.set(transposed.name, { source: a, order });
    return transposed;
  };
  const beforeReshape = (operands: readonly Value[], rowwise: boolean): readonly Value[] | null => {
    const sources = operands.map((operand) => reshapedFrom.get(operand.name));
    const found = sources.filter((source) => source !== undefined);
    if (found.length < operands.length) return null;
    const lead = (value: Value): string => (rowwise ? value.shape.slice(0, -1) : value.shape).join();
    const sameLead = (values: readonly Value[]): boolean => values.every((value) => lead(value) === lead(at(values, 0)));
    const sameRows = found.every((source, i) => source.shape.at(-1) === at(operands, i).shape.at(-1));
    if (sameLead(found) && sameLead(operands) && (!rowwise || sameRows)) return found;
    const [whole, row, ...more] = operands, source = found[0];
    if (whole === undefined || row === undefined || source === undefined || more.length > 0) return null;
    const last = source.shape.at(-1) ?? 0, isRow = row.shape.length <= whole.shape.length && row.shape.slice(0, -1).every((dim) => dim === 1);
    if (!isRow || ![whole, row].every(({ shape }) => sameDim(shape.at(-1) ?? 1, last))) return null;
    return [source, reshape(row, [...Array<number>(source.shape.length - 1).fill(1), last])];
  };
  return { reshape, transpose, beforeReshape };
}
