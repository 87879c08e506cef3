/** The inner loop of tridiagonalise.ts, in WebAssembly with 128-bit vectors, or in plain loops where those are missing. */

/** The numbers that a step reads and writes; they lie in one memory. */
export interface StepWorkspace {
  /** A symmetric matrix A, row-major n x n; only the lower triangle counts. */
  readonly block: Float64Array;
  /** Four vectors of n numbers. */
  readonly v: Float64Array;
  readonly w: Float64Array;
  readonly x: Float64Array;
  readonly y: Float64Array;
  /**
   * In the leading rows x rows part, rows < n: A -= v w^T + w v^T, then y = A x. Row `rows` of A and y[rows] are scratch;
   * x[rows] must be 0. One pass over A, because memory is what limits the speed.
   */
  step(rows: number): void;
}

/** A workspace of zeros for an n x n matrix: `fastWorkspace` where this process can, else `plainWorkspace`. */
export const stepWorkspace = (n: number): StepWorkspace => fastWorkspace(n) ?? plainWorkspace(n);

/** In obvious loops: the reference, about seven times slower. */
export function plainWorkspace(n: number): StepWorkspace {
  const workspace = divide(n, new ArrayBuffer(numbersFor(n) * 8));
  return {
    ...workspace,
    step(rows) {
      const { block, v, w, x, y } = workspace;
      y.fill(0);
      for (let r = 0; r < rows; r++) {
        const row = r * n;
        const [vr, wr, xr] = [v[r]!, w[r]!, x[r]!];
        let sum = 0;
        for (let j = 0; j < r; j++) {
          const a = block[row + j]! - (vr * w[j]! + wr * v[j]!);
          block[row + j] = a;
          sum += a * x[j]!;
          y[j]! += a * xr;
        }
        block[row + r]! -= 2 * vr * wr;
        y[r]! += sum + block[row + r]! * xr;
      }
    },
  };
}

/** In WebAssembly (householder-step.wat), or null when vectors are unsupported or the matrix exceeds its 4 GiB. */
export function fastWorkspace(n: number): StepWorkspace | null {
  const pages = Math.ceil((numbersFor(n) * 8) / pageBytes);
  if (pages > maxPages) return null;
  const code = compiled();
  if (code === null) return null;
  const memory = new WebAssembly.Memory({ initial: pages });
  const { step } = new WebAssembly.Instance(code, { host: { memory } }).exports;
  if (step === undefined) throw new Error('fastWorkspace: householder-step.wat must export step');
  const workspace = divide(n, memory.buffer);
  const { block, v, w, x, y } = workspace;
  return {
    ...workspace,
    step(rows) {
      y.fill(0);
      if (rows > 0) step(block.byteOffset, n * 8, rows * 8, v.byteOffset, w.byteOffset, x.byteOffset, y.byteOffset);
    },
  };
}

const pageBytes = 65536;
const maxPages = 65536;
const numbersFor = (n: number): number => n * n + 4 * n + 2; // the last pair of rows may reach one number past the end

function divide(n: number, buffer: ArrayBuffer): Omit<StepWorkspace, 'step'> {
  const vector = (k: number): Float64Array => new Float64Array(buffer, (n * n + k * n) * 8, n);
  return { block: new Float64Array(buffer, 0, n * n), v: vector(0), w: vector(1), x: vector(2), y: vector(3) };
}

/** The part of the host's WebAssembly used here; the compiler settings of a Node library do not declare it. */
declare const WebAssembly: {
  validate(bytes: Uint8Array): boolean;
  Module: new (bytes: Uint8Array) => object;
  Memory: new (size: { initial: number }) => { readonly buffer: ArrayBuffer };
  Instance: new (module: object, imports: { host: { memory: object } }) => { readonly exports: { step?: (...numbers: number[]) => void } };
};

let cached: object | null | undefined;

function compiled(): object | null {
  if (cached === undefined) {
    const bytes = Uint8Array.from(atob(instructions), (character) => character.charCodeAt(0));
    cached = WebAssembly.validate(bytes) ? new WebAssembly.Module(bytes) : null;
  }
  return cached;
}

/** householder-step.wat assembled; the command is at its head. */
const instructions =
  'AGFzbQEAAAABCwFgB39/f39/f38AAhABBGhvc3QGbWVtb3J5AgABAwIBAAcIAQRzdGVwAAAKvgQBuwQDBH8NewN8A0AgACABaiEHIAMgCGr9CgMAIQsg' +
  'BCAIav0KAwAhDCAFIAhq/QoDACENIAMgCGr9CgMIIRAgBCAIav0KAwghESAFIAhq/QoDCCES/QwAAAAAAAAAAAAAAAAAAAAAIQ79DAAAAAAAAAAAAAAA' +
  'AAAAAAAhE0EAIQkgCSAISQRAA0AgAyAJav0ABAAhFSAEIAlq/QAEACEWIAUgCWr9AAQAIRcgACAJaiEKIAr9AAQAIAsgFv3yASAMIBX98gH98AH98QEh' +
  'DyAKIA/9CwQAIAcgCWohCiAK/QAEACAQIBb98gEgESAV/fIB/fAB/fEBIRQgCiAU/QsEACAOIA8gF/3yAf3wASEOIBMgFCAX/fIB/fABIRMgBiAJaiEK' +
  'IAogCv0ABAAgDyAN/fIBIBQgEv3yAf3wAf3wAf0LBAAgCUEQaiEJIAkgCEkNAAsLIAAgCGohCiAKKwMARAAAAAAAAABAIAv9IQAgDP0hAKKioSEYIAog' +
  'GDkDACAHIAhqIQogCisDACAQ/SEAIAz9IQCiIBH9IQAgC/0hAKKgoSEZIAogGTkDACAKKwMIRAAAAAAAAABAIBD9IQAgEf0hAKKioSEaIAogGjkDCCAG' +
  'IAhqIQogCiAKKwMAIA79IQAgDv0hAaAgGCAN/SEAoiAZIBL9IQCioKCgOQMAIAogCisDCCAT/SEAIBP9IQGgIBkgDf0hAKIgGiAS/SEAoqCgoDkDCCAH' +
  'IAFqIQAgCEEQaiEIIAggAkkNAAsL';
