/** Products with a transposed constant read the constant as it lies. */
import { int } from '../graph/record.ts';
import type { Node, Subgraph } from '../graph/subgraph.ts';
import { constantMatrix } from './constant-weight.ts';
import { contrib, edgesOf, operator, replaceNodes } from './pass.ts';

/**
 * MatMul(x, Transpose(W)) with a constant matrix W -> com.microsoft FusedMatMul(x, W, transB = 1). The engine would
 * otherwise transpose W when it opens the graph, which costs time and a copy. Numbers stay the same up to rounding.
 */
export function fuseTransposedWeights(subgraph: Subgraph): Subgraph {
  const edges = edgesOf(subgraph), replaced = new Map<Node, readonly Node[]>();
  for (const node of subgraph.nodes) {
    const [x = '', w = ''] = node.inputs, transpose = edges.producer(w);
    if (operator(node) !== 'MatMul' || transpose === undefined || operator(transpose) !== 'Transpose') continue;
    // Null for a permutation that is no transposition of a matrix, and for anything computed.
    if (constantMatrix(edges, w) === null) continue;
    replaced.set(node, [contrib('FusedMatMul', [x, transpose.inputs[0]!], node.outputs, { transB: int(1) })]);
  }
  return replaceNodes(subgraph, replaced);
}
