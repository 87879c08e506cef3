/** Weights of integer products as signed codes, for processors that multiply unsigned by signed bytes exactly and fastest. */
import type { Constant, HostTensor, Node, Subgraph } from '../graph/subgraph.ts';
import { COLUMN_ZERO } from './column-codes.ts';
import { readConstant } from './constant-weight.ts';
import { edgesOf, freshNames, operator, replaceNodes, type Edges } from './pass.ts';

/** Where an integer product has its right-hand codes and their zero point. */
const RIGHT: Readonly<Record<string, { readonly codes: number; readonly zero: number }>> = {
  'MatMulInteger': { codes: 1, zero: 3 },
  'com.microsoft:MatMulIntegerToFloat': { codes: 1, zero: 5 },
  'com.microsoft:DynamicQuantizeMatMul': { codes: 1, zero: 3 },
};

/**
 * A constant right-hand matrix of uint8 codes around 128 -> int8 codes around 0. The sums are the same whole numbers:
 * (a - z) (c - 128) = (a - z) c'. With VNNI or AMX instructions many rows take a sixth of the time (docs/log.md); without
 * them the engine saturates at 16 bits, so run this only where `signedProductsAreExact` has said yes.
 */
export function signCodes(subgraph: Subgraph): Subgraph {
  const edges = edgesOf(subgraph), fresh = freshNames(subgraph);
  const signed = new Map<string, string>(), constants = new Map<string, Constant>(), replaced = new Map<Node, readonly Node[]>();
  for (const node of subgraph.nodes) {
    const place = RIGHT[operator(node)];
    if (place === undefined) continue;
    const name = node.inputs[place.codes] ?? '', codes = codesAround128(edges, name, node.inputs[place.zero] ?? '');
    if (codes === null) continue;
    const known = signed.get(name), edge = known ?? fresh(`${name}.signed`);
    if (known === undefined) {
      signed.set(name, edge);
      constants.set(edge, { dtype: 'int8', shape: codes.shape, data: Int8Array.from(codes.data, (code) => code - COLUMN_ZERO) });
    }
    replaced.set(node, [{ ...node, inputs: node.inputs.map((input, at) => (at === place.codes ? edge : at === place.zero ? '' : input)) }]);
  }
  return replaceNodes(subgraph, replaced, constants);
}

/** The codes behind an edge, if they are constant, uint8 and around 128. */
function codesAround128(edges: Edges, codes: string, zero: string): HostTensor<'uint8'> | null {
  const [matrix, middle] = [edges.constant(codes), edges.constant(zero)];
  if (matrix?.dtype !== 'uint8' || middle?.dtype !== 'uint8') return null;
  const read = readConstant(matrix), zeros = readConstant(middle);
  return read.dtype === 'uint8' && zeros.dtype === 'uint8' && zeros.data.every((value) => value === COLUMN_ZERO) ? read : null;
}
