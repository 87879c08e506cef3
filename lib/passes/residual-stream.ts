/** The residual stream of a decoder graph: what writes to it and what reads from it. */
import type { Node, Subgraph } from '../graph/subgraph.ts';
import { constantMatrix, constantProduct, type ConstantMatrix, type ConstantProduct } from './constant-weight.ts';
import { edgesOf, intAttribute, operator, type Edges } from './pass.ts';
import { normOf, type Norm } from './rms-norm-pattern.ts';

export interface ProductNode extends ConstantProduct {
  readonly node: Node;
}

export interface ResidualStream {
  readonly width: number;
  /** The embedding, and the node that looks rows up. */
  readonly table: ConstantMatrix;
  readonly lookup: Node;
  /** Norms of the stream, with the products that read each. */
  readonly norms: readonly { readonly node: Node; readonly norm: Norm; readonly readers: readonly ProductNode[] }[];
  /** Products that are added to the stream, with the constant bias that is added on the way, '' for none. */
  readonly writers: readonly { readonly product: ProductNode; readonly bias: string; readonly biasNode: Node | null }[];
}

/**
 * Follows the stream from the embedding through sums and splits along tokens. Null unless all of it is understood: it
 * starts at one table, only RMS norms read it, only products with constant matrices read the norms, only such products
 * (with a constant bias) are added to it, no matrix has two parts in this, and none of it is an output.
 */
export function residualStream(subgraph: Subgraph): ResidualStream | null {
  const edges = edgesOf(subgraph);
  const normNodes = subgraph.nodes.flatMap((node) => {
    const norm = normOf(edges, node);
    return norm === null ? [] : [{ node, norm }];
  });
  const normed = new Set(normNodes.map(({ norm }) => norm.x));
  const roots = subgraph.nodes.filter((node) => operator(node) === 'Gather' && intAttribute(node, 'axis', 0) === 0 && normed.has(node.outputs[0]!));
  const lookup = roots[0], table = lookup === undefined ? null : constantMatrix(edges, lookup.inputs[0] ?? '');
  const width = table?.constant.shape[1];
  if (lookup === undefined || roots.length !== 1 || table === null || table.transposed || width === undefined) return null;

  const stream = new Set(lookup.outputs), inside = new Set<Node>();
  for (const node of subgraph.nodes) {
    const isSum = operator(node) === 'Add' && node.inputs.some((edge) => stream.has(edge));
    // The width is the last axis, which a Split must leave whole: streams are [batch, tokens, width].
    const isSplit = operator(node) === 'Split' && stream.has(node.inputs[0]!) && [0, 1].includes(intAttribute(node, 'axis', 0));
    if (!isSum && !isSplit) continue;
    inside.add(node);
    for (const edge of node.outputs) stream.add(edge);
  }
  const norms = normNodes.filter(({ norm }) => stream.has(norm.x)).map(({ node, norm }) => ({ node, norm, readers: productsOn(edges, node.outputs[0]!, width) }));
  for (const { norm } of norms) for (const node of norm.readers) inside.add(node);
  const writers = [...inside].filter((node) => operator(node) === 'Add').flatMap((node) => node.inputs.filter((edge) => !stream.has(edge)).map((edge) => writerOf(edges, edge, width)));

  const allReadInside = [...stream].every((edge) => !edges.isOutput(edge) && edges.readers(edge).every((reader) => inside.has(reader)));
  const readers = norms.map(({ readers: products }) => products);
  if (!allReadInside || norms.some(({ node }) => edges.isOutput(node.outputs[0]!)) || readers.includes(null) || writers.includes(null)) return null;
  const result: ResidualStream = {
    width, table, lookup,
    norms: norms.map(({ node, norm, readers: products }) => ({ node, norm, readers: products ?? [] })),
    writers: writers.filter((writer) => writer !== null),
  };
  return matricesAreSeparate(result) ? result : null;
}

/** The products that read an edge; null when something else does. */
function productsOn(edges: Edges, edge: string, width: number): ProductNode[] | null {
  const products = edges.readers(edge).map((node): ProductNode | null => {
    const product = constantProduct(edges, node);
    return product?.x === edge && product.inputs === width && product.bias === '' ? { ...product, node } : null;
  });
  return products.includes(null) ? null : products.filter((product) => product !== null);
}

/** The product behind what is added to the stream, through the sum with a bias; null for anything else. */
function writerOf(edges: Edges, edge: string, width: number): { product: ProductNode; bias: string; biasNode: Node | null } | null {
  const node = edges.producer(edge);
  if (node === undefined || edges.readers(edge).length !== 1 || edges.isOutput(edge)) return null;
  if (operator(node) !== 'Add') {
    const product = constantProduct(edges, node);
    return product?.outputs === width && product.bias === '' ? { product: { ...product, node }, bias: '', biasNode: null } : null;
  }
  const bias = node.inputs.find((input) => edges.constant(input)?.shape.join() === `${width}`);
  const product = bias === undefined ? null : writerOf(edges, node.inputs.find((input) => input !== bias) ?? '', width);
  return product === null || bias === undefined || product.biasNode !== null ? null : { product: product.product, bias, biasNode: node };
}

/** Whether no matrix is used twice, the embedding as the head aside. */
function matricesAreSeparate({ table, norms, writers }: ResidualStream): boolean {
  const readers = norms.flatMap(({ readers: products }) => products.map(({ weight }) => weight));
  const names = [...readers.filter(({ name, transposed }) => name !== table.name || !transposed), ...writers.map(({ product }) => product.weight)].map(({ name }) => name);
  return new Set([...names, table.name]).size === names.length + 1;
}
