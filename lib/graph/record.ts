/**
 * The ONNX reading: each word of the vocabulary appends standard operators (opset 23) to a subgraph. Equal nodes are
 * recorded once, so a kernel may ask for the same mask, angles or shape in every layer at no cost.
 */
import { at } from '../../kernels/at.ts';
import type { Emit } from '../../kernels/emit.ts';
import { addDims, productOfDims, sameDim, subDims, termsOfDim } from './dims.ts';
import { toDType } from '../tensor.ts';
import { mapValues } from '../map-values.ts';
import { lowerEinsum } from './lower-einsum.ts';
import type { Attribute, Constant, Dim, DType, HostTensor, Node, Port, Subgraph } from './subgraph.ts';

/** A named edge of the subgraph under construction. */
export type Value = Port;

export interface Recorder extends Emit<Value> {
  /** Declares an input; its symbols become known lengths. */
  input(port: Port): Value;
  /** A named weight of any constant kind; half-width floats are widened to float32 inside the graph. */
  parameter(name: string, constant: Constant): Value;
  /** Appends any operator: for passes and for words that only this reading has. */
  append(op: string, inputs: readonly Value[], outputs: readonly Omit<Port, 'name'>[], attributes?: Readonly<Record<string, Attribute>>, domain?: string): Value[];
  /** Closes the recording: `outputs` maps public names to values. */
  finish(outputs: Readonly<Record<string, Value>>): Subgraph;
}

export const int = (value: number): Attribute => ({ kind: 'int', value });
export const text = (value: string): Attribute => ({ kind: 'string', value });
export const ints = (value: readonly number[]): Attribute => ({ kind: 'ints', value });

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
  const inputs: Port[] = [];
  const nodes: Node[] = [];
  const constants = new Map<string, Constant>();
  const recorded = new Map<string, Value[]>();
  const reshapedFrom = new Map<string, Value>();
  const transposedFrom = new Map<string, { readonly source: Value; readonly order: readonly number[] }>();
  const symbolSource = new Map<string, { readonly port: Value; readonly axis: number }>();

  const append: Recorder['append'] = (op, from, to, attributes = {}, domain = '') => {
    const key = JSON.stringify([op, domain, from.map((value) => value.name), attributes, to.length]);
    const known = recorded.get(key);
    if (known !== undefined) return known;
    const base = `${op}_${nodes.length}`;
    const outputs = to.map((port, i) => ({ ...port, name: to.length === 1 ? base : `${base}_${i}` }));
    nodes.push({ op, domain, inputs: from.map((value) => value.name), outputs: outputs.map((value) => value.name), attributes });
    recorded.set(key, outputs);
    return outputs;
  };
  const one = (op: string, from: readonly Value[], shape: readonly Dim[], attributes: Readonly<Record<string, Attribute>> = {}, dtype: DType = at(from, 0).dtype): Value =>
    at(append(op, from, [{ dtype, shape }], attributes), 0);

  const addConstant = (key: string, tensor: HostTensor): Value => {
    if (!constants.has(key)) constants.set(key, tensor);
    return { name: key, dtype: tensor.dtype, shape: tensor.shape };
  };
  const integers = (values: readonly number[]): Value =>
    addConstant(`i64_${values.join('_').replaceAll('-', 'm')}_`, { dtype: 'int64', shape: [values.length], data: BigInt64Array.from(values, BigInt) });
  /** A number of the same dtype as `like`. */
  const number = (value: number, like: DType): Value =>
    like === 'float64'
      ? addConstant(`f64_${value}`, { dtype: 'float64', shape: [], data: Float64Array.of(value) })
      : like === 'int64'
        ? addConstant(`i64_${value}`, { dtype: 'int64', shape: [], data: BigInt64Array.of(BigInt(value)) })
        : addConstant(`f32_${value}`, { dtype: 'float32', shape: [], data: Float32Array.of(value) });

  /** One symbol's length as int64 [1], read off the input that declares it. */
  const symbolLength = (symbol: string): Value => {
    const source = symbolSource.get(symbol);
    if (source === undefined) throw new RangeError(`record: symbol ${symbol} of ${name} must be an axis of some input, got none`);
    return one('Shape', [source.port], [1], { start: int(source.axis), end: int(source.axis + 1) }, 'int64');
  };
  const length = (dim: Dim): Value => {
    if (typeof dim === 'number') return integers([dim]);
    const terms = termsOfDim(dim).map(({ coefficient, symbols }) => {
      const product = symbols.map(symbolLength).reduce<Value | null>((a, b) => (a === null ? b : one('Mul', [a, b], [1])), null);
      if (product === null) return integers([coefficient]);
      return coefficient === 1 ? product : one('Mul', [product, integers([coefficient])], [1]);
    });
    return terms.reduce((a, b) => one('Add', [a, b], [1]));
  };
  const lengths = (dims: readonly Dim[]): Value =>
    dims.every((dim) => typeof dim === 'number') ? integers(dims) : one('Concat', dims.map(length), [dims.length], { axis: int(0) }, 'int64');

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
  /**
   * Operands before their last Reshape, where an operator that works element by element (or, with `rowwise`, along the
   * last axis) gives the same numbers there: Reshapes then meet and cancel. Null where it does not.
   */
  const beforeReshape = (operands: readonly Value[], rowwise: boolean): readonly Value[] | null => {
    const sources = operands.map((operand) => reshapedFrom.get(operand.name));
    const found = sources.filter((source) => source !== undefined);
    if (found.length < operands.length) return null;
    const lead = (value: Value): string => (rowwise ? value.shape.slice(0, -1) : value.shape).join();
    const sameLead = (values: readonly Value[]): boolean => values.every((value) => lead(value) === lead(at(values, 0)));
    const sameRows = found.every((source, i) => source.shape.at(-1) === at(operands, i).shape.at(-1));
    return sameLead(found) && sameLead(operands) && (!rowwise || sameRows) ? found : null;
  };
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

  const g: Recorder = {
    append,
    input(port) {
      inputs.push(port);
      port.shape.forEach((dim, axis) => {
        if (typeof dim === 'string' && !symbolSource.has(dim)) symbolSource.set(dim, { port, axis });
      });
      return port;
    },
    parameter(key, constant) {
      const known = constants.get(key);
      if (known !== undefined && known !== constant) throw new RangeError(`record: parameter names must be unique in ${name}, got ${key} twice`);
      constants.set(key, constant);
      const value = { name: key, dtype: constant.dtype, shape: constant.shape };
      return constant.dtype === 'bfloat16' || constant.dtype === 'float16' ? one('Cast', [value], value.shape, { to: int(1) }, 'float32') : value;
    },
    finish: (outputs) => close({ name, inputs, outputs: [], nodes, constants }, outputs),
    constant(tensor) {
      return addConstant(`constant_${constants.size}`, tensor);
    },
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
      const [b, s, heads, width] = a.shape;
      if (b === undefined || s === undefined || typeof heads !== 'number' || typeof width !== 'number') {
        throw new RangeError(`rotate: a must be [b, s, heads, 2n] with numbers for the last two, got [${a.shape}]`);
      }
      const perBatch = (angles: Value): Value => {
        const row = reshape(angles, [1, s, width / 2]);
        return b === 1 ? row : one('Expand', [row, lengths([b, s, width / 2])], [b, s, width / 2]);
      };
      const flat = reshape(a, [b, s, heads * width]);
      return reshape(one('RotaryEmbedding', [flat, perBatch(cos), perBatch(sin)], flat.shape, { num_heads: int(heads) }), a.shape);
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

const sameShape = (a: readonly Dim[], b: readonly Dim[]): boolean => a.length === b.length && a.every((dim, i) => sameDim(dim, at(b, i)));

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

/** Gives values their public names (an Identity only where one value has two) and drops what no output needs. */
function close(open: Subgraph, outputs: Readonly<Record<string, Value>>): Subgraph {
  const produced = new Set(open.nodes.flatMap((node) => node.outputs));
  const rename = new Map<string, string>();
  const copies: Node[] = [];
  for (const [port, value] of Object.entries(outputs)) {
    if (produced.has(value.name) && !rename.has(value.name)) rename.set(value.name, port);
    else copies.push({ op: 'Identity', domain: '', inputs: [value.name], outputs: [port], attributes: {} });
  }
  const renamed = (edge: string): string => rename.get(edge) ?? edge;
  const nodes = [...open.nodes, ...copies].map((node) => ({ ...node, inputs: node.inputs.map(renamed), outputs: node.outputs.map(renamed) }));
  const wanted = new Set(Object.keys(outputs));
  const live = nodes.reverse().filter((node) => {
    if (!node.outputs.some((output) => wanted.has(output))) return false;
    for (const input of node.inputs) wanted.add(input);
    return true;
  }).reverse();
  return {
    ...open,
    nodes: live,
    outputs: Object.entries(outputs).map(([port, value]) => ({ ...value, name: port })),
    constants: new Map([...open.constants].filter(([key]) => wanted.has(key))),
  };
}
