/** The order of reading and writing in a graph that appends rows to memory it also reads. */
import type { Node, Subgraph } from '../graph/subgraph.ts';
import { edgesOf, isView, type Edges } from './pass.ts';

/** An input, and the output whose memory is the end of the input's. */
export interface Append {
  readonly input: string;
  readonly output: string;
}

/** Nodes that read the elements of an edge, past views of it. */
const elementReaders = (edges: Edges, edge: string): Node[] =>
  edges.readers(edge).flatMap((node) => (isView(node) && node.inputs[0] === edge ? elementReaders(edges, node.outputs[0]!) : [node]));

/** All nodes that come after a node because they need what it makes. */
function descendants(edges: Edges, node: Node): ReadonlySet<Node> {
  const found = new Set<Node>(), waiting = [node];
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    for (const edge of next.outputs) {
      for (const reader of edge === '' ? [] : edges.readers(edge)) {
        if (found.has(reader)) continue;
        found.add(reader);
        waiting.push(reader);
      }
    }
  }
  return found;
}

/**
 * Whether every reader of an input's memory needs another result of the node that writes the output: then no order in
 * which an engine runs the nodes can read rows before they are there. An engine does not know of the shared memory; what
 * else it might do is left to a test on the open graph (lib/session/append-in-place.ts).
 */
export function appendsAreOrdered(subgraph: Subgraph, appends: readonly Append[]): boolean {
  const edges = edgesOf(subgraph), after = new Map<Node, ReadonlySet<Node>>();
  return appends.every(({ input, output }) => {
    const writer = edges.producer(output);
    if (writer === undefined) return false;
    const later = after.get(writer) ?? descendants(edges, writer);
    after.set(writer, later);
    return elementReaders(edges, input).every((reader) => later.has(reader));
  });
}
