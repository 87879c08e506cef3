/** A view of a view, as one view. */
import type { Node, Subgraph } from '../graph/subgraph.ts';
import { edgesOf, operator, replaceNodes, type Edges } from './pass.ts';
import { viewedAs } from './views.ts';

/**
 * Reshape(Reshape(x)) -> Reshape(x). What other passes put around the products they rewrite meets the views that were there.
 * Numbers stay the same; a shape that copies axes of its input (0) or is computed stays as it is.
 */
export function mergeReshapes(subgraph: Subgraph): Subgraph {
  const edges = edgesOf(subgraph);
  return replaceNodes(subgraph, new Map(subgraph.nodes.flatMap((node): [Node, readonly Node[]][] => {
    const [input = '', shape = ''] = node.inputs, source = viewedAs(edges, node.outputs[0]!) === null ? input : throughReshapes(edges, input);
    return source === input ? [] : [[node, [{ ...node, inputs: [source, shape] }]]];
  })));
}

function throughReshapes(edges: Edges, edge: string): string {
  const node = edges.producer(edge);
  return node !== undefined && operator(node) === 'Reshape' ? throughReshapes(edges, node.inputs[0]!) : edge;
}
