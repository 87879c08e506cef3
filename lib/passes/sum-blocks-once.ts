/** Sums over blocks of rows that are joined behind, as one sum of what is joined before. */
import { int } from '../graph/record.ts';
import type { Node, Subgraph } from '../graph/subgraph.ts';
import { constantNumbers } from './constant-weight.ts';
import { addedIntegers, edgesOf, freshNames, intAttribute, operator, replaceNodes, soleReader, standard, type Edges } from './pass.ts';
import { isOuterAxis, viewedAs } from './views.ts';

/** Products [blocks, 1, width] whose sums over blocks a Concat joins, and the lengths of what it gives. */
interface JoinedSums {
  readonly join: Node;
  readonly products: readonly string[];
  readonly lengths: readonly number[];
}

/**
 * Concat of ReduceSum(x_i, axis 0), x_i: [blocks, 1, width] as `blockSingleRows` makes them, each seen as [1, ..., 1, width] -> one
 * ReduceSum of the x_i side by side: for n of them n - 1 sums and as many views less. Numbers stay the same.
 */
export function sumBlocksOnce(subgraph: Subgraph): Subgraph {
  const edges = edgesOf(subgraph), fresh = freshNames(subgraph);
  const replaced = new Map<Node, readonly Node[]>(), { constants, integers } = addedIntegers(fresh);
  for (const { join, products, lengths } of subgraph.nodes.flatMap((node) => joinedSums(edges, node))) {
    const [output = ''] = join.outputs, blocks = fresh(`${output}.blocks`), sums = fresh(`${output}.sums`);
    replaced.set(join, [
      standard('Concat', products, [blocks], { axis: int(1) }),
      standard('ReduceSum', [blocks, integers(`${sums}.axis`, [0])], [sums], { keepdims: int(0) }),
      standard('Reshape', [sums, integers(`${output}.shape`, lengths)], [output]),
    ]);
  }
  return replaceNodes(subgraph, replaced, constants);
}

function joinedSums(edges: Edges, join: Node): JoinedSums[] {
  if (operator(join) !== 'Concat') return [];
  const products = join.inputs.flatMap((edge) => summedBlocks(edges, edge) ?? []), viewed = join.inputs.map((edge) => viewedAs(edges, edge));
  const [lengths = null] = viewed, axis = intAttribute(join, 'axis', 0);
  // Behind each other in memory: nothing but the width is longer than 1, and it is not the axis that grows.
  if (products.length !== join.inputs.length || lengths === null || axis < 0 || axis >= lengths.length - 1 || !isOuterAxis(lengths, lengths.length - 1)) return [];
  if (lengths.includes(-1) || viewed.some((own) => own?.join() !== lengths.join())) return [];
  return [{ join, products, lengths: lengths.map((length, i) => (i === axis ? products.length : length)) }];
}

/** The product [blocks, 1, width] whose sum over blocks, seen as [1, ..., width], an edge is for one reader. */
function summedBlocks(edges: Edges, edge: string): string | null {
  const view = soleReader(edges, edge) === undefined ? undefined : edges.producer(edge), sum = edges.producer(view?.inputs[0] ?? '');
  if (sum === undefined || soleReader(edges, sum.outputs[0]!) === undefined || !isSumOverFirst(edges, sum)) return null;
  const product = edges.producer(sum.inputs[0]!), [left, right] = product?.inputs.map((input) => viewedAs(edges, input)) ?? [];
  if (product === undefined || operator(product) !== 'MatMul' || left?.length !== 3 || right?.length !== 3) return null;
  return left[0] === right[0] && left[1] === 1 && right[2] === viewedAs(edges, edge)?.at(-1) ? product.outputs[0]! : null;
}

const isSumOverFirst = (edges: Edges, node: Node): boolean =>
  operator(node) === 'ReduceSum' && intAttribute(node, 'keepdims', 1) === 0 && constantNumbers(edges, node.inputs[1])?.join() === '0';
