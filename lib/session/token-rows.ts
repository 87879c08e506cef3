import type { HostTensor } from '../graph/subgraph.ts';
import { bytesPerElement, elementCount, tensorBytes, tensorFromBytes } from '../tensor.ts';

/** Rows from..from + tokens - 1 of cached rows: [1, n, ...row] -> [1, tokens, ...row], in the same memory. */
export function tokenRows(rows: HostTensor, from: number, tokens: number): HostTensor {
  const [, , ...row] = rows.shape;
  const bytes = elementCount(row) * bytesPerElement(rows.dtype);
  return tensorFromBytes(rows.dtype, [1, tokens, ...row], tensorBytes(rows).subarray(from * bytes, (from + tokens) * bytes));
}
