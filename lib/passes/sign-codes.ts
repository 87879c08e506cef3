/** Right-hand sides of integer products as signed codes, for processors that multiply unsigned by signed bytes exactly and fastest. */
import { int } from '../graph/record.ts';
import type { Constant, HostTensor, Node, Subgraph } from '../graph/subgraph.ts';
import { COLUMN_ZERO } from './column-codes.ts';
import { readConstant } from './constant-weight.ts';
import { edgesOf, freshNames, isView, operator, replaceNodes, standard, type Edges } from './pass.ts';

/** Where an integer product has its right-hand codes and their zero point. */
const RIGHT: Readonly<Record<string, { readonly codes: number; readonly zero: number }>> = {
  'MatMulInteger': { codes: 1, zero: 3 },
  'com.microsoft:MatMulIntegerToFloat': { codes: 1, zero: 5 },
  'com.microsoft:DynamicQuantizeMatMul': { codes: 1, zero: 3 },
};
const INT8 = 3;

/**
 * Right-hand uint8 codes around 128 of integer products -> int8 codes around 0. The sums are the same whole numbers:
 * (a - z) (c - 128) = (a - z) c'. Weights are converted here, what the graph itself rounds (queries) there; a graph's inputs, as
 * long as a cache, are left. With VNNI or AMX instructions many rows take a sixth of the time (docs/log.md); without them the
 * engine saturates at 16 bits, so run this only where `signedProductsAreExact` (lib/session) has said yes.
 */
export function signCodes(subgraph: Subgraph): Subgraph {
  const edges = edgesOf(subgraph), fresh = freshNames(subgraph), inputs = new Set(subgraph.inputs.map(({ name }) => name));
  const signed = new Map<string, string>(), constants = new Map<string, Constant>(), replaced = new Map<Node, readonly Node[]>();
  const signBit = fresh('sign_codes.bit');
  for (const node of subgraph.nodes) {
    const place = RIGHT[operator(node)];
    const name = place === undefined ? '' : node.inputs[place.codes] ?? '';
    if (place === undefined || !isMiddle(edges.constant(node.inputs[place.zero] ?? '')) || inputs.has(sourceOf(edges, name))) continue;
    const known = signed.get(name), edge = known ?? fresh(`${name}.signed`), made: Node[] = [];
    if (known === undefined) {
      const codes = edges.constant(name);
      signed.set(name, edge);
      if (codes === undefined) {
        // c ^ 128 are the bits of c - 128; the engine's cast to int8 keeps bits.
        const bits = fresh(`${name}.bits`);
        constants.set(signBit, { dtype: 'uint8', shape: [], data: Uint8Array.of(COLUMN_ZERO) });
        made.push(standard('BitwiseXor', [name, signBit], [bits]), standard('Cast', [bits], [edge], { to: int(INT8) }));
      } else {
        constants.set(edge, signedCodes(readConstant(codes)));
      }
    }
    replaced.set(node, [...made, { ...node, inputs: node.inputs.map((input, at) => (at === place.codes ? edge : at === place.zero ? '' : input)) }]);
  }
  return replaceNodes(subgraph, replaced, constants);
}

/** The edge behind views of it. */
function sourceOf(edges: Edges, edge: string): string {
  const node = edges.producer(edge);
  return node !== undefined && isView(node) ? sourceOf(edges, node.inputs[0]!) : edge;
}

/** Whether a zero point is known to be 128. */
function isMiddle(zero: Constant | undefined): boolean {
  if (zero?.dtype !== 'uint8') return false;
  const read = readConstant(zero);
  return read.dtype === 'uint8' && read.data.every((value) => value === COLUMN_ZERO);
}

function signedCodes(codes: HostTensor): HostTensor<'int8'> {
  if (codes.dtype !== 'uint8') throw new TypeError(`signCodes: codes around 128 must be uint8, got ${codes.dtype}`);
  return { dtype: 'int8', shape: codes.shape, data: Int8Array.from(codes.data, (code) => code - COLUMN_ZERO) };
}
