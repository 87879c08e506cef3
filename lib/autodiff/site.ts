/** What the reader of an operator sees: its operands as tracked values, its attributes, and the shapes around it. */
import type { Dim, Emit, HostTensor } from '../../kernels/emit.ts';
import type { Value } from '../graph/record.ts';
import { isStored, type Constant, type Node, type Port } from '../graph/subgraph.ts';
import type { Tracked } from './traced.ts';

export type Known = Tracked<Value>;
export type Facts = ReadonlyMap<string, Pick<Port, 'dtype' | 'shape'>>;

/** An edge of the subgraph that is read; what `turned` tells is that it is a transposition of another value. */
export interface Edge {
  value(): Known;
  readonly turned?: { readonly source: Known; readonly order: readonly number[] };
}

export interface Site {
  readonly node: Node;
  readonly g: Emit<Known>;
  input(index: number): Known;
  has(index: number): boolean;
  /** The operand before a transposition: axis i of the operand is axis order[i] of the source. */
  turned(index: number): { readonly source: Known; readonly order: readonly number[] };
  shape(index: number): readonly Dim[];
  result(index?: number): readonly Dim[];
  /** The lengths and dtype of an operand and of the result are the same kind of float. */
  sameType(index: number): boolean;
  int(name: string, fallback: number): number;
  float(name: string, fallback: number): number;
  text(name: string): string | null;
  /** Integers of a constant operand, or of the attribute that older operator sets have instead; null where neither is given. */
  integers(index: number, attribute: string): readonly number[] | null;
  /** The one number of a constant operand, or null. */
  number(index: number): number | null;
  /** An axis counted from the front. */
  axis(value: number, rank: number): number;
  /** The operator that made an operand, or null. */
  maker(index: number): Node | null;
  /** An operand of another node. */
  edge(name: string): Known;
  refuse(rule: string, got: string): never;
}

const hostOf = (constant: Constant | undefined): HostTensor | null => (constant === undefined || isStored(constant) ? null : constant);
const numbersOf = (tensor: HostTensor): number[] => Array.from<number | bigint, number>(tensor.data, Number);

export interface Surroundings {
  readonly name: string;
  readonly g: Emit<Known>;
  readonly facts: Facts;
  readonly constants: ReadonlyMap<string, Constant>;
  readonly makers: ReadonlyMap<string, Node>;
  edge(name: string): Edge;
}

export function siteOf(node: Node, { name, g, facts, constants, makers, edge }: Surroundings): Site {
  const label = node.domain === '' ? node.op : `${node.domain}:${node.op}`;
  const refuse = (rule: string, got: string): never => { throw new Error(`differentiate: ${label} -> ${node.outputs.join(', ')} of ${name}: ${rule}, got ${got}`); };
  const nameOf = (index: number): string => node.inputs[index] ?? '';
  const must = (index: number): string => (nameOf(index) === '' ? refuse(`operand ${index} must be given`, 'none') : nameOf(index));
  const shapeOf = (edgeName: string): readonly Dim[] => facts.get(edgeName)?.shape ?? refuse('shapes must be known', edgeName);
  const constant = (index: number): HostTensor | null => {
    const made = makers.get(nameOf(index))?.attributes.value;
    return hostOf(constants.get(nameOf(index))) ?? (made?.kind === 'tensor' ? made.value : null);
  };
  return {
    node, g, refuse,
    input: (index) => edge(must(index)).value(),
    has: (index) => nameOf(index) !== '',
    turned(index) {
      const operand = edge(must(index));
      return operand.turned ?? { source: operand.value(), order: shapeOf(must(index)).map((_, i) => i) };
    },
    shape: (index) => shapeOf(must(index)),
    result: (index = 0) => shapeOf(node.outputs[index] ?? ''),
    sameType: (index) => facts.get(must(index))?.dtype === facts.get(node.outputs[0] ?? '')?.dtype,
    int(attribute, fallback) {
      const found = node.attributes[attribute];
      return found === undefined ? fallback : found.kind === 'int' ? found.value : refuse(`attribute ${attribute} must be an int`, found.kind);
    },
    float(attribute, fallback) {
      const found = node.attributes[attribute];
      return found === undefined ? fallback : found.kind === 'float' ? found.value : refuse(`attribute ${attribute} must be a float`, found.kind);
    },
    text(attribute) {
      const found = node.attributes[attribute];
      return found?.kind === 'string' ? found.value : null;
    },
    integers(index, attribute) {
      const found = node.attributes[attribute];
      if (found?.kind === 'ints') return found.value;
      if (nameOf(index) === '') return null;
      const tensor = constant(index);
      return tensor === null ? refuse(`operand ${index} must be a constant`, nameOf(index)) : numbersOf(tensor);
    },
    number(index) {
      const tensor = constant(index);
      return tensor === null || tensor.data.length !== 1 ? null : numbersOf(tensor)[0] ?? null;
    },
    axis(value, rank) {
      const front = value < 0 ? value + rank : value;
      return front >= 0 && front < rank ? front : refuse(`an axis must be -${rank}..${rank - 1}`, `${value}`);
    },
    maker: (index) => makers.get(nameOf(index)) ?? null,
    edge: (edgeName) => edge(edgeName).value(),
  };
}
