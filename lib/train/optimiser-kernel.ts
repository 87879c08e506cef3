/**
 * What an optimiser does to long rows of float32, in WebAssembly with 128-bit vectors (adamw.wat): a plain loop over the
 * 135 million weights of a small model would take a fifth of a training step. Rows that the kernel gives out lie in
 * its memory; others pass through it in blocks that stay in the processor's cache.
 */

/** The numbers of one AdamW update, bias corrections included; see `adamw`. */
export interface AdamWNumbers {
  /** Factor on the gradient: clipping, and 1 / the number of accumulated micro-batches. */
  readonly gradientScale: number;
  readonly beta1: number;
  readonly beta2: number;
  /** 1 - learning rate * weight decay. */
  readonly keep: number;
  /** learning rate / (1 - beta1^t). */
  readonly stepSize: number;
  /** 1 / sqrt(1 - beta2^t). */
  readonly rootScale: number;
  readonly epsilon: number;
}

/** Rows of equal length. */
export interface AdamWRows {
  readonly weights: Float32Array;
  /** Running mean of gradients. */
  readonly first: Float32Array;
  /** Running mean of squared gradients. */
  readonly second: Float32Array;
  readonly gradient: Float32Array;
}

export interface OptimiserKernel {
  /**
   * Zeros in the kernel's own memory, which it reads and writes in place; other rows pass through in copies, twice as
   * slow where all do. Beyond the lengths it was opened for, or 4 GiB, a row is any other.
   */
  row(length: number): Float32Array;
  /**
   * One update in place, with g = gradient * gradientScale: first = beta1 first + (1 - beta1) g; second = beta2 second +
   * (1 - beta2) g^2; weights = keep weights - stepSize first / (sqrt(second) rootScale + epsilon). All in float32.
   * Source: Loshchilov and Hutter 2019, algorithm 2, with the learning rate on the decay as PyTorch has it.
   */
  adamw(rows: AdamWRows, numbers: AdamWNumbers): void;
  /** sum += addend. */
  add(sum: Float32Array, addend: Float32Array): void;
  /** The sum of squares, in float64. */
  squares(row: Float32Array): number;
}

/** The part of the host's WebAssembly used here; the compiler settings of a Node library do not declare it. */
declare const WebAssembly: {
  Module: new (bytes: Uint8Array) => object;
  Memory: new (size: { initial: number }) => { readonly buffer: ArrayBuffer };
  Instance: new (module: object, imports: { host: { memory: object } }) => { readonly exports: Exports };
};

interface Exports {
  adamw(...numbers: number[]): void;
  add(bytes: number, sum: number, addend: number): void;
  squares(bytes: number, row: number): number;
}

/** Elements per block: four rows of it fill four pages, well inside a second-level cache. */
const BLOCK = 16384;
const BLOCK_BYTES = 4 * BLOCK;
/** Rows start off the pages' borders, where large arrays start: the processor copies four times slower between equal offsets. */
const blockStart = (row: number): number => 64 + row * (BLOCK_BYTES + 1024);
/** Rows that stay begin behind the blocks, and each at another offset in its page, for the same reason. */
const ROWS_START = blockStart(4), ROW_GAP = 1024 + 64, LINE = 64;
const PAGE = 65536, MOST_PAGES = 65536;

/** Bytes of a row, rounded up to whole lines so that vectors never reach into the next. */
const lineBytes = (length: number): number => LINE * Math.ceil((4 * length) / LINE);

/** Memory for so many bytes, or, where the system has not got them in one piece, for the blocks alone. */
function memoryFor(bytes: number): { readonly buffer: ArrayBuffer } {
  const open = (size: number): { readonly buffer: ArrayBuffer } => new WebAssembly.Memory({ initial: Math.min(MOST_PAGES, Math.ceil(size / PAGE)) });
  try {
    return open(bytes);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return open(ROWS_START);
  }
}

/** Opens the kernel; it keeps no state between calls but the rows made with `row`, `lengths` of which fit its memory. */
export function optimiserKernel(lengths: readonly number[] = []): OptimiserKernel {
  const end = lengths.reduce((sum, length) => sum + lineBytes(length) + ROW_GAP, ROWS_START);
  const memory = memoryFor(end);
  const { buffer } = memory;
  const code = new WebAssembly.Module(Uint8Array.from(atob(instructions), (character) => character.charCodeAt(0)));
  const { exports } = new WebAssembly.Instance(code, { host: { memory } });
  const [w, m, v, g] = [0, 1, 2, 3].map((i) => new Float32Array(buffer, blockStart(i), BLOCK));
  if (w === undefined || m === undefined || v === undefined || g === undefined) throw new RangeError('optimiserKernel: memory must hold four rows');
  let free = ROWS_START;
  /** Blocks of `length` elements, with their bytes rounded up to whole vectors. */
  const blocks = (length: number, visit: (from: number, to: number, bytes: number) => void): void => {
    for (let from = 0; from < length; from += BLOCK) {
      const to = Math.min(length, from + BLOCK);
      visit(from, to, 16 * Math.ceil((to - from) / 4));
    }
  };
  const staysHere = (row: Float32Array): boolean => row.buffer === buffer && row.byteOffset >= ROWS_START;
  /** Address of elements from..to-1 of a row: where they are, or where they are brought. */
  const load = (into: Float32Array, row: Float32Array, from: number, to: number): number => {
    if (staysHere(row)) return row.byteOffset + 4 * from;
    into.set(row.subarray(from, to));
    if ((to - from) % 4 !== 0) into.fill(0, to - from, to - from + 3);
    return into.byteOffset;
  };
  const store = (block: Float32Array, row: Float32Array, from: number, to: number): void => {
    if (!staysHere(row)) row.set(block.subarray(0, to - from), from);
  };
  const sameLength = (caller: string, a: Float32Array, b: Float32Array): void => {
    if (a.length !== b.length) throw new RangeError(`${caller}: rows must have the same length, got ${a.length} and ${b.length}`);
  };
  return {
    row(length) {
      if (free + lineBytes(length) > buffer.byteLength) return new Float32Array(length);
      const row = new Float32Array(buffer, free, length);
      free += lineBytes(length) + ROW_GAP;
      return row;
    },
    adamw({ weights, first, second, gradient }, { gradientScale, beta1, beta2, keep, stepSize, rootScale, epsilon }) {
      for (const row of [first, second, gradient]) sameLength('adamw', weights, row);
      blocks(weights.length, (from, to, bytes) => {
        exports.adamw(
          bytes, load(w, weights, from, to), load(m, first, from, to), load(v, second, from, to), load(g, gradient, from, to),
          gradientScale, 1 - beta1, beta2, 1 - beta2, keep, stepSize, rootScale, epsilon,
        );
        store(w, weights, from, to);
        store(m, first, from, to);
        store(v, second, from, to);
      });
    },
    add(sum, addend) {
      sameLength('add', sum, addend);
      blocks(sum.length, (from, to, bytes) => {
        exports.add(bytes, load(w, sum, from, to), load(g, addend, from, to));
        store(w, sum, from, to);
      });
    },
    squares(row) {
      let total = 0;
      blocks(row.length, (from, to, bytes) => { total += exports.squares(bytes, load(g, row, from, to)); });
      return total;
    },
  };
}

/** adamw.wat assembled; the command is at its head. */
const instructions =
  'AGFzbQEAAAABHQNgDX9/f39/fX19fX19fX0AYAN/f38AYAJ/fwF8AhABBGhvc3QGbWVtb3J5AgABAwQDAAECBxkDBWFkYW13AAADYWRkAAEHc3F1YXJlcwAC' +
  'CtYCA70BAgF/A3sDQCAEIA1q/QAEACAF/RP95gEhDiACIA1q/QAEACEPIA8gBv0TIA4gD/3lAf3mAf3kASEPIAIgDWogD/0LBAAgB/0TIAMgDWr9AAQA/eYB' +
  'IAj9EyAOIA795gH95gH95AEhECADIA1qIBD9CwQAIAEgDWogASANav0ABAAgCf0T/eYBIAr9EyAP/eYBIBD94wEgC/0T/eYBIAz9E/3kAf3nAf3lAf0LBAAg' +
  'DUEQaiENIA0gAEkNAAsLMwEBfwNAIAEgA2ogASADav0ABAAgAiADav0ABAD95AH9CwQAIANBEGohAyADIABJDQALC2ECAX8EewNAIAEgAmr9XQMA/V8hAyAB' +
  'IAJq/V0DCP1fIQQgBSADIAP98gH98AEhBSAGIAQgBP3yAf3wASEGIAJBEGohAiACIABJDQALIAUgBv3wASEFIAX9IQAgBf0hAaAL';
