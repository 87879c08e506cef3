/** Products of whole numbers that come out in float32, with the scale of each column. */
import type { Constant, Node, Subgraph } from '../graph/subgraph.ts';
import { contrib, edgesOf, freshNames, intAttribute, operator, replaceNodes, soleReader, standard, type Edges } from './pass.ts';
import { viewedAs } from './views.ts';

/** As a cast names it. */
const FLOAT32 = 1;

/**
 * Mul(Cast(MatMulInteger(a, b)), scales) with scales [1, columns] -> com.microsoft MatMulIntegerToFloat, which scales sums
 * while it has them: two runs less over a result as long as the cache. Numbers stay the same to float32 rounding.
 */
export function fuseIntegerProducts(subgraph: Subgraph): Subgraph {
  const edges = edgesOf(subgraph), fresh = freshNames(subgraph);
  const replaced = new Map<Node, readonly Node[]>(), constants = new Map<string, Constant>();
  const one = fresh('integer_product.one');
  for (const product of subgraph.nodes) {
    const cast = operator(product) === 'MatMulInteger' ? soleReader(edges, product.outputs[0]!) : undefined;
    const [a = '', b = '', zeroA = '', zeroB = ''] = product.inputs;
    if (cast === undefined || operator(cast) !== 'Cast' || intAttribute(cast, 'to', 0) !== FLOAT32 || zeroA === '' || zeroB === '') continue;
    const scaled = soleReader(edges, cast.outputs[0]!);
    if (scaled === undefined || operator(scaled) !== 'Mul') continue;
    const scales = scaled.inputs.find((edge) => edge !== cast.outputs[0])!, columns = columnsOf(edges, scales);
    if (columns === null) continue;
    const flat = fresh(`${scales}.flat`), count = fresh(`${flat}.count`);
    constants.set(one, { dtype: 'float32', shape: [], data: Float32Array.of(1) });
    constants.set(count, { dtype: 'int64', shape: [1], data: BigInt64Array.of(BigInt(columns)) });
    replaced.set(product, []).set(cast, []);
    replaced.set(scaled, [standard('Reshape', [beforeReshapes(edges, scales), count], [flat]), contrib('MatMulIntegerToFloat', [a, b, one, flat, zeroA, zeroB], [scaled.outputs[0]!])]);
  }
  return replaceNodes(subgraph, replaced, constants);
}

/** What any number of Reshapes made an edge of: the same numbers in the same order, which other views do not promise. */
function beforeReshapes(edges: Edges, edge: string): string {
  const view = edges.producer(edge);
  return view !== undefined && operator(view) === 'Reshape' ? beforeReshapes(edges, view.inputs[0]!) : edge;
}

/** n of an edge that a Reshape has made [1, n]. */
function columnsOf(edges: Edges, edge: string): number | null {
  const [rows, columns, ...more] = viewedAs(edges, edge) ?? [];
  return rows === 1 && columns !== undefined && columns > 0 && more.length === 0 ? columns : null;
}
