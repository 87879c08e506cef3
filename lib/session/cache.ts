import type { HostTensor } from '../graph/subgraph.ts';
import { ofSequence, pastPort, presentPort, rowMultiple, type CachePart } from '../models/cache-layout.ts';

/** Rows of past tokens, in buffers that JavaScript owns; the graph reads them in place and returns only new rows. */
export interface Cache {
  /** Tokens held. */
  readonly length: number;
  /** Tokens there is room for. */
  readonly capacity: number;
  /** Bytes of the buffers that exist. */
  readonly bytes: number;
  /** `bytes` over the rows that they hold, `capacity` or the multiple above it: counted on the buffers, not computed from a formula. */
  readonly bytesPerToken: number;
  /** The past.N.PART feeds: views of the filled rows, no copies. For a step of several sequences those of one of them. */
  feeds(sequence?: number): Record<string, HostTensor>;
  /** Takes the present.N.PART outputs of a run over `tokens` tokens. */
  append(outputs: Readonly<Record<string, HostTensor>>, tokens: number): void;
  /**
   * For a graph that appends in place: past.N.PART feeds of so many `rows`, with `tokens` still to be written behind those
   * held, and these as present.N.PART fetches. Where rows come in multiples (rowMultiple) some behind them are fed too,
   * finite and for a mask to hide. After the run call advance.
   */
  appending(tokens: number): { readonly rows: number; readonly feeds: Record<string, HostTensor>; readonly fetches: Record<string, HostTensor> };
  /** Counts `tokens` rows as filled that a graph has written in place. */
  advance(tokens: number): void;
  /** Forgets all but the first `length` tokens. */
  truncate(length: number): void;
}

/** One array of rows. */
interface Buffer {
  readonly bytes: number;
  /** `tokens` rows from row `from` on, as a tensor of the given shape. */
  view(from: number, tokens: number, shape: readonly number[]): HostTensor;
  write(rows: HostTensor | undefined, length: number, tokens: number): void;
}

const product = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

function buffer(part: CachePart, capacity: number): Buffer {
  const width = product(part.row);
  const refuse = (rows: HostTensor | undefined, tokens: number): Error =>
    new RangeError(`Cache.append: ${presentPort(part)} must hold ${tokens} ${part.dtype} rows of ${width}, got ${rows?.dtype} [${rows?.shape}]`);
  // One arm per element type: the compiler then knows that data and dtype belong together.
  switch (part.dtype) {
    case 'float32': {
      const data = new Float32Array(capacity * width);
      return {
        bytes: data.byteLength,
        view: (from, tokens, shape) => ({ dtype: 'float32', shape, data: data.subarray(from * width, (from + tokens) * width) }),
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
        view: (from, tokens, shape) => ({ dtype: 'float16', shape, data: data.subarray(from * width, (from + tokens) * width) }),
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
        view: (from, tokens, shape) => ({ dtype: 'uint8', shape, data: data.subarray(from * width, (from + tokens) * width) }),
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
  // Names and widths once and not in every step: there are two ports for each of sixty arrays.
  const multiple = rowMultiple(layout), whole = (rows: number): number => multiple * Math.ceil(rows / multiple);
  const parts = layout.map((part) => ({ part, past: pastPort(part), present: presentPort(part), width: product(part.row), rows: buffer(part, whole(capacity)) }));
  const bytes = parts.reduce((sum, { rows }) => sum + rows.bytes, 0);
  let length = 0;
  const checkRoom = (caller: string, tokens: number): void => {
    if (length + tokens > capacity) throw new RangeError(`Cache.${caller}: ${length} + ${tokens} tokens must fit the capacity of ${capacity}`);
  };
  return {
    get length() { return length; },
    capacity,
    bytes,
    bytesPerToken: bytes / whole(capacity),
    feeds: (sequence) => Object.fromEntries(parts.map(({ part, past, rows }): [string, HostTensor] => [ofSequence(past, sequence), rows.view(0, length, [1, length, ...part.row])])),
    appending(tokens) {
      checkRoom('appending', tokens);
      const feeds: Record<string, HostTensor> = {}, fetches: Record<string, HostTensor> = {}, count = whole(length + tokens);
      for (const { part, past, present, width, rows } of parts) {
        feeds[past] = rows.view(0, count, [count, ...part.row]);
        fetches[present] = rows.view(length, tokens, [1, tokens, width]);
      }
      return { rows: count, feeds, fetches };
    },
    advance(tokens) {
      checkRoom('advance', tokens);
      length += tokens;
    },
    append(outputs, tokens) {
      checkRoom('append', tokens);
      for (const { present, rows } of parts) rows.write(outputs[present], length, tokens);
      length += tokens;
    },
    truncate(to) {
      if (!Number.isInteger(to) || to < 0 || to > length) throw new RangeError(`Cache.truncate: length must be 0..${length}, got ${to}`);
      length = to;
    },
  };
}
