import type { HostTensor } from '../graph/subgraph.ts';
import { pastPort, presentPort, type CachePart } from '../models/cache-layout.ts';

/** Rows of past tokens, in buffers that JavaScript owns; the graph reads them in place and returns only new rows. */
export interface Cache {
  /** Tokens held. */
  readonly length: number;
  /** Tokens there is room for. */
  readonly capacity: number;
  /** Bytes of the buffers that exist. */
  readonly bytes: number;
  /** `bytes` over `capacity`: counted on the buffers, not computed from a formula. */
  readonly bytesPerToken: number;
  /** The past.N.PART feeds: views of the filled rows, no copies. */
  feeds(): Record<string, HostTensor>;
  /** Takes the present.N.PART outputs of a run over `tokens` tokens. */
  append(outputs: Readonly<Record<string, HostTensor>>, tokens: number): void;
  /** Forgets all but the first `length` tokens. */
  truncate(length: number): void;
}

const product = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

/** An empty float32 cache for `capacity` tokens. */
export function createCache(layout: readonly CachePart[], capacity: number): Cache {
  if (!Number.isInteger(capacity) || capacity < 1) throw new RangeError(`createCache: capacity must be 1 or more tokens, got ${capacity}`);
  const parts = layout.map((part) => ({ part, width: product(part.row), rows: new Float32Array(capacity * product(part.row)) }));
  const bytes = parts.reduce((sum, { rows }) => sum + rows.byteLength, 0);
  let length = 0;
  return {
    get length() { return length; },
    capacity,
    bytes,
    bytesPerToken: bytes / capacity,
    feeds: () => Object.fromEntries(parts.map(({ part, width, rows }): [string, HostTensor] =>
      [pastPort(part), { dtype: 'float32', shape: [1, length, ...part.row], data: rows.subarray(0, length * width) }])),
    append(outputs, tokens) {
      if (length + tokens > capacity) throw new RangeError(`Cache.append: ${length} + ${tokens} tokens must fit the capacity of ${capacity}`);
      for (const { part, width, rows } of parts) {
        const fresh = outputs[presentPort(part)];
        if (fresh?.dtype !== 'float32' || fresh.data.length !== tokens * width) {
          throw new RangeError(`Cache.append: ${presentPort(part)} must hold ${tokens} float32 rows of ${width}, got ${fresh?.dtype} [${fresh?.shape}]`);
        }
        rows.set(fresh.data, length * width);
      }
      length += tokens;
    },
    truncate(to) {
      if (!Number.isInteger(to) || to < 0 || to > length) throw new RangeError(`Cache.truncate: length must be 0..${length}, got ${to}`);
      length = to;
    },
  };
}

/** Elements per token over all layers and parts. */
export const elementsPerToken = (layout: readonly CachePart[]): number => layout.reduce((sum, { row }) => sum + product(row), 0);

