/** Shape rules of operators that move, select or make elements, and of the shape arithmetic around them. */
import { addDims, divideExactly, mulDims, productOfDims, sameDim, subDims, termsOfDim } from '../dims.ts';
import { isStored } from '../subgraph.ts';
import type { Constant, Dim } from '../subgraph.ts';
import { broadcast, dimAt, forAll, mustEqual, present, shapeText, sharedDType } from './rule.ts';
import type { Fact, Op, Rules } from './rule.ts';

/** Vectors longer than this are data, not shapes. */
const MOST_VALUES = 64;
/** Exporters write "to the end" as the largest int32 or int64. */
const TO_THE_END = 2 ** 31 - 1;

/** What is known of a constant: its type, shape, and its elements when it is a small integer vector. */
export function factOfConstant(constant: Constant): Fact {
  const { dtype, shape } = constant;
  if (isStored(constant) || shape.length > 1 || constant.data.length > MOST_VALUES) return { dtype, shape };
  if (constant.dtype !== 'int64' && constant.dtype !== 'int32') return { dtype, shape };
  const limit = Number.MAX_SAFE_INTEGER;
  return { dtype, shape, values: Array.from<number | bigint, number>(constant.data, (v) => Math.max(-limit, Math.min(limit, Number(v)))) };
}

function reshape(op: Op): Fact[] {
  const from = op.input(0);
  const wanted = op.values(1).map((dim, i) => (dim === 0 && op.int('allowzero', 0) === 0 ? dimAt(op, from, i) : dim));
  const total = productOfDims(from.shape), known = productOfDims(wanted.filter((dim) => dim !== -1));
  const missing = wanted.includes(-1) ? divideExactly(total, known) : null;
  if (wanted.includes(-1) ? missing === null : !sameDim(total, known)) op.fail('both shapes must have as many elements', `${shapeText(from.shape)} and ${shapeText(wanted)}`);
  const values = wanted.length <= 1 ? from.values : undefined;
  return [{ dtype: from.dtype, shape: wanted.map((dim) => (dim === -1 ? missing! : dim)), values }];
}

/** A slice bound counted from the front. Symbolic lengths are taken to be at least as long as a plain bound asks. */
function bound(value: Dim, length: Dim): Dim {
  if (typeof value === 'string') return termsOfDim(value).every(({ coefficient }) => coefficient < 0) ? addDims(length, value) : value;
  if (value >= TO_THE_END) return length;
  if (value <= -TO_THE_END) return 0;
  const front = value < 0 ? addDims(length, value) : value;
  return typeof front === 'number' && typeof length === 'number' ? Math.max(0, Math.min(length, front)) : front;
}

function slice(op: Op): Fact[] {
  const from = op.input(0);
  const starts = op.values(1), ends = op.values(2);
  const axes = op.optional(3) === undefined ? starts.map((_, i) => i) : op.numbers(3).map((a) => op.axis(a, from.shape.length));
  const steps = op.optional(4) === undefined ? starts.map(() => 1) : op.numbers(4);
  const shape = [...from.shape];
  for (const [i, axis] of axes.entries()) {
    const length = shape[axis]!, step = steps[i]!, start = starts[i]!, end = ends[i]!;
    if (step === -1 && start === -1 && typeof end === 'number' && end <= -TO_THE_END) continue; // reversal
    if (step < 1) op.fail('steps must be positive, or -1 over a whole axis', `${step}`);
    const span = subDims(bound(end, length), bound(start, length));
    const count = typeof span === 'number' ? Math.max(0, Math.ceil(span / step)) : step === 1 ? span : divideExactly(span, step);
    shape[axis] = count ?? op.fail('a symbolic length must be a multiple of the step', `${span} by ${step}`);
  }
  if (from.values === undefined || from.shape.length !== 1 || starts.some((v) => typeof v !== 'number') || ends.some((v) => typeof v !== 'number')) return [{ dtype: from.dtype, shape }];
  const length = from.values.length, step = steps[0] ?? 1;
  const whole = from.values.slice(Number(bound(starts[0] ?? 0, length)), Number(bound(ends[0] ?? length, length)));
  return [{ dtype: from.dtype, shape, values: step === -1 ? [...from.values].reverse() : whole.filter((_, i) => i % step === 0) }];
}

function split(op: Op): Fact[] {
  const from = op.input(0), axis = op.axis(op.int('axis', 0), from.shape.length);
  const length = from.shape[axis]!, parts = op.int('num_outputs', op.node.outputs.length);
  const even = (): Dim[] => {
    const size = typeof length === 'number' ? Math.ceil(length / parts) : divideExactly(length, parts);
    if (size === null) return op.fail('a symbolic length must split evenly', `${length} into ${parts}`);
    return Array.from({ length: parts }, (_, i) => (i < parts - 1 ? size : subDims(length, mulDims(size, parts - 1))));
  };
  const sizes = op.optional(1) === undefined ? even() : op.values(1);
  mustEqual(op, 'the axis and the sum of its parts', length, sizes.reduce(addDims, 0));
  return sizes.map((size) => ({ dtype: from.dtype, shape: from.shape.map((dim, i) => (i === axis ? size : dim)) }));
}

function concat(op: Op): Fact[] {
  const parts = present(op).map((i) => op.input(i)), first = parts[0]!;
  const axis = op.axis(op.int('axis'), first.shape.length);
  const dtype = sharedDType(op, present(op));
  const shape = first.shape.map((dim, i) => {
    if (i === axis) return parts.map((part) => dimAt(op, part, i)).reduce(addDims, 0);
    if (parts.some((part) => part.shape.length !== first.shape.length || !sameDim(part.shape[i]!, dim))) {
      op.fail(`parts must agree beside axis ${axis}`, parts.map((part) => shapeText(part.shape)).join(' and '));
    }
    return dim;
  });
  const values = parts.every((part) => part.values !== undefined) ? parts.flatMap((part) => part.values ?? []) : undefined;
  return [{ dtype, shape, values }];
}

function gather(op: Op): Fact[] {
  const [table, indices] = [op.input(0), op.input(1)], axis = op.axis(op.int('axis', 0), table.shape.length);
  const shape = [...table.shape.slice(0, axis), ...indices.shape, ...table.shape.slice(axis + 1)];
  const at = indices.values;
  if (table.values === undefined || at === undefined || at.some((i) => typeof i !== 'number')) return [{ dtype: table.dtype, shape }];
  return [{ dtype: table.dtype, shape, values: at.map((i) => table.values?.at(Number(i)) ?? op.fail('indices must lie inside the axis', `${i}`)) }];
}

/** The axes of Squeeze and Unsqueeze: an input since opset 13. */
const axesOf = (op: Op, rank: number): number[] => op.numbers(1).map((a) => op.axis(a, rank));

function squeeze(op: Op): Fact[] {
  const { dtype, shape, values } = op.input(0);
  const axes = op.optional(1) === undefined ? shape.flatMap((dim, i) => (dim === 1 ? [i] : [])) : axesOf(op, shape.length);
  const wrong = axes.find((axis) => shape[axis] !== 1);
  if (wrong !== undefined) op.fail(`axis ${wrong} must have length 1`, `${shape[wrong]}`);
  return [{ dtype, shape: shape.filter((_, i) => !axes.includes(i)), values }];
}

function unsqueeze(op: Op): Fact[] {
  const { dtype, shape, values } = op.input(0);
  const rank = shape.length + op.numbers(1).length, axes = axesOf(op, rank);
  const rest = shape.values();
  const longer = Array.from({ length: rank }, (_, i): Dim => (axes.includes(i) ? 1 : rest.next().value ?? op.fail('axes must differ', `${axes}`)));
  return [{ dtype, shape: longer, values: rank <= 1 ? values : undefined }];
}

export const movement: Rules = {
  Reshape: reshape,
  Flatten: (op) => {
    const { dtype, shape } = op.input(0), axis = op.int('axis', 1);
    const at = axis < 0 ? axis + shape.length : axis;
    return [{ dtype, shape: [productOfDims(shape.slice(0, at)), productOfDims(shape.slice(at))] }];
  },
  Transpose: (op) => {
    const { dtype, shape } = op.input(0);
    const perm = op.ints('perm') ?? shape.map((_, i) => shape.length - 1 - i);
    if ([...perm].sort((a, b) => a - b).join() !== [...shape.keys()].join()) op.fail(`perm must order the axes of ${shapeText(shape)}`, `${perm}`);
    return [{ dtype, shape: perm.map((axis) => shape[axis]!) }];
  },
  Slice: slice,
  Split: split,
  Concat: concat,
  Gather: gather,
  GatherElements: (op) => [{ dtype: op.input(0).dtype, shape: op.input(1).shape }],
  GatherND: (op) => {
    const [table, indices] = [op.input(0), op.input(1)], batch = op.int('batch_dims', 0), depth = dimAt(op, indices, -1);
    if (typeof depth !== 'number') return op.fail('the last axis of the indices must be a number', depth);
    return [{ dtype: table.dtype, shape: [...indices.shape.slice(0, -1), ...table.shape.slice(batch + depth)] }];
  },
  ...forAll(['ScatterElements', 'ScatterND', 'TensorScatter'], (op) => {
    sharedDType(op, op.node.op === 'TensorScatter' ? [0, 1] : [0, 2]);
    return [{ dtype: op.input(0).dtype, shape: op.input(0).shape }];
  }),
  Squeeze: squeeze,
  Unsqueeze: unsqueeze,
  Expand: (op) => [{ dtype: op.input(0).dtype, shape: broadcast(op, [op.input(0).shape, op.values(1)]) }],
  Tile: (op) => {
    const times = op.values(1);
    return [{ dtype: op.input(0).dtype, shape: op.input(0).shape.map((dim, i) => mulDims(dim, times[i] ?? 1)) }];
  },
  Pad: (op) => {
    const { dtype, shape } = op.input(0), pads = op.values(1);
    const axes = op.optional(3) === undefined ? shape.map((_, i) => i) : op.numbers(3).map((a) => op.axis(a, shape.length));
    return [{ dtype, shape: shape.map((dim, i) => (axes.includes(i) ? [pads[axes.indexOf(i)]!, pads[axes.indexOf(i) + axes.length]!].reduce(addDims, dim) : dim)) }];
  },
  Shape: (op) => {
    const { shape } = op.input(0);
    const values = shape.slice(op.int('start', 0), op.int('end', shape.length));
    return [{ dtype: 'int64', shape: [values.length], values }];
  },
  Size: (op) => [{ dtype: 'int64', shape: [], values: [productOfDims(op.input(0).shape)] }],
  Range: (op) => {
    const dtype = sharedDType(op, [0, 1, 2]);
    const [start, limit, step] = [op.values(0)[0]!, op.values(1)[0]!, op.values(2)[0]!];
    const span = subDims(limit, start);
    const count = typeof span === 'number' && typeof step === 'number' ? Math.max(0, Math.ceil(span / step)) : divideExactly(span, step);
    return [{ dtype, shape: [count ?? op.fail('a symbolic span must be a multiple of the step', `${span} by ${step}`)] }];
  },
  Constant: (op) => {
    const value = op.tensor('value');
    if (value !== undefined) return [factOfConstant(value)];
    const ints = op.ints('value_ints') ?? ('value_int' in op.node.attributes ? [op.int('value_int')] : undefined);
    if (ints !== undefined) return [{ dtype: 'int64', shape: 'value_int' in op.node.attributes ? [] : [ints.length], values: ints }];
    const { value_float: one, value_floats: many } = op.node.attributes;
    if (one?.kind === 'float') return [{ dtype: 'float32', shape: [] }];
    if (many?.kind === 'floats') return [{ dtype: 'float32', shape: [many.value.length] }];
    return op.fail('the value must be a tensor, ints or floats', Object.keys(op.node.attributes).join());
  },
  ConstantOfShape: (op) => {
    const value = op.tensor('value');
    const shape = op.values(0), [count] = shape;
    const fill = value === undefined ? undefined : factOfConstant(value).values?.[0];
    const values = fill !== undefined && shape.length === 1 && typeof count === 'number' && count <= MOST_VALUES ? Array.from({ length: count }, () => fill) : undefined;
    return [{ dtype: value?.dtype ?? 'float32', shape, values }];
  },
  OneHot: (op) => {
    const indices = op.input(0), rank = indices.shape.length + 1, axis = op.axis(op.int('axis', -1), rank);
    return [{ dtype: op.input(2).dtype, shape: [...indices.shape.slice(0, axis), op.values(1)[0]!, ...indices.shape.slice(axis)] }];
  },
};
