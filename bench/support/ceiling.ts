/** What this machine can do at most, measured in the run whose figures are held against it. */
import { openRuntime, record, zeros, type HostTensor, type Subgraph } from '../../lib/index.ts';
import { randomTensor } from './random-weights.ts';

export interface Ceiling {
  /** Float32 matrix product of `gemmWidth` squared, GFLOP/s. */
  readonly gemm: number;
  /** The same product of bytes, in 10^9 operations a second. */
  readonly byteGemm: number;
  /** One row times a matrix far larger than any cache: reading memory, GB/s. */
  readonly read: number;
}

export interface CeilingOptions {
  readonly threads: number;
  /** Default 2048. */
  readonly gemmWidth?: number;
  /** Default 256 MiB. */
  readonly readBytes?: number;
  /** Default performance.now. */
  readonly now?: () => number;
}

const ROUNDS = 5;

/** Best of a few runs: a ceiling is what was seen to be possible. */
export async function measureCeiling({ threads, gemmWidth: n = 2048, readBytes = 2 ** 28, now = () => performance.now() }: CeilingOptions): Promise<Ceiling> {
  const least = async (subgraph: Subgraph, feeds: Readonly<Record<string, HostTensor>>): Promise<number> => {
    const runtime = await openRuntime(subgraph, { threads });
    try {
      let best = Infinity;
      for (let i = 0; i <= ROUNDS; i++) {
        const start = now();
        await runtime.run(feeds);
        if (i > 0) best = Math.min(best, now() - start);
      }
      return best;
    } finally {
      await runtime.release();
    }
  };
  const product = (rows: number, inner: number, cols: number): Subgraph =>
    record('product', { a: { dtype: 'float32', shape: [rows, inner] }, b: { dtype: 'float32', shape: [inner, cols] } }, (g, { a, b }) => ({ c: g.einsum('ik,kj->ij', a, b) }));
  const bytes = record('byte-product', { a: { dtype: 'uint8', shape: [n, n] }, b: { dtype: 'uint8', shape: [n, n] } }, (g, { a, b }) => {
    const [sums] = g.append('MatMulInteger', [a, b], [{ dtype: 'int32', shape: [n, n] }]);
    if (sums === undefined) throw new Error('measureCeiling: MatMulInteger must have an output');
    return { c: sums };
  });
  const squares = { a: zeros('float32', [n, n]), b: zeros('float32', [n, n]) };
  const side = Math.floor(Math.sqrt(readBytes / 4));
  return {
    gemm: (2 * n ** 3) / (await least(product(n, n, n), squares)) / 1e6,
    byteGemm: (2 * n ** 3) / (await least(bytes, { a: zeros('uint8', [n, n]), b: zeros('uint8', [n, n]) })) / 1e6,
    // Not zeros: pages never written to are one page of memory, which stays in the cache.
    read: (4 * side ** 2) / (await least(product(1, side, side), { a: randomTensor([1, side]), b: randomTensor([side, side]) })) / 1e6,
  };
}

/** Milliseconds below which a piece of work cannot fall: its operations or its bytes, whichever take longer. */
export const floorMs = (flops: number, bytes: number, { gemm, read }: Pick<Ceiling, 'gemm' | 'read'>): number => Math.max(flops / gemm, bytes / read) / 1e6;
