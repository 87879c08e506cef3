/** Shape rules of matrix products, Einsum, reductions and selections along an axis. */
import { mulDims, sameDim } from '../dims.ts';
import type { Dim, DType } from '../subgraph.ts';
import { broadcast, dimAt, forAll, mustEqual, present, sharedDType } from './rule.ts';
import type { Fact, Op, Rule, Rules } from './rule.ts';

const swapped = (shape: readonly Dim[]): Dim[] => [...shape.slice(0, -2), ...shape.slice(-2).reverse()];

/** numpy.matmul: vectors gain an axis for the product and lose it after. */
function product(op: Op, a: readonly Dim[], b: readonly Dim[], dtype: DType): Fact[] {
  const left = a.length === 1 ? [1, ...a] : a, right = b.length === 1 ? [...b, 1] : b;
  mustEqual(op, 'the contracted lengths', dimAt(op, { dtype, shape: left }, -1), dimAt(op, { dtype, shape: right }, -2));
  const batch = broadcast(op, [left.slice(0, -2), right.slice(0, -2)]);
  return [{ dtype, shape: [...batch, ...(a.length === 1 ? [] : [left.at(-2)!]), ...(b.length === 1 ? [] : [right.at(-1)!])] }];
}

function fusedMatMul(op: Op): Fact[] {
  /** transBatch moves the first axis behind the other batch axes, where the row axis was. */
  const turned = (shape: readonly Dim[], batch: boolean, trans: boolean): Dim[] => {
    const moved = batch ? [...shape.slice(1, -1), shape[0]!, shape.at(-1)!] : [...shape];
    return trans && moved.length > 1 ? swapped(moved) : moved;
  };
  const a = turned(op.input(0).shape, op.int('transBatchA', 0) === 1, op.int('transA', 0) === 1);
  const b = turned(op.input(1).shape, op.int('transBatchB', 0) === 1, op.int('transB', 0) === 1);
  return product(op, a, b, sharedDType(op, [0, 1]));
}

function gemm(op: Op): Fact[] {
  const [a, b] = [op.input(0).shape, op.input(1).shape];
  if (a.length !== 2 || b.length !== 2) op.fail('A and B must be matrices', `[${a}] and [${b}]`);
  const result = product(op, op.int('transA', 0) === 1 ? swapped(a) : a, op.int('transB', 0) === 1 ? swapped(b) : b, sharedDType(op, present(op)));
  const bias = op.optional(2);
  if (bias !== undefined) {
    const together = broadcast(op, [result[0]!.shape, bias.shape]);
    if (together.length > 2 || together.some((dim, i) => !sameDim(dim, result[0]!.shape[i]!))) op.fail(`C must broadcast to [${result[0]!.shape}]`, `[${bias.shape}]`);
  }
  return result;
}

function einsum(op: Op): Fact[] {
  const { equation } = op.node.attributes;
  if (equation?.kind !== 'string') return op.fail('equation must be a string', equation?.kind ?? 'none');
  const text = equation.value;
  const [left = '', right] = text.replaceAll(' ', '').split('->');
  const terms = left.split(',');
  if (terms.length !== op.count) op.fail(`equation ${text} must have a term per input`, `${op.count} inputs`);
  const length = new Map<string, Dim>();
  let ellipsis: Dim[] = [];
  terms.forEach((term, i) => {
    const { shape } = op.input(i);
    const [head = '', tail] = term.split('...');
    const extra = shape.length - term.replace('...', '').length;
    if (tail === undefined ? extra !== 0 : extra < 0) op.fail(`term ${term} must name the axes of input ${i}`, `[${shape}]`);
    if (tail !== undefined) ellipsis = broadcast(op, [ellipsis, shape.slice(head.length, head.length + extra)]);
    [...head].forEach((letter, axis) => meet(letter, shape[axis]!));
    [...(tail ?? '')].forEach((letter, axis) => meet(letter, shape[head.length + extra + axis]!));
  });
  function meet(letter: string, dim: Dim): void {
    const known = length.get(letter) ?? 1;
    if (known !== 1 && dim !== 1) mustEqual(op, `the lengths of ${letter} in ${text}`, known, dim);
    if (dim !== 1 || !length.has(letter)) length.set(letter, dim);
  }
  const letters = [...left.replaceAll(/[.,]/g, '')];
  const result = right ?? `${left.includes('...') ? '...' : ''}${letters.filter((l) => letters.indexOf(l) === letters.lastIndexOf(l)).sort().join('')}`;
  const shape = result.split(/(\.\.\.)/).flatMap((part) => (part === '...' ? ellipsis : [...part].map((l) => length.get(l) ?? op.fail(`the result of ${text} must use known letters`, l))));
  return [{ dtype: sharedDType(op, present(op)), shape }];
}

/** Axes are an input since opset 18; none means all, unless noop_with_empty_axes. */
const reduction: Rule = (op) => {
  const { dtype, shape } = op.input(0);
  const given = op.optional(1) === undefined ? [] : op.numbers(1);
  if (given.length === 0 && op.int('noop_with_empty_axes', 0) === 1) return [{ dtype, shape }];
  const axes = given.length === 0 ? [...shape.keys()] : given.map((a) => op.axis(a, shape.length));
  const keep = op.int('keepdims', 1) === 1;
  return [{ dtype, shape: shape.flatMap((dim, i) => (!axes.includes(i) ? [dim] : keep ? [1] : [])) }];
};

const argument: Rule = (op) => {
  const { shape } = op.input(0), axis = op.axis(op.int('axis', 0), shape.length), keep = op.int('keepdims', 1) === 1;
  return [{ dtype: 'int64', shape: shape.flatMap((dim, i) => (i !== axis ? [dim] : keep ? [1] : [])) }];
};

/** A [..., K] times weights given by the attributes K and N. */
const blockQuantised: Rule = (op) => {
  const { dtype, shape } = op.input(0);
  mustEqual(op, 'K and the last axis of A', op.int('K'), dimAt(op, op.input(0), -1));
  return [{ dtype, shape: [...shape.slice(0, -1), op.int('N')] }];
};

export const contraction: Rules = {
  MatMul: (op) => product(op, op.input(0).shape, op.input(1).shape, sharedDType(op, [0, 1])),
  MatMulInteger: (op) => product(op, op.input(0).shape, op.input(1).shape, 'int32'),
  'com.microsoft:DynamicQuantizeMatMul': (op) => product(op, op.input(0).shape, op.input(1).shape, 'float32'),
  'com.microsoft:MatMulIntegerToFloat': (op) => product(op, op.input(0).shape, op.input(1).shape, op.input(2).dtype),
  'com.microsoft:FusedMatMul': fusedMatMul,
  'com.microsoft:MatMulNBits': blockQuantised,
  Gemm: gemm,
  Einsum: einsum,
  ...forAll([
    'ReduceSum', 'ReduceMean', 'ReduceMax', 'ReduceMin', 'ReduceProd', 'ReduceLogSumExp', 'ReduceLogSum', 'ReduceL1', 'ReduceL2', 'ReduceSumSquare',
  ], reduction),
  ...forAll(['ArgMax', 'ArgMin'], argument),
  TopK: (op) => {
    const { dtype, shape } = op.input(0), axis = op.axis(op.int('axis', -1), shape.length), k = op.values(1)[0]!;
    const kept = shape.map((dim, i) => (i === axis ? k : dim));
    return [{ dtype, shape: kept }, { dtype: 'int64', shape: kept }];
  },
  'com.microsoft:GatherBlockQuantized': (op) => {
    const [table, indices] = [op.input(0), op.input(1)], axis = op.axis(op.int('gather_axis', 0), table.shape.length);
    // A byte table holds several values per byte along its last axis.
    const perByte = table.dtype === 'uint8' ? 8 / op.int('bits', 4) : 1;
    const row = table.shape.map((dim, i) => (i === table.shape.length - 1 ? mulDims(dim, perByte) : dim));
    return [{ dtype: op.input(2).dtype, shape: [...row.slice(0, axis), ...indices.shape, ...row.slice(axis + 1)] }];
  },
};
