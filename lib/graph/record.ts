/**
 * The ONNX reading: each word of the vocabulary appends standard operators (opset 23) to a subgraph.
 */
import { at } from '../../kernels/at.ts';
import type { StorageEmit } from '../../kernels/emit.ts';
import { addDims, productOfDims, sameDim, subDims } from './dims.ts';
import { toDType } from '../tensor.ts';
import { mapValues } from '../map-values.ts';
import { codeWords } from './code-words.ts';
import { lowerEinsum } from './lower-einsum.ts';
import { movement, sameShape } from './movement.ts';
import type { Dim, DType, HostTensor, Port, Subgraph } from './subgraph.ts';
import { int, openTape, text, type Tape, type Value } from './tape.ts';

export { int, ints, text, type Value } from './tape.ts';

/** The vocabulary, and what only this reading has: inputs, named weights, any operator, an end. */
export type Recorder = StorageEmit<Value> & Pick<Tape, 'input' | 'parameter' | 'append' | 'finish'>;

/** So low that softmax gives 0, yet finite: -Infinity minus itself would be NaN in a row that is masked throughout. */
const MASKED = -3.4028234663852886e38;

/** Records `body` as a subgraph with the given inputs; `body` returns the outputs by public name. */
export function record<K extends string>(
  name: string, inputs: Readonly<Record<K, Omit<Port, 'name'>>>, body: (g: Recorder, inputs: Readonly<Record<K, Value>>) => Readonly<Record<string, Value>>,
): Subgraph {
  const g = recorder(name);
  return g.finish(body(g, mapValues(inputs, (port, key) => g.input({ name: key, ...port }))));
}

export function recorder(name: string): Recorder {
  const tape = openTape(name);
  const { append, one, integers, number, lengths } = tape;
  const { reshape, transpose, beforeReshape } = movement(tape);
  /** An operator that works element by element on one or two operands of one shape. */
  const elementwise = (operands: readonly Value[], apply: (operands: readonly Value[]) => Value): Value => {
    const sources = beforeReshape(operands, false);
    return sources === null ? apply(operands) : reshape(apply(sources), at(operands, 0).shape);
  };
  const unary = (op: string, a: Value): Value => elementwise([a], ([x = a]) => one(op, [x], x.shape));
  const broadcast = (op: string, a: Value, b: Value, dtype: DType = a.dtype): Value =>
    elementwise([a, b], ([x = a, y = b]) => one(op, [x, y], broadcastShape(op, x.shape, y.shape), {}, dtype));
  const withNumber = (op: string, a: Value, value: number): Value => elementwise([a], ([x = a]) => one(op, [x, number(value, x.dtype)], x.shape));
  const reduceLast = (op: string, a: Value): Value => one(op, [a, integers([-1])], [...a.shape.slice(0, -1), 1], { keepdims: int(1) });
  const column = (a: Value): Value => reshape(a, [...a.shape, 1]);

  const codes = codeWords({ ...tape, reshape, transpose, einsum: (equation, ...operands) => g.einsum(equation, ...operands) });

  const g: Recorder = {
    append, input: tape.input, parameter: tape.parameter, finish: tape.finish, constant: tape.constant,
    shape: (a) => a.shape,
    einsum: (equation, ...operands) => lowerEinsum({
      reshape, transpose,
      matmul: (a, b, shape) => one('MatMul', [a, b], shape),
      mul: (a, b) => broadcast('Mul', a, b),
      sumAxes: (a, axes) => one('ReduceSum', [a, integers(axes)], a.shape.filter((_, i) => !axes.includes(i)), { keepdims: int(0) }),
    }, equation, operands),
    add: (a, b) => broadcast('Add', a, b),
    sub: (a, b) => broadcast('Sub', a, b),
    mul: (a, b) => broadcast('Mul', a, b),
    div: (a, b) => broadcast('Div', a, b),
    scale: (a, by) => (by === 1 ? a : withNumber('Mul', a, by)),
    shift: (a, by) => (by === 0 ? a : withNumber('Add', a, by)),
    square: (a) => withNumber('Pow', a, 2),
    sqrt: (a) => unary('Sqrt', a),
    exp: (a) => unary('Exp', a),
    log: (a) => unary('Log', a),
    sigmoid: (a) => unary('Sigmoid', a),
    sum: (a) => reduceLast('ReduceSum', a),
    mean: (a) => reduceLast('ReduceMean', a),
    logSumExp(a) {
      // Spelled out: ReduceLogSumExp adds 50,000 small terms to one float32 and loses 1e-4 nats of them.
      const top = reduceLast('ReduceMax', a);
      const sum = reduceLast('ReduceSum', g.exp(g.sub(a, top)));
      return g.add(g.log(sum), top);
    },
    softmax(a) {
      const [source] = beforeReshape([a], true) ?? [];
      return source === undefined ? one('Softmax', [a], a.shape, { axis: int(-1) }) : reshape(g.softmax(source), a.shape);
    },
    rotate(a, cos, sin) {
      const [b, s, heads, width] = a.shape, n = cos.shape[1];
      if (b === undefined || s === undefined || typeof heads !== 'number' || typeof width !== 'number' || typeof n !== 'number' || 2 * n > width) {
        throw new RangeError(`rotate: a must be [b, s, heads, 2n or more] with numbers for the last two and for n, got [${a.shape}] and cos [${cos.shape}]`);
      }
      const perBatch = (angles: Value): Value => {
        const row = reshape(angles, [1, s, n]);
        return b === 1 ? row : one('Expand', [row, lengths([b, s, n])], [b, s, n]);
      };
      const flat = reshape(a, [b, s, heads * width]);
      return reshape(one('RotaryEmbedding', [flat, perBatch(cos), perBatch(sin)], flat.shape, { num_heads: int(heads), ...(2 * n < width ? { rotary_embedding_dim: int(2 * n) } : {}) }), a.shape);
    },
    gather: (table, indices) => one('Gather', [table, indices], [...indices.shape, ...table.shape.slice(1)], { axis: int(0) }),
    pick: (a, indices) => one('GatherElements', [a, column(indices)], [...a.shape.slice(0, -1), 1], { axis: int(-1) }),
    concat(axis, parts) {
      const [first] = parts;
      if (first === undefined) throw new RangeError('concat: needs at least one part, got none');
      if (parts.length === 1) return first;
      const shape = first.shape.map((dim, i) => (i === axis ? parts.map((part) => at(part.shape, axis)).reduce((x, y) => addDims(x, y)) : dim));
      const sources = axis === first.shape.length - 1 ? beforeReshape(parts, true) : null;
      return sources === null ? one('Concat', parts, shape, { axis: int(axis) }) : reshape(g.concat(at(sources, 0).shape.length - 1, sources), shape);
    },
    split(a, axis, sizes) {
      const rest = sizes.reduce((left, size) => subDims(left, size), at(a.shape, axis));
      if (rest !== 0) throw new RangeError(`split: lengths [${sizes}] must add up to ${a.shape[axis]} (axis ${axis} of [${a.shape}])`);
      if (sizes.length === 1) return [a];
      const shapeOf = (of: Value, along: number, size: Dim): Dim[] => of.shape.map((dim, i) => (i === along ? size : dim));
      const [source] = axis === a.shape.length - 1 ? beforeReshape([a], true) ?? [] : [];
      if (source !== undefined) return g.split(source, source.shape.length - 1, sizes).map((piece, i) => reshape(piece, shapeOf(a, axis, at(sizes, i))));
      return append('Split', [a, lengths(sizes)], sizes.map((size) => ({ dtype: a.dtype, shape: shapeOf(a, axis, size) })), { axis: int(axis) });
    },
    reshape,
    expand: (a, shape) => (sameShape(a.shape, shape) ? a : one('Expand', [a, lengths(shape)], shape)),
    fill: (like, shape, value) => one('ConstantOfShape', [lengths(shape)], shape, { value: { kind: 'tensor', value: filled(value, like.dtype) } }, like.dtype),
    addRows(table, indices, updates) {
      // Not ScatterND: onnxruntime 1.29 adds repeated rows from several threads without a lock, and loses some.
      const [rows = 0, ...row] = table.shape;
      const [count, width] = [productOfDims(indices.shape), productOfDims(row)];
      const everywhere = one('Expand', [reshape(indices, [count, 1]), lengths([count, width])], [count, width]);
      const flat = one('ScatterElements', [reshape(table, [rows, width]), everywhere, reshape(updates, [count, width])], [rows, width], { axis: int(0), reduction: text('add') });
      return reshape(flat, table.shape);
    },
    addPicked: (a, indices, updates) => one('ScatterElements', [a, column(indices), updates], a.shape, { axis: int(-1), reduction: text('add') }),
    maxAbs: (a) => reduceLast('ReduceMax', unary('Abs', a)),
    cast: (a, dtype) => (a.dtype === dtype ? a : one('Cast', [a], a.shape, { to: int(dtype === 'float16' ? 10 : 1) }, dtype)),
    encode: codes.encode, decode: codes.decode, einsumCodes: codes.einsumCodes, weighCodes: codes.weighCodes,
    causalMask(queryPositions, keyPositions, window) {
      const query = column(queryPositions); // [s, 1]
      const key = reshape(keyPositions, [1, ...keyPositions.shape]); // [1, t]
      const past = broadcast('LessOrEqual', key, query, 'bool');
      const seen = window === null ? past : broadcast('And', past, broadcast('Greater', key, withNumber('Sub', query, window), 'bool'));
      return one('Where', [seen, number(0, 'float32'), number(MASKED, 'float32')], seen.shape, {}, 'float32');
    },
  };
  return g;
}

/** What ConstantOfShape takes: one number as a tensor of one element. */
const filled = (value: number, dtype: DType): HostTensor => toDType({ dtype: 'float64', shape: [1], data: Float64Array.of(value) }, dtype);

function broadcastShape(op: string, a: readonly Dim[], b: readonly Dim[]): Dim[] {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, i): Dim => {
    const left = a[a.length - rank + i] ?? 1;
    const right = b[b.length - rank + i] ?? 1;
    if (left === 1) return right;
    if (right !== 1 && !sameDim(left, right)) throw new RangeError(`${op}: shapes must broadcast, got [${a}] and [${b}]`);
    return left;
  });
}
