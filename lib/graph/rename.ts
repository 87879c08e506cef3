/** Renaming edges, ports and symbols, and the names a node reads. */
import { bodiesOf } from './constants.ts';
import { substituteDim } from './dims.ts';
import type { Attribute, Dim, Node, Port, Subgraph } from './subgraph.ts';

/** Names the nodes of a body read from outside it. */
function captured(body: Subgraph): string[] {
  const own = new Set([...body.inputs.map((p) => p.name), ...body.constants.keys(), ...body.nodes.flatMap((n) => n.outputs)]);
  return [...body.nodes.flatMap(readsOf), ...body.outputs.map((p) => p.name)].filter((name) => !own.has(name));
}

/** The edges a node needs: its inputs and what its bodies (Loop, Scan, If) read from around them. */
export const readsOf = (node: Node): string[] => [...node.inputs.filter((name) => name !== ''), ...bodiesOf(node).flatMap(captured)];

/** The node with every edge renamed, in its bodies too. */
export function renameNode(node: Node, rename: (edge: string) => string): Node {
  const edge = (name: string): string => (name === '' ? '' : rename(name));
  const attribute = (a: Attribute): Attribute => (a.kind === 'graph' ? { kind: 'graph', value: renameEdges(a.value, rename) } : a);
  const attributes = Object.fromEntries(Object.entries(node.attributes).map(([name, a]) => [name, attribute(a)]));
  return { ...node, inputs: node.inputs.map(edge), outputs: node.outputs.map(edge), attributes };
}

/** The subgraph with every edge renamed: ports, constants and what lies between. The caller keeps names unique. */
export function renameEdges(subgraph: Subgraph, rename: (edge: string) => string): Subgraph {
  const port = (p: Port): Port => ({ ...p, name: rename(p.name) });
  return {
    ...subgraph,
    inputs: subgraph.inputs.map(port),
    outputs: subgraph.outputs.map(port),
    nodes: subgraph.nodes.map((node) => renameNode(node, rename)),
    constants: new Map([...subgraph.constants].map(([name, constant]) => [rename(name), constant])),
  };
}

/** Gives ports new names, e.g. renamePorts(layer, { x: 'hidden' }); throws on a port that is absent or a name in use. */
export function renamePorts(subgraph: Subgraph, names: Readonly<Record<string, string>>): Subgraph {
  const ports = new Set([...subgraph.inputs, ...subgraph.outputs].map((p) => p.name));
  const edges = new Set([...ports, ...subgraph.constants.keys(), ...subgraph.nodes.flatMap((n) => n.outputs)]);
  for (const [from, to] of Object.entries(names)) {
    if (!ports.has(from)) throw new Error(`renamePorts: a port of ${subgraph.name} must be one of ${[...ports].join(', ')}, got ${from}`);
    const taken = edges.has(to) && names[to] === undefined;
    if (to !== from && (taken || Object.values(names).filter((name) => name === to).length > 1)) {
      throw new Error(`renamePorts: names of ${subgraph.name} must be unique, got ${to} for ${from}`);
    }
  }
  return renameEdges(subgraph, (edge) => (Object.hasOwn(names, edge) ? names[edge]! : edge));
}

/** Replaces symbols in the shapes of the ports, e.g. { s: 1 } or { p: 'total-s' }. Says what callers feed; nodes stay. */
export function replaceSymbols(subgraph: Subgraph, symbols: Readonly<Record<string, Dim>>): Subgraph {
  const port = (p: Port): Port => ({ ...p, shape: p.shape.map((dim) => substituteDim(dim, symbols)) });
  return { ...subgraph, inputs: subgraph.inputs.map(port), outputs: subgraph.outputs.map(port) };
}
