/** A table that rows are gathered from, apart from the matrix of the same numbers that a product reads. */
import { isStored, type Constant, type Node, type Subgraph } from '../graph/subgraph.ts';
import { edgesOf, freshNames, operator, replaceNodes } from './pass.ts';

/**
 * A stored constant that a Gather reads beside other nodes (a tied embedding) becomes two constants in the same place of
 * its file. The engine maps each for itself: what a product has packed it lets go, and of what rows are gathered from only
 * those rows come into memory, where one constant for both would stay whole. No number and no byte of a file changes.
 */
export function gatherApart(subgraph: Subgraph): Subgraph {
  const edges = edgesOf(subgraph), fresh = freshNames(subgraph);
  const replaced = new Map<Node, readonly Node[]>(), constants = new Map<string, Constant>();
  for (const node of subgraph.nodes) {
    const [table = '', ...rest] = node.inputs, constant = edges.constant(table);
    if (operator(node) !== 'Gather' || constant === undefined || !isStored(constant) || edges.readers(table).every((reader) => operator(reader) === 'Gather')) continue;
    const rows = fresh(`${table}.rows`);
    constants.set(rows, constant);
    replaced.set(node, [{ ...node, inputs: [rows, ...rest] }]);
  }
  return replaceNodes(subgraph, replaced, constants);
}
