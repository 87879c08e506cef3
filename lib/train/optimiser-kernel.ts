/**
 * What an optimiser does to long rows of float32, in WebAssembly with 128-bit vectors (adamw.wat): a plain loop over the
 * 135 million weights of a small model would take a fifth of a training step. Rows pass through one small memory in
 * blocks that stay in the processor's cache.
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

/** Opens the kernel; it keeps no state between calls. */
export function optimiserKernel(): OptimiserKernel {
  const memory = new WebAssembly.Memory({ initial: 5 });
  const code = new WebAssembly.Module(Uint8Array.from(atob(instructions), (character) => character.charCodeAt(0)));
  const { exports } = new WebAssembly.Instance(code, { host: { memory } });
  const [w, m, v, g] = [0, 1, 2, 3].map((i) => new Float32Array(memory.buffer, blockStart(i), BLOCK));
  if (w === undefined || m === undefined || v === undefined || g === undefined) throw new RangeError('optimiserKernel: memory must hold four rows');
  /** Blocks of `length` elements, with their bytes rounded up to whole vectors. */
  const blocks = (length: number, visit: (from: number, to: number, bytes: number) => void): void => {
    for (let from = 0; from < length; from += BLOCK) {
      const to = Math.min(length, from + BLOCK);
      visit(from, to, 16 * Math.ceil((to - from) / 4));
    }
  };
  const load = (into: Float32Array, row: Float32Array, from: number, to: number): void => {
    into.set(row.subarray(from, to));
    if ((to - from) % 4 !== 0) into.fill(0, to - from, to - from + 3);
  };
  const sameLength = (caller: string, a: Float32Array, b: Float32Array): void => {
    if (a.length !== b.length) throw new RangeError(`${caller}: rows must have the same length, got ${a.length} and ${b.length}`);
  };
  return {
    adamw({ weights, first, second, gradient }, { gradientScale, beta1, beta2, keep, stepSize, rootScale, epsilon }) {
      for (const row of [first, second, gradient]) sameLength('adamw', weights, row);
      blocks(weights.length, (from, to, bytes) => {
        load(w, weights, from, to);
        load(m, first, from, to);
        load(v, second, from, to);
        load(g, gradient, from, to);
        exports.adamw(bytes, w.byteOffset, m.byteOffset, v.byteOffset, g.byteOffset, gradientScale, 1 - beta1, beta2, 1 - beta2, keep, stepSize, rootScale, epsilon);
        weights.set(w.subarray(0, to - from), from);
        first.set(m.subarray(0, to - from), from);
        second.set(v.subarray(0, to - from), from);
      });
    },
    add(sum, addend) {
      sameLength('add', sum, addend);
      blocks(sum.length, (from, to, bytes) => {
        load(w, sum, from, to);
        load(g, addend, from, to);
        exports.add(bytes, w.byteOffset, g.byteOffset);
        sum.set(w.subarray(0, to - from), from);
      });
    },
    squares(row) {
      let total = 0;
      blocks(row.length, (from, to, bytes) => {
        load(g, row, from, to);
        total += exports.squares(bytes, g.byteOffset);
      });
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
