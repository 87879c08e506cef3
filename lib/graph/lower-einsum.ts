/**
 * Einsum as Transpose, Reshape and one MatMul (onnxruntime's own Einsum is slower and is not fused). Axes of length 1
 * take no part, so a batch of one costs nothing.
 */
import { at } from '../../kernels/at.ts';
import { parseEinsum, type EinsumCall } from '../einsum.ts';
import { productOfDims } from './dims.ts';
import type { Dim } from './subgraph.ts';

/** What the lowering may ask of its host. */
export interface EinsumWords<V> {
  reshape(a: V, shape: readonly Dim[]): V;
  transpose(a: V, order: readonly number[]): V;
  matmul(a: V, b: V, shape: readonly Dim[]): V;
  mul(a: V, b: V): V;
  sumAxes(a: V, axes: readonly number[]): V;
}

/** A value whose axes are named. */
interface Named<V> {
  readonly value: V;
  readonly axes: string;
}

export function lowerEinsum<V extends { readonly shape: readonly Dim[] }>(words: EinsumWords<V>, equation: string, operands: readonly V[]): V {
  const call = parseEinsum(equation, operands.map(({ shape }) => shape));
  const dims = (axes: string): Dim[] => [...axes].map((axis) => call.length.get(axis) ?? 1);
  const named = operands.map((value, i): Named<V> => ({ value, axes: at(call.operands, i) }));
  if (named.length === 2) {
    const direct = trailingMatmul(words, call, at(named, 0), at(named, 1), dims);
    if (direct !== null) return direct;
  }
  const isReal = (axis: string): boolean => call.length.get(axis) !== 1;
  const real = (axes: string): string => [...axes].filter(isReal).join('');
  const trimmed = named.map(({ value, axes }): Named<V> => ({ axes: real(axes), value: words.reshape(value, dims(real(axes))) }));
  const output = real(call.output);
  const result = trimmed.reduce((left, right, i) => {
    const later = trimmed.slice(i + 1).map(({ axes }) => axes).join('') + output;
    return contract(words, left, right, later, dims);
  });
  return words.reshape(arrange(words, result, output), dims(call.output));
}

/** x [..., i] times w [o, i] or [i, o] -> [..., o]: MatMul broadcasts over the leading axes by itself. */
function trailingMatmul<V extends { readonly shape: readonly Dim[] }>(
  words: EinsumWords<V>, call: EinsumCall, x: Named<V>, w: Named<V>, dims: (axes: string) => Dim[],
): V | null {
  const contracted = x.axes.at(-1) ?? '';
  const lead = x.axes.slice(0, -1);
  const right = call.output.at(-1) ?? '';
  const fits = w.axes.length === 2 && w.axes.includes(contracted) && w.axes.includes(right)
    && call.output === lead + right && !lead.includes(right) && contracted !== right;
  if (!fits) return null;
  const matrix = w.axes === contracted + right ? w.value : words.transpose(w.value, [1, 0]);
  return words.matmul(x.value, matrix, dims(call.output));
}

/** Axes of `a` brought into the order `to`; axes that `to` lacks are summed away. */
function arrange<V>({ transpose, sumAxes }: EinsumWords<V>, a: Named<V>, to: string): V {
  const gone = [...a.axes].flatMap((axis, i) => (to.includes(axis) ? [] : [i]));
  const kept = [...a.axes].filter((axis) => to.includes(axis)).join('');
  const summed = gone.length === 0 ? a.value : sumAxes(a.value, gone);
  return transpose(summed, [...to].map((axis) => kept.indexOf(axis)));
}

/** One pairwise contraction; axes that nothing later needs are summed. */
function contract<V extends { readonly shape: readonly Dim[] }>(
  words: EinsumWords<V>, a: Named<V>, b: Named<V>, later: string, dims: (axes: string) => Dim[],
): Named<V> {
  const pick = (axes: string, keep: (axis: string) => boolean): string => [...axes].filter(keep).join('');
  const outOrder = [...new Set(later)].join('');
  const batch = pick(outOrder, (axis) => a.axes.includes(axis) && b.axes.includes(axis));
  const left = pick(outOrder, (axis) => a.axes.includes(axis) && !b.axes.includes(axis));
  const right = pick(outOrder, (axis) => !a.axes.includes(axis) && b.axes.includes(axis));
  const inner = pick(a.axes, (axis) => b.axes.includes(axis) && !later.includes(axis));
  const needed = pick(outOrder, (axis) => (batch + left + right).includes(axis));
  if (inner === '' || (left === '' && right === '')) {
    // No matrix product in it: multiply aligned to the common axes, then sum.
    const all = needed + inner;
    const aligned = (operand: Named<V>): V => {
      const own = pick(all, (axis) => operand.axes.includes(axis));
      return words.reshape(arrange(words, operand, own), [...all].map((axis) => (own.includes(axis) ? at(dims(axis), 0) : 1)));
    };
    const product = words.mul(aligned(a), aligned(b));
    return { axes: needed, value: arrange(words, { axes: all, value: product }, needed) };
  }
  // The side whose free axis comes last in the result goes right, so that the product needs no transposition.
  const merged = (axes: string): Dim => productOfDims(dims(axes));
  const last = right !== '' && left.includes(needed.at(-1) ?? ' ');
  const [x, y, rows, cols] = last ? [b, a, right, left] : [a, b, left, right];
  const own = pick(x.axes, (axis) => rows.includes(axis));
  const ordered = isLonger(merged(inner), merged(cols)) ? own : rows;
  const matrices = dims(batch);
  const turned = batch === '' && ordered === own && y.axes.startsWith(inner) ? turnedApart(words, x, inner, merged) : null;
  const lhs = turned ?? words.reshape(arrange(words, x, batch + ordered + inner), [...matrices, merged(rows), merged(inner)]);
  const rhs = words.reshape(arrange(words, y, batch + inner + cols), [...matrices, merged(inner), merged(cols)]);
  const product = words.matmul(lhs, rhs, [...matrices, merged(rows), merged(cols)]);
  const axes = batch + ordered + cols;
  return { axes, value: words.reshape(product, dims(axes)) };
}

/** Rows that are contracted from so many on. */
const MANY_ROWS = 128;

/**
 * A^T of a product A^T B over many rows, as in the gradient of a weight: null where A is not such. The engine fuses a
 * Transpose right in front of a product, which is a tenth slower (docs/log.md); a Reshape between keeps it apart.
 */
function turnedApart<V>(words: EinsumWords<V>, a: Named<V>, inner: string, merged: (axes: string) => Dim): V | null {
  const contracted = merged(inner), free = merged(a.axes.slice(inner.length));
  if (!a.axes.startsWith(inner) || (typeof contracted === 'number' && contracted < MANY_ROWS)) return null;
  return words.reshape(words.transpose(words.reshape(a.value, [contracted, 1, free]), [1, 2, 0]), [free, contracted]);
}

/**
 * Whether the contracted length exceeds the free one, so that reordering rows is cheaper after the product than before
 * it. A symbol counts as longer than any number: it stands for tokens, numbers stand for widths.
 */
function isLonger(inner: Dim, cols: Dim): boolean {
  if (typeof inner === 'number' && typeof cols === 'number') return inner > cols;
  return typeof inner !== 'number' && typeof cols === 'number';
}
