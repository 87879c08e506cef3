/** What passes ask of products with the rows of a cache. */
import type { Node, Port, Subgraph } from '../graph/subgraph.ts';
import { operator, type Edges } from './pass.ts';
import { viewedAs } from './views.ts';

/** The input that a matrix of cached rows is a view of, or the widened form; its number of rows is a symbol. */
export function cachedRowsPort(subgraph: Subgraph, edges: Edges, matrix: string): Port | null {
  const port = subgraph.inputs.find(({ name }) => name === throughViews(edges, matrix));
  return port !== undefined && typeof port.shape.at(-2) === 'string' ? port : null;
}

/** The edge that a matrix is another view of, or the widened form. */
function throughViews(edges: Edges, edge: string): string {
  const node = edges.producer(edge);
  return node !== undefined && ['Reshape', 'Cast'].includes(operator(node)) ? throughViews(edges, node.inputs[0]!) : edge;
}

/** The matrix C of MatMul(q, Transpose(C)); null for any other node. */
export function scoredMatrix(edges: Edges, node: Node): string | null {
  const transpose = operator(node) === 'MatMul' ? edges.producer(node.inputs[1] ?? '') : undefined;
  return transpose !== undefined && operator(transpose) === 'Transpose' ? transpose.inputs[0]! : null;
}

/** Rows of a matrix, where their number is known: of a Reshape to [n, m] or [n, -1], of scores q C^T of so many queries, and of their softmax. */
export function knownRows(edges: Edges, matrix: string): number | null {
  const node = edges.producer(matrix);
  if (node === undefined) return null;
  if (operator(node) === 'Softmax' || scoredMatrix(edges, node) !== null) return knownRows(edges, node.inputs[0]!);
  const [rows = 0, ...rest] = viewedAs(edges, matrix) ?? [];
  return rest.length === 1 && rows > 0 ? rows : null;
}
