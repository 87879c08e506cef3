/**
 * A pass rewrites a subgraph: a pure function, records in, new records out. It keeps ports, and what it does not touch
 * it passes on as the same record, so constants that several nodes share stay shared. Passes look at the nodes of the
 * subgraph itself, not into the bodies of Loop, Scan and If.
 */
import { prune } from '../graph/compose.ts';
import { readsOf } from '../graph/rename.ts';
import type { Attribute, Constant, Node, Subgraph } from '../graph/subgraph.ts';

/** Any function of this type goes between two of ours. */
export type Pass = (subgraph: Subgraph) => Subgraph;

/** Runs passes one after another. */
export const runPasses = (subgraph: Subgraph, passes: readonly Pass[]): Subgraph => passes.reduce((before, pass) => pass(before), subgraph);

/** Who writes and who reads each edge. */
export interface Edges {
  /** The node that writes an edge; none for inputs and constants. */
  producer(edge: string): Node | undefined;
  /** The nodes that read an edge, from inside their bodies too. */
  readers(edge: string): readonly Node[];
  /** Whether an edge is an output of the subgraph. */
  isOutput(edge: string): boolean;
  constant(edge: string): Constant | undefined;
}

export function edgesOf(subgraph: Subgraph): Edges {
  const producers = new Map<string, Node>(), readers = new Map<string, Node[]>();
  for (const node of subgraph.nodes) {
    for (const edge of node.outputs) if (edge !== '') producers.set(edge, node);
    for (const edge of new Set(readsOf(node))) {
      const known = readers.get(edge);
      if (known === undefined) readers.set(edge, [node]);
      else known.push(node);
    }
  }
  const outputs = new Set(subgraph.outputs.map((port) => port.name));
  return {
    producer: (edge) => producers.get(edge),
    readers: (edge) => readers.get(edge) ?? [],
    isOutput: (edge) => outputs.has(edge),
    constant: (edge) => subgraph.constants.get(edge),
  };
}

/** The one node that reads an edge, undefined when there are several or the edge is an output. */
export function soleReader(edges: Edges, edge: string): Node | undefined {
  const readers = edges.readers(edge);
  return readers.length === 1 && !edges.isOutput(edge) ? readers[0] : undefined;
}

/** Hands out edge names that the subgraph does not have yet: `base`, `base_1`, ... */
export function freshNames(subgraph: Subgraph): (base: string) => string {
  const taken = new Set([...subgraph.inputs.map((port) => port.name), ...subgraph.constants.keys(), ...subgraph.nodes.flatMap((node) => node.outputs)]);
  return (base) => {
    let name = base;
    for (let i = 1; taken.has(name); i++) name = `${base}_${i}`;
    taken.add(name);
    return name;
  };
}

/** Lists of whole numbers that a pass adds as constants under names of its own: lengths, shapes, axes. */
export function addedIntegers(fresh: (base: string) => string): { readonly constants: Map<string, Constant>; integers(base: string, values: readonly number[]): string } {
  const constants = new Map<string, Constant>();
  return {
    constants,
    integers(base, values) {
      const name = fresh(base);
      constants.set(name, { dtype: 'int64', shape: [values.length], data: BigInt64Array.from(values, BigInt) });
      return name;
    },
  };
}

/**
 * The subgraph with each node of `replacements` replaced where it stands (by nothing: []), with `constants` added, and
 * without what no output needs any more. Inputs stay, so that callers need not change their feeds.
 */
export function replaceNodes(subgraph: Subgraph, replacements: ReadonlyMap<Node, readonly Node[]>, constants: ReadonlyMap<string, Constant> = new Map()): Subgraph {
  if (replacements.size === 0) return subgraph;
  return prune({
    ...subgraph,
    nodes: subgraph.nodes.flatMap((node) => replacements.get(node) ?? [node]),
    constants: new Map([...subgraph.constants, ...constants]),
  });
}

/** The value of an int attribute, or what the operator takes when it is absent. */
export function intAttribute(node: Node, name: string, fallback: number): number {
  const attribute = node.attributes[name];
  return attribute?.kind === 'int' ? attribute.value : fallback;
}

/** The value of a float attribute, or what the operator takes when it is absent. */
export function floatAttribute(node: Node, name: string, fallback: number): number {
  const attribute = node.attributes[name];
  return attribute?.kind === 'float' ? attribute.value : fallback;
}

export const float = (value: number): Attribute => ({ kind: 'float', value });

/** The operator's name with its domain: `MatMul`, `com.microsoft:MatMulNBits`. */
export const operator = (node: Node): string => (node.domain === '' ? node.op : `${node.domain}:${node.op}`);

/** Operators that only look at memory another way: the engine makes no copy, or takes them into the product behind them. */
const VIEWS = ['Reshape', 'Transpose', 'Unsqueeze', 'Squeeze'];
export const isView = (node: Node): boolean => VIEWS.includes(operator(node));

/** A node of the com.microsoft operator set. */
export const contrib = (op: string, inputs: readonly string[], outputs: readonly string[], attributes: Readonly<Record<string, Attribute>> = {}): Node =>
  ({ op, domain: 'com.microsoft', inputs, outputs, attributes });

/** A node of the standard operator set. */
export const standard = (op: string, inputs: readonly string[], outputs: readonly string[], attributes: Readonly<Record<string, Attribute>> = {}): Node =>
  ({ op, domain: '', inputs, outputs, attributes });
