/** Cached rows of any format as inputs of a recording, and as attention reads them. */
import { storedRows, storeRows, widenRows, type RowFormat, type RowStore, type StoredRows } from '../../kernels/index.ts';
import type { Recorder, Value } from '../../lib/index.ts';

/** Declares past rows [1, tokens, ...row]: `name`, and for quantised ones `name_step`. */
export function pastRows(g: Recorder, name: string, row: readonly number[], format: RowFormat, tokens = 'p'): StoredRows<Value> {
  const lead = row.slice(0, -1);
  const width = row.at(-1) ?? 1;
  const declare = (port: string, dtype: 'float32' | 'float16' | 'uint8', last: number): Value => g.input({ name: port, dtype, shape: [1, tokens, ...lead, last] });
  switch (format) {
    case 'float32':
    case 'float16': return { format, values: declare(name, format, width) };
    case 'int8': return { format, bytes: declare(name, 'uint8', width), step: declare(`${name}_step`, 'float32', 1) };
    case 'int4': return { format, bytes: declare(name, 'uint8', width / 2), step: declare(`${name}_step`, 'float32', 1) };
  }
}

/** A part of a cache with past rows in a format; new rows go through it, as they would into the cache. */
export function rowStore(g: Recorder, past: StoredRows<Value>): RowStore<Value> {
  return { past: [storedRows(g, past)], keep: (rows) => [storedRows(g, storeRows(g, rows, past.format))] };
}

/** Past rows in float32. */
export const widePast = (g: Recorder, past: StoredRows<Value>): Value => widenRows(g, past);

/** Bytes of one row in a format, its step included. */
export function rowBytes(elements: number, format: RowFormat): number {
  switch (format) {
    case 'float32': return 4 * elements;
    case 'float16': return 2 * elements;
    case 'int8': return elements + 4;
    case 'int4': return elements / 2 + 4;
  }
}
