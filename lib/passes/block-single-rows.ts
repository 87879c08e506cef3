/** Products of a single row with the rows of a long cache, cut into blocks of them. */
import { divideExactly } from '../graph/dims.ts';
import { int } from '../graph/record.ts';
import type { Node, Subgraph } from '../graph/subgraph.ts';
import { cachedRowsPort, knownRows, scoredMatrix } from './cached-rows.ts';
import { addedIntegers, contrib, edgesOf, freshNames, operator, replaceNodes, standard, type Edges } from './pass.ts';

/** Blocks that rows are cut into: a multiple of the threads that share them, few enough that each is long. */
export const ROW_BLOCKS = 16;

/** A product of one row with cached rows C [p, c]: q [1, c] with their transpose, or w [1, p] with themselves. */
interface RowProduct {
  readonly node: Node;
  readonly kind: 'score' | 'weigh';
  readonly row: string;
  readonly rows: string;
  readonly width: number;
}

/**
 * MatMul(q, Transpose(C)) and MatMul(w, C) with one row on the left and cached rows C of which there are a multiple of
 * ROW_BLOCKS -> the same over C as [ROW_BLOCKS, p / ROW_BLOCKS, c], the sums of blocks added. The engine shares a product of
 * one row out by columns, so that each thread reads a part of every row; blocks it shares out whole: a thread reads memory
 * from end to end, and finds in its own cache what it has just scored. Numbers stay the same to float32 rounding.
 */
export function blockSingleRows(subgraph: Subgraph): Subgraph {
  const edges = edgesOf(subgraph), fresh = freshNames(subgraph);
  const replaced = new Map<Node, readonly Node[]>(), { constants, integers } = addedIntegers(fresh);
  const viewOf = new Map<string, string>(); // one of each array: scores and sums read the same rows
  for (const { node, kind, row, rows, width } of subgraph.nodes.flatMap((one) => rowProductOf(subgraph, edges, one))) {
    const [output = ''] = node.outputs, name = (what: string): string => fresh(`${output}.${what}`);
    const view = (edge: string, dims: readonly number[], to: string): Node => standard('Reshape', [edge, integers(`${to}.shape`, dims)], [to]);
    const known = viewOf.get(rows), blocks = known ?? name('blocks'), [left, product] = [name('row'), name('by_blocks')];
    viewOf.set(rows, blocks);
    replaced.set(node, [
      ...(known === undefined ? [view(rows, [ROW_BLOCKS, -1, width], blocks)] : []),
      ...(kind === 'score'
        ? [view(row, [1, 1, width], left), contrib('FusedMatMul', [left, blocks], [product], { transB: int(1) }), view(product, [1, -1], output)]
        : [view(row, [ROW_BLOCKS, 1, -1], left), standard('MatMul', [left, blocks], [product]), standard('ReduceSum', [product, integers(`${product}.axis`, [0])], [output], { keepdims: int(0) })]),
    ]);
  }
  return replaceNodes(subgraph, replaced, constants);
}

function rowProductOf(subgraph: Subgraph, edges: Edges, node: Node): RowProduct[] {
  const [row = '', right = ''] = node.inputs, scored = scoredMatrix(edges, node);
  if (operator(node) !== 'MatMul' || knownRows(edges, row) !== 1) return [];
  const rows = scored ?? right, [count = 0, width = 0] = cachedRowsPort(subgraph, edges, rows)?.shape.slice(-2) ?? [];
  return typeof width !== 'number' || width === 0 || divideExactly(count, ROW_BLOCKS) === null ? [] : [{ node, kind: scored === null ? 'weigh' : 'score', row, rows, width }];
}
