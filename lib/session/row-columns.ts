/** Columns of cached rows [1, n, width] that lie side by side in one array, cut apart and put back. */
import type { HostTensor } from '../graph/subgraph.ts';
import { bytesPerElement, tensorBytes, tensorFromBytes } from '../tensor.ts';

/** [1, n, sum of widths] -> [1, n, width] for each. */
export function cutColumns(rows: HostTensor, widths: readonly number[]): HostTensor[] {
  const [, n = 0, whole = 0] = rows.shape, size = bytesPerElement(rows.dtype), from = tensorBytes(rows);
  let column = 0;
  return widths.map((width) => {
    const bytes = new Uint8Array(n * width * size);
    for (let row = 0; row < n; row++) bytes.set(from.subarray((row * whole + column) * size, (row * whole + column + width) * size), row * width * size);
    column += width;
    return tensorFromBytes(rows.dtype, [1, n, width], bytes);
  });
}

/** The inverse of cutColumns. Errors: parts of another number of rows or element type than the first. */
export function joinColumns(parts: readonly HostTensor[]): HostTensor {
  const [first] = parts, n = first?.shape[1] ?? 0, whole = parts.reduce((sum, { shape }) => sum + (shape[2] ?? 0), 0);
  if (first === undefined || parts.some(({ dtype, shape }) => dtype !== first.dtype || shape[1] !== n)) {
    throw new TypeError(`joinColumns: parts must be [1, n, width] of one type and n, got ${parts.map(({ dtype, shape }) => `${dtype} [${shape}]`).join(', ')}`);
  }
  const size = bytesPerElement(first.dtype), bytes = new Uint8Array(n * whole * size);
  let column = 0;
  for (const part of parts) {
    const width = part.shape[2] ?? 0, from = tensorBytes(part);
    for (let row = 0; row < n; row++) bytes.set(from.subarray(row * width * size, (row + 1) * width * size), (row * whole + column) * size);
    column += width;
  }
  return tensorFromBytes(first.dtype, [1, n, whole], bytes);
}
