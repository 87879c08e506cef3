/** Operations and bytes of a subgraph: what its products cost at least, on any machine. */
import { inferShapes, replaceSymbols, type DType, type Fact, type Subgraph } from '../../lib/index.ts';

export interface Work {
  /** Multiplications and additions of all matrix products. */
  readonly flops: number;
  /** The same of those among them that multiply bytes. */
  readonly byteFlops: number;
  /** Every input, constant and output once. */
  readonly bytes: number;
  readonly weightBytes: number;
  readonly nodes: number;
}

const width: Readonly<Record<DType, number>> = { float32: 4, float64: 8, float16: 2, bfloat16: 2, int8: 1, uint8: 1, int16: 2, uint16: 2, int32: 4, uint32: 4, int64: 8, bool: 1 };
const byteProducts = new Set(['MatMulInteger', 'MatMulIntegerToFloat']);
const products = new Set(['MatMul', 'FusedMatMul', 'Gemm', ...byteProducts]);

const bytesOf = ({ dtype, shape }: Pick<Fact, 'dtype' | 'shape'>): number => width[dtype] * elements(shape);

function elements(shape: Fact['shape']): number {
  return shape.reduce((product: number, dim) => {
    if (typeof dim !== 'number') throw new RangeError(`workOf: every axis needs a length, got ${dim}`);
    return product * dim;
  }, 1);
}

/** Counts a subgraph as it was recorded, with `symbols` for its open lengths; what the engine fuses changes nothing of it. */
export function workOf(subgraph: Subgraph, symbols: Readonly<Record<string, number>>): Work {
  const closed = replaceSymbols(subgraph, symbols);
  const facts = inferShapes(closed);
  let [flops, byteFlops] = [0, 0];
  for (const { op, inputs, outputs, attributes } of closed.nodes) {
    const [left, result] = [facts.get(inputs[0] ?? ''), facts.get(outputs[0] ?? '')];
    if (!products.has(op) || left === undefined || result === undefined) continue;
    const transposed = attributes.transA?.kind === 'int' && attributes.transA.value === 1;
    const inner = left.shape.at(transposed ? -2 : -1);
    const count = 2 * elements(result.shape) * elements(inner === undefined ? [] : [inner]);
    flops += count;
    if (byteProducts.has(op)) byteFlops += count;
  }
  const weightBytes = [...closed.constants.values()].reduce((sum, constant) => sum + bytesOf(constant), 0);
  const ports = [...closed.inputs, ...closed.outputs].reduce((sum, port) => sum + bytesOf(port), 0);
  return { flops, byteFlops, bytes: ports + weightBytes, weightBytes, nodes: closed.nodes.length };
}
