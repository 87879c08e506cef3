/** Scores of a few queries against the rows of a long cache, with the rows on the left of the product. */
import { int, ints } from '../graph/record.ts';
import type { Node, Subgraph } from '../graph/subgraph.ts';
import { cachedRowsPort, knownRows, scoredMatrix } from './cached-rows.ts';
import { contrib, edgesOf, operator, replaceNodes, soleReader, standard, type Edges } from './pass.ts';

/** A product q C^T: queries q [n, c], n more than one and known when recorded, and cached rows C [p, c]. */
interface Scores {
  readonly node: Node;
  readonly queries: string;
  readonly rows: string;
}

/**
 * MatMul(q, Transpose(C)) with cached rows C, an input (or views and widening Casts of one) whose number of rows is a symbol -> the
 * transpose of FusedMatMul(C, q, transB = 1). The engine packs what stands on the right anew in every run, and turns it
 * first where it is transposed: so it packs the few queries, and the cache passes through once as it lies. Of a sum of two
 * such products only the sum is transposed. One or two operators more a layer: a gain from about a thousand rows on.
 * Numbers stay the same to float32 rounding.
 */
export function scoreByRows(subgraph: Subgraph): Subgraph {
  const edges = edgesOf(subgraph), replaced = new Map<Node, readonly Node[]>();
  const found = new Map(subgraph.nodes.flatMap((node) => scoresOf(subgraph, edges, node)).map((scores) => [scores.node.outputs[0]!, scores]));
  const turned = (edge: string): string => `${edge}.by_rows`;
  const product = ({ node, queries, rows }: Scores): Node => contrib('FusedMatMul', [rows, queries], [turned(node.outputs[0]!)], { transB: int(1) });
  const turn = (edge: string): Node => standard('Transpose', [turned(edge)], [edge], { perm: ints([1, 0]) });
  for (const scores of found.values()) {
    const output = scores.node.outputs[0]!, reader = soleReader(edges, output);
    const isSum = reader !== undefined && operator(reader) === 'Add' && reader.inputs.every((edge) => found.has(edge) && soleReader(edges, edge) === reader);
    replaced.set(scores.node, isSum ? [product(scores)] : [product(scores), turn(output)]);
    if (isSum) replaced.set(reader, [standard('Add', reader.inputs.map(turned), [turned(reader.outputs[0]!)]), turn(reader.outputs[0]!)]);
  }
  return replaceNodes(subgraph, replaced);
}

/** A single row the engine multiplies without packing anything: with it on the right a product takes five times as long. */
function scoresOf(subgraph: Subgraph, edges: Edges, node: Node): Scores[] {
  const rows = scoredMatrix(edges, node), [queries = ''] = node.inputs;
  return rows === null || (knownRows(edges, queries) ?? 1) === 1 || cachedRowsPort(subgraph, edges, rows) === null ? [] : [{ node, queries, rows }];
}
