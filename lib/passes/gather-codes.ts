/** Rows of a quantised table: an embedding that reads the codes of the head it is tied to. */
import { int } from '../graph/record.ts';
import type { Constant, HostTensor, Node } from '../graph/subgraph.ts';
import { blocksOf, unpackZeros, type BlockCodes } from './block-codes.ts';
import { contrib, standard } from './pass.ts';

/** Constants that hold codes in the layout of MatMulNBits; `zeros` is '' where there are none. */
export interface CodeNames {
  readonly codes: string;
  readonly scales: string;
  readonly zeros: string;
}

/**
 * Replaces Gather(table, indices) along axis 0. GatherBlockQuantized takes the codes [n, blocks, bytes] as they lie, so
 * the bytes exist once: -> [...i, blocks, blockSize] -> [...i, inputs]. Only scales and zero points, a few percent of
 * the bytes, are there a second time under another shape. `indexRank`: axes of the indices, null when not known.
 */
export function gatherCodes(
  gather: Node, codes: BlockCodes, names: CodeNames, indexRank: number | null, fresh: (base: string) => string,
): { nodes: Node[]; constants: ReadonlyMap<string, Constant> } {
  const { outputs, inputs, bits, blockSize } = codes, blocks = blocksOf(inputs, blockSize);
  const row = gather.outputs[0]!, indices = gather.inputs[1]!;
  const constants = new Map<string, Constant>();
  const constant = (base: string, tensor: HostTensor): string => {
    const name = fresh(base);
    constants.set(name, tensor);
    return name;
  };
  const whole = (base: string, values: readonly number[]): string => constant(base, { dtype: 'int64', shape: [values.length], data: BigInt64Array.from(values, BigInt) });
  const scales = constant(`${names.scales}.rows`, { dtype: 'float32', shape: [outputs, blocks, 1], data: codes.scales });
  const zeros = codes.zeros === null ? [] : [constant(`${names.zeros}.rows`, { dtype: 'uint8', shape: [outputs, blocks, 1], data: unpackZeros(codes) })];
  const split = fresh(`${row}.blocks`), isPadded = blocks * blockSize !== inputs, joined = isPadded ? fresh(`${row}.padded`) : row;
  const nodes = [contrib('GatherBlockQuantized', [names.codes, indices, scales, ...zeros], [split], {
    bits: int(bits), block_size: int(blockSize), gather_axis: int(0), quantize_axis: int(2),
  })];
  if (indexRank !== null) {
    nodes.push(standard('Reshape', [split, whole(`${row}.shape`, [...Array<number>(indexRank).fill(0), blocks * blockSize])], [joined]));
  } else {
    const lead = fresh(`${row}.lead`), shape = fresh(`${row}.shape`);
    nodes.push(
      standard('Shape', [indices], [lead]),
      standard('Concat', [lead, whole(`${row}.width`, [blocks * blockSize])], [shape], { axis: int(0) }),
      standard('Reshape', [split, shape], [joined], { allowzero: int(1) }),
    );
  }
  if (isPadded) nodes.push(standard('Slice', [joined, whole(`${row}.from`, [0]), whole(`${row}.to`, [inputs]), whole(`${row}.axis`, [-1])], [row]));
  return { nodes, constants };
}
