/** Projections of the same input as one product: fewer nodes, and one long product instead of several short ones. */
import { int } from '../graph/record.ts';
import { bytesPerElement, tensorBytes, tensorFromBytes } from '../tensor.ts';
import type { Attribute, Constant, HostTensor, Node, Subgraph } from '../graph/subgraph.ts';
import { readConstant } from './constant-weight.ts';
import { contrib, edgesOf, freshNames, intAttribute, operator, replaceNodes, soleReader, standard, type Edges } from './pass.ts';

/** Axis along which the outputs lie, for each input of an operator that holds something per output. */
type OutputAxes = Readonly<Record<number, 0 | 1>>;

function outputAxes(node: Node): OutputAxes | null {
  switch (operator(node)) {
    case 'MatMul': return { 1: 1 };
    case 'com.microsoft:FusedMatMul': return { 1: intAttribute(node, 'transB', 0) === 1 ? 0 : 1 };
    case 'com.microsoft:MatMulNBits': return { 1: 0, 2: 0, 3: 0, 5: 0 };
    case 'com.microsoft:DynamicQuantizeMatMul': return { 1: 1, 2: 0, 4: 0 };
    case 'com.microsoft:MatMulIntegerToFloat': return { 1: 1, 3: 0, 6: 0 };
    default: return null;
  }
}

/**
 * MatMul, FusedMatMul, MatMulNBits, DynamicQuantizeMatMul and MatMulIntegerToFloat nodes that share their input and
 * differ only in constants -> one node with the constants side by side, and a Split (q, k and v; gate and up). Numbers
 * stay the same. A constant that others read too (a tied head) is left alone, so nothing is held twice; constants that
 * are stored in files are read. Of float32 weights behind a Transpose only after fuseTransposedWeights.
 */
export function mergeProjections(subgraph: Subgraph): Subgraph {
  const edges = edgesOf(subgraph), fresh = freshNames(subgraph);
  const groups = new Map<string, Node[]>();
  for (const node of subgraph.nodes) {
    const axes = outputAxes(node);
    if (axes === null || !ownsConstants(edges, node, axes)) continue;
    const key = groupKey(edges, node, axes);
    groups.set(key, [...(groups.get(key) ?? []), node]);
  }
  // What rotates comes first, so that mergeRotations finds it side by side.
  const rotates = (node: Node): number => (feeds(edges, node.outputs[0]!, 'RotaryEmbedding') ? 0 : 1);
  const replaced = new Map<Node, readonly Node[]>(), constants = new Map<string, Constant>();
  for (const found of groups.values()) {
    const group = [...found].sort((a, b) => rotates(a) - rotates(b));
    const first = group[0]!, axes = outputAxes(first);
    if (group.length === 1 || axes === null) continue;
    const widths = group.map((node) => outputsOf(edges, node, axes));
    const inputs = first.inputs.map((edge, index) => {
      const axis = axes[index];
      if (axis === undefined || edge === '') return edge;
      const name = fresh(`${edge}.merged${group.length}`);
      constants.set(name, sideBySide(group.map((node) => readConstant(edges.constant(node.inputs[index]!)!)), axis));
      return name;
    });
    const total = widths.reduce((a, b) => a + b, 0), whole = fresh(`${first.outputs[0]!}.merged`), sizes = fresh(`${whole}.widths`);
    constants.set(sizes, { dtype: 'int64', shape: [widths.length], data: BigInt64Array.from(widths, BigInt) });
    const attributes: Readonly<Record<string, Attribute>> = first.attributes.N === undefined ? first.attributes : { ...first.attributes, N: int(total) };
    for (const node of group) replaced.set(node, []);
    // Where the first of them stood, so that it comes before all that reads one.
    replaced.set(found[0]!, [
      first.domain === '' ? standard(first.op, inputs, [whole], attributes) : contrib(first.op, inputs, [whole], attributes),
      standard('Split', [whole, sizes], group.map((node) => node.outputs[0]!), { axis: int(-1) }),
    ]);
  }
  return replaceNodes(subgraph, replaced, constants);
}

/** Whether all that lies per output is constant, of one matrix, and read by this node alone. */
function ownsConstants(edges: Edges, node: Node, axes: OutputAxes): boolean {
  if (edges.constant(node.inputs[1] ?? '')?.shape.length !== (node.op === 'MatMulNBits' ? 3 : 2)) return false;
  return node.inputs.every((edge, index) => {
    if (axes[index] === undefined || edge === '') return true;
    return edges.constant(edge) !== undefined && edges.readers(edge).length === 1;
  });
}

/** Equal for nodes that can be merged: what is not per output must be the same edge or attribute, and of one length K. */
function groupKey(edges: Edges, node: Node, axes: OutputAxes): string {
  const inputs = node.inputs.map((edge, index) => {
    const axis = axes[index];
    if (axis === undefined || edge === '') return edge;
    const { dtype, shape } = edges.constant(edge)!;
    return { dtype, shape: shape.map((n, i) => (i === axis ? null : n)) };
  });
  return JSON.stringify([operator(node), inputs, { ...node.attributes, N: null }]);
}

/** Whether one node reads an edge, an `op`, at most with a Reshape between. */
function feeds(edges: Edges, edge: string, op: string): boolean {
  const reader = soleReader(edges, edge);
  if (reader === undefined) return false;
  return operator(reader) === 'Reshape' ? feeds(edges, reader.outputs[0]!, op) : operator(reader) === op;
}

const outputsOf = (edges: Edges, node: Node, axes: OutputAxes): number => edges.constant(node.inputs[1]!)!.shape[axes[1]!]!;

/** Tensors of one dtype joined along axis 0, or matrices along axis 1. */
function sideBySide(parts: readonly HostTensor[], axis: 0 | 1): HostTensor {
  const first = parts[0]!, { dtype } = first;
  const total = parts.reduce((sum, part) => sum + part.shape[axis]!, 0);
  const shape = first.shape.map((n, i) => (i === axis ? total : n));
  const rows = axis === 0 ? 1 : first.shape[0]!;
  const bytes = new Uint8Array(shape.reduce((a, b) => a * b, 1) * bytesPerElement(dtype));
  let at = 0;
  for (let row = 0; row < rows; row++) {
    for (const part of parts) {
      const from = tensorBytes(part), width = from.length / rows;
      bytes.set(from.subarray(row * width, (row + 1) * width), at);
      at += width;
    }
  }
  return tensorFromBytes(dtype, shape, bytes);
}
