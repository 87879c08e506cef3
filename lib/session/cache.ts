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

/** One array of rows. */
interface Buffer {
  readonly bytes: number;
  view(tokens: number): HostTensor;
  write(rows: HostTensor | undefined, length: number, tokens: number): void;
}

const product = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

function buffer(part: CachePart, capacity: number): Buffer {
  const width = product(part.row);
  const refuse = (rows: HostTensor | undefined, tokens: number): Error =>
    new RangeError(`Cache.append: ${presentPort(part)} must hold ${tokens} ${part.dtype} rows of ${width}, got ${rows?.dtype} [${rows?.shape}]`);
  const shape = (tokens: number): number[] => [1, tokens, ...part.row];
  // One arm per element type: the compiler then knows that data and dtype belong together.
  switch (part.dtype) {
    case 'float32': {
      const data = new Float32Array(capacity * width);
      return {
        bytes: data.byteLength,
        view: (tokens) => ({ dtype: 'float32', shape: shape(tokens), data: data.subarray(0, tokens * width) }),
        write(rows, length, tokens) {
          if (rows?.dtype !== 'float32' || rows.data.length !== tokens * width) throw refuse(rows, tokens);
          data.set(rows.data, length * width);
        },
      };
    }
    case 'float16': {
      const data = new Uint16Array(capacity * width);
      return {
        bytes: data.byteLength,
        view: (tokens) => ({ dtype: 'float16', shape: shape(tokens), data: data.subarray(0, tokens * width) }),
        write(rows, length, tokens) {
          if (rows?.dtype !== 'float16' || rows.data.length !== tokens * width) throw refuse(rows, tokens);
          data.set(rows.data, length * width);
        },
      };
    }
    case 'uint8': {
      const data = new Uint8Array(capacity * width);
      return {
        bytes: data.byteLength,
        view: (tokens) => ({ dtype: 'uint8', shape: shape(tokens), data: data.subarray(0, tokens * width) }),
        write(rows, length, tokens) {
          if (rows?.dtype !== 'uint8' || rows.data.length !== tokens * width) throw refuse(rows, tokens);
          data.set(rows.data, length * width);
        },
      };
    }
  }
}

/** An empty cache for `capacity` tokens. */
export function createCache(layout: readonly CachePart[], capacity: number): Cache {
  if (!Number.isInteger(capacity) || capacity < 1) throw new RangeError(`createCache: capacity must be 1 or more tokens, got ${capacity}`);
  const parts = layout.map((part) => ({ part, rows: buffer(part, capacity) }));
  const bytes = parts.reduce((sum, { rows }) => sum + rows.bytes, 0);
  let length = 0;
  return {
    get length() { return length; },
    capacity,
    bytes,
    bytesPerToken: bytes / capacity,
    feeds: () => Object.fromEntries(parts.map(({ part, rows }): [string, HostTensor] => [pastPort(part), rows.view(length)])),
    append(outputs, tokens) {
      if (length + tokens > capacity) throw new RangeError(`Cache.append: ${length} + ${tokens} tokens must fit the capacity of ${capacity}`);
      for (const { part, rows } of parts) rows.write(outputs[presentPort(part)], length, tokens);
      length += tokens;
    },
    truncate(to) {
      if (!Number.isInteger(to) || to < 0 || to > length) throw new RangeError(`Cache.truncate: length must be 0..${length}, got ${to}`);
      length = to;
    },
  };
}
