/** Matrix products by onnxruntime: MatMul and Gemm as one-node subgraphs over symbolic sizes. */
import { openRuntime, type Runtime, type RuntimeOptions } from '../graph/runtime.ts';
import type { HostTensor, Subgraph } from '../graph/subgraph.ts';
import { multiplyPlain, productSize, type Gemm, type GemmOptions } from './gemm.ts';
import type { FloatArray, Matrix } from './matrix.ts';

export type OnnxGemmOptions = Pick<RuntimeOptions, 'threads' | 'spinning'>;

/** A Gemm that holds onnxruntime sessions until released. */
export interface OpenGemm extends Gemm {
  /** Frees the sessions; later large products open them anew. */
  release(): Promise<void>;
}

/** Multiply-adds below which plain loops beat the call into onnxruntime (about 30 us, and its threads must wake). */
const plainBelow = 2e5;

/**
 * Products by onnxruntime on `threads` threads (default as `openRuntime`), float32 and float64, transposes without copies;
 * those under 2e5 multiply-adds stay in plain loops. Sessions are opened by the first product that needs them.
 * `spinning` is off by default: between products the factorisations compute themselves, and threads that spin meanwhile
 * made a 384 x 576 SVD four times slower on a busy two-core machine.
 * Plain sums are float64; onnxruntime sums in the matrices' own type.
 */
export function openGemm(options: OnnxGemmOptions = {}): OpenGemm {
  const sessions = new Map<string, Promise<Runtime>>();
  const sessionFor = (dtype: FloatName, { transposeA = false, transposeB = false }: GemmOptions): Promise<Runtime> => {
    const key = `${dtype} ${transposeA} ${transposeB}`;
    let session = sessions.get(key);
    if (session === undefined) {
      // An arena would keep, beside the results, as much memory as the largest product ever took.
      session = openRuntime(productSubgraph(dtype, transposeA, transposeB), { spinning: false, memoryArena: false, memoryPattern: false, ...options });
      sessions.set(key, session);
    }
    return session;
  };
  return {
    async multiply<A extends FloatArray>(a: Matrix<A>, b: Matrix<A>, transposes: GemmOptions = {}): Promise<Matrix<A>> {
      const { rows, inner, cols } = productSize(a, b, transposes);
      if (rows * inner * cols < plainBelow) return multiplyPlain(a, b, transposes);
      const left = hostTensor(a);
      const session = await sessionFor(left.dtype, transposes);
      const { c } = await session.run({ a: left, b: hostTensor(b) });
      // openRuntime checks that an output has its port's type, which is that of the inputs
      return { rows, cols, data: c!.data as A };
    },
    async release() {
      const open = [...sessions.values()];
      sessions.clear();
      for (const session of open) await (await session).release();
    },
  };
}

type FloatName = 'float32' | 'float64';

/** a, b -> c = op(a) op(b) */
function productSubgraph(dtype: FloatName, transposeA: boolean, transposeB: boolean): Subgraph {
  const plain = !transposeA && !transposeB;
  return {
    name: 'product',
    inputs: [
      { name: 'a', dtype, shape: transposeA ? ['k', 'm'] : ['m', 'k'] },
      { name: 'b', dtype, shape: transposeB ? ['n', 'k'] : ['k', 'n'] },
    ],
    outputs: [{ name: 'c', dtype, shape: ['m', 'n'] }],
    nodes: [{
      op: plain ? 'MatMul' : 'Gemm',
      domain: '',
      inputs: ['a', 'b'],
      outputs: ['c'],
      attributes: plain ? {} : { transA: { kind: 'int', value: Number(transposeA) }, transB: { kind: 'int', value: Number(transposeB) } },
    }],
    constants: new Map(),
  };
}

function hostTensor({ rows, cols, data }: Matrix<FloatArray>): Extract<HostTensor, { dtype: FloatName }> {
  const shape = [rows, cols];
  return data instanceof Float32Array ? { dtype: 'float32', shape, data } : { dtype: 'float64', shape, data };
}

/** Runs `work` with a gemm of its own and releases it. */
export async function withGemm<T>(work: (gemm: Gemm) => Promise<T>, options: OnnxGemmOptions = {}): Promise<T> {
  const gemm = openGemm(options);
  try {
    return await work(gemm);
  } finally {
    await gemm.release();
  }
}
