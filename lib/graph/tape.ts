/**
 * A subgraph under construction: nodes, constants, inputs and the lengths of symbolic axes. Equal nodes are recorded
 * once, so a kernel may ask for the same mask, angles or shape in every layer at no cost.
 */
import { at } from '../../kernels/at.ts';
import { termsOfDim } from './dims.ts';
import type { Attribute, Constant, Dim, DType, HostTensor, Node, Port, Subgraph } from './subgraph.ts';

/** A named edge of the subgraph under construction. */
export type Value = Port;

type Attributes = Readonly<Record<string, Attribute>>;

export interface Tape {
  /** Declares an input; its symbols become known lengths. */
  input(port: Port): Value;
  /** A named weight of any constant kind; half-width floats are widened to float32 inside the graph. */
  parameter(name: string, constant: Constant): Value;
  /** Appends any operator. */
  append(op: string, inputs: readonly Value[], outputs: readonly Omit<Port, 'name'>[], attributes?: Attributes, domain?: string): Value[];
  /** `append` with one output, of the first operand's element type unless another is given. */
  one(op: string, inputs: readonly Value[], shape: readonly Dim[], attributes?: Attributes, dtype?: DType): Value;
  constant(tensor: HostTensor): Value;
  /** A constant under a name that says its content: asked for twice, it is there once. */
  namedConstant(name: string, tensor: HostTensor): Value;
  /** An int64 vector. */
  integers(values: readonly number[]): Value;
  /** A number of the given element type. */
  number(value: number, dtype: DType): Value;
  /** A shape as an int64 vector, computed in the graph where it has symbols. */
  lengths(dims: readonly Dim[]): Value;
  /** Closes the recording: `outputs` maps public names to values. */
  finish(outputs: Readonly<Record<string, Value>>): Subgraph;
}

export const int = (value: number): Attribute => ({ kind: 'int', value });
export const text = (value: string): Attribute => ({ kind: 'string', value });
export const ints = (value: readonly number[]): Attribute => ({ kind: 'ints', value });

export function openTape(name: string): Tape {
  const inputs: Port[] = [];
  const nodes: Node[] = [];
  const constants = new Map<string, Constant>();
  const recorded = new Map<string, Value[]>();
  const symbolSource = new Map<string, { readonly port: Value; readonly axis: number }>();

  const append: Tape['append'] = (op, from, to, attributes = {}, domain = '') => {
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

  const namedConstant = (key: string, tensor: HostTensor): Value => {
    if (!constants.has(key)) constants.set(key, tensor);
    return { name: key, dtype: tensor.dtype, shape: tensor.shape };
  };
  const integers = (values: readonly number[]): Value =>
    namedConstant(`i64_${values.join('_').replaceAll('-', 'm')}_`, { dtype: 'int64', shape: [values.length], data: BigInt64Array.from(values, BigInt) });
  /** A number of the same dtype as `like`. */
  const number = (value: number, like: DType): Value =>
    like === 'float64'
      ? namedConstant(`f64_${value}`, { dtype: 'float64', shape: [], data: Float64Array.of(value) })
      : like === 'int64'
        ? namedConstant(`i64_${value}`, { dtype: 'int64', shape: [], data: BigInt64Array.of(BigInt(value)) })
        : namedConstant(`f32_${value}`, { dtype: 'float32', shape: [], data: Float32Array.of(value) });

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

  return {
    append, one, namedConstant, integers, number, lengths,
    constant(tensor) {
      let number = constants.size;
      while (constants.has(`constant_${number}`)) number++; // a name that a subgraph taken over may have used
      return namedConstant(`constant_${number}`, tensor);
    },
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
  };
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
