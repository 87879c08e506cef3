/** A Split whose pieces are split again, as one node. */
import { int } from '../graph/record.ts';
import type { Node, Subgraph } from '../graph/subgraph.ts';
import { constantNumbers } from './constant-weight.ts';
import { addedIntegers, edgesOf, freshNames, intAttribute, operator, replaceNodes, soleReader, standard, type Edges } from './pass.ts';

/** The last axis of rows [b, s, n]: passes, which only split such rows, say -1, recordings 2. */
const LAST_AXIS = [-1, 2];

/**
 * Split along the last axis of rows [b, s, n], and Splits of its pieces along the same axis -> one Split. Numbers stay the
 * same. In a graph that appends to its cache this also makes queries and the pieces of a new latent outputs of one node,
 * which appendsAreOrdered needs.
 */
export function mergeSplits(subgraph: Subgraph): Subgraph {
  const edges = edgesOf(subgraph), fresh = freshNames(subgraph);
  const replaced = new Map<Node, readonly Node[]>(), { constants, integers } = addedIntegers(fresh);
  for (const node of subgraph.nodes) {
    const sizes = sizesOf(edges, node);
    if (sizes === null || replaced.has(node)) continue;
    const inner = node.outputs.map((edge, i) => splitOfPiece(edges, edge, sizes[i]!)), axis = intAttribute(node, 'axis', 0);
    if (inner.every((piece) => piece === null)) continue;
    const whole = inner.flatMap((piece, i) => piece?.sizes ?? [sizes[i]!]);
    for (const piece of inner) if (piece !== null) replaced.set(piece.node, []);
    replaced.set(node, [standard('Split', [node.inputs[0]!, integers(`${node.inputs[0]!}.lengths`, whole)], inner.flatMap((piece, i) => piece?.node.outputs ?? [node.outputs[i]!]), { axis: int(axis) })]);
  }
  return replaceNodes(subgraph, replaced, constants);
}

/** The Split that alone reads a piece of a known width, and its sizes. */
function splitOfPiece(edges: Edges, edge: string, width: number): { readonly node: Node; readonly sizes: readonly number[] } | null {
  const node = soleReader(edges, edge), sizes = node === undefined ? null : sizesOf(edges, node);
  return node === undefined || sizes === null || sizes.reduce((a, b) => a + b, 0) !== width ? null : { node, sizes };
}

const sizesOf = (edges: Edges, node: Node): readonly number[] | null =>
  (operator(node) === 'Split' && LAST_AXIS.includes(intAttribute(node, 'axis', 0)) ? constantNumbers(edges, node.inputs[1]) : null);
