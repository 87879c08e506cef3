/** A view of a view, as one view. */
import { isStored, type Node, type Subgraph } from '../graph/subgraph.ts';
import { edgesOf, operator, replaceNodes, type Edges } from './pass.ts';

/**
 * Reshape(Reshape(x)) -> Reshape(x). What other passes put around the products they rewrite meets the views that were there.
 * Numbers stay the same; a shape that copies axes of its input (0) or is computed stays as it is.
 */
export function mergeReshapes(subgraph: Subgraph): Subgraph {
  const edges = edgesOf(subgraph);
  return replaceNodes(subgraph, new Map(subgraph.nodes.flatMap((node): [Node, readonly Node[]][] => {
    const [input = '', shape = ''] = node.inputs, source = operator(node) === 'Reshape' && isWhole(edges, shape) ? throughReshapes(edges, input) : input;
    return source === input ? [] : [[node, [{ ...node, inputs: [source, shape] }]]];
  })));
}

/** Whether a shape says all it means: lengths, and -1 for the one that is left. */
function isWhole(edges: Edges, shape: string): boolean {
  const constant = edges.constant(shape);
  return constant !== undefined && !isStored(constant) && Array.from<number | bigint, number>(constant.data, Number).every((length) => length !== 0);
}

function throughReshapes(edges: Edges, edge: string): string {
  const node = edges.producer(edge);
  return node !== undefined && operator(node) === 'Reshape' ? throughReshapes(edges, node.inputs[0]!) : edge;
}
