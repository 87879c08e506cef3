/** Codes of a whole graph's matrices, rounded for the inputs that calibration text sends through them. */
import { openRuntime } from '../graph/runtime.ts';
import type { HostTensor, Subgraph } from '../graph/subgraph.ts';
import { withGemm } from '../linalg/onnx-gemm.ts';
import { matrix } from '../linalg/matrix.ts';
import type { Bits, BlockCodes } from './block-codes.ts';
import type { BlockRoundingName } from './block-rounding.ts';
import { compensatedCodes } from './compensated-codes.ts';
import { constantProduct, constantValues, type ConstantProduct } from './constant-weight.ts';
import { inputMoments } from './input-moments.ts';
import { edgesOf, operator } from './pass.ts';
import { fittingBlockSize, MIN_WEIGHTS } from './quantise-weights.ts';
import { infoOf, naming, type WeightInfo } from './weight-report.ts';

export interface CalibratedCodesOptions {
  /** Default 4. */
  readonly bits?: Bits;
  /** As for quantiseWeights. Default 32. */
  readonly blockSize?: number;
  /** Default 'search-symmetric': no zero points, which some processors take time for, and no worse with calibration (docs/log.md). */
  readonly rounding?: BlockRoundingName;
  /** See compensatedCodes. */
  readonly damping?: number;
  /** Which matrices. Default: all that no Gather reads; the codes of an embedding serve its rows too, which moments say nothing of. */
  readonly select?: (weight: WeightInfo) => boolean;
  /** Bytes of moments in memory at a time; fewer mean more runs over the text. Default 512 MiB. */
  readonly momentBytes?: number;
  readonly threads?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (doneMatrices: number, matrices: number) => void;
}

const BLOCK_SIZE = 32;
/** Per element of a moment: the engine's output, its copy and the float64 sum. */
const BYTES_PER_MOMENT = 16;

/**
 * Weight name -> codes, for quantiseWeights' `codesOf`. `feeds`: one set of inputs per calibration window. Moments are
 * those of the given graph, not of the rounded one. The codes belong to these very weights: a graph that holds other
 * numbers under the same names (a rotated latent) needs codes of its own.
 * Errors: no windows; those of compensatedCodes, naming the matrix; the signal's reason.
 */
export async function calibratedCodes(
  subgraph: Subgraph, feeds: readonly Readonly<Record<string, HostTensor>>[], options: CalibratedCodesOptions = {},
): Promise<ReadonlyMap<string, BlockCodes>> {
  const { bits = 4, blockSize = BLOCK_SIZE, rounding = 'search-symmetric', damping, momentBytes = 2 ** 29, signal, threads } = options;
  if (feeds.length === 0) throw new RangeError('calibratedCodes: there must be at least one window of text, got none');
  const products = calibratedProducts(subgraph, options);
  const made = new Map<string, BlockCodes>();
  const engine = threads === undefined ? {} : { threads };
  await withGemm(async (gemm) => {
    for (const group of groupsOf(products, momentBytes)) {
      const names = new Set(group.map(({ weight }) => weight.name));
      const { sums, outputs } = await sumMoments(subgraph, feeds, names, engine, signal);
      for (const { weight, inputs, outputs: rows } of group) {
        signal?.throwIfAborted();
        const size = fittingBlockSize(inputs, blockSize), moments = sums.get(outputs.get(weight.name) ?? '');
        if (size === null || moments === undefined) continue;
        const values = constantValues(weight.constant).data;
        made.set(weight.name, await compensatedCodes(values, rows, inputs, matrix(inputs, inputs, moments), {
          bits, blockSize: size, rounding, gemm, ...(damping === undefined ? {} : { damping }),
        }).catch((error: unknown) => naming('calibratedCodes', weight.name, () => { throw error; })));
        options.onProgress?.(made.size, products.length);
      }
    }
  }, engine);
  return made;
}

/** Names of the matrices that calibratedCodes makes codes of. */
export const calibratedNames = (subgraph: Subgraph, options: CalibratedCodesOptions): string[] => calibratedProducts(subgraph, options).map(({ weight }) => weight.name);

/** Each matrix once, as checkpoints store it: [outputs, inputs]. */
function calibratedProducts(subgraph: Subgraph, { blockSize = BLOCK_SIZE, select = () => true }: CalibratedCodesOptions): ConstantProduct[] {
  const edges = edgesOf(subgraph), byName = new Map<string, ConstantProduct>();
  for (const node of subgraph.nodes) {
    const product = constantProduct(edges, node);
    if (product === null || !product.weight.transposed || byName.has(product.weight.name)) continue;
    const isTable = edges.readers(product.weight.name).some((reader) => operator(reader) === 'Gather');
    const fits = product.inputs * product.outputs >= MIN_WEIGHTS && fittingBlockSize(product.inputs, blockSize) !== null;
    if (!isTable && fits && select(infoOf(product))) byName.set(product.weight.name, product);
  }
  return [...byName.values()];
}

/** Runs of products in the graph's order whose distinct inputs have moments of at most `most` bytes; at least one each. */
function groupsOf(products: readonly ConstantProduct[], most: number): ConstantProduct[][] {
  const groups: ConstantProduct[][] = [];
  let bytes = Infinity, seen = new Set<string>();
  for (const product of products) {
    const own = seen.has(product.x) ? 0 : BYTES_PER_MOMENT * product.inputs ** 2;
    if (bytes + own > most) {
      groups.push([]);
      bytes = 0;
      seen = new Set();
    }
    bytes += seen.has(product.x) ? 0 : BYTES_PER_MOMENT * product.inputs ** 2;
    seen.add(product.x);
    groups.at(-1)?.push(product);
  }
  return groups;
}

async function sumMoments(
  subgraph: Subgraph, feeds: readonly Readonly<Record<string, HostTensor>>[], names: ReadonlySet<string>, engine: { readonly threads?: number }, signal: AbortSignal | undefined,
): Promise<{ sums: ReadonlyMap<string, Float64Array>; outputs: ReadonlyMap<string, string> }> {
  const moments = inputMoments(subgraph, ({ name }) => names.has(name));
  const runtime = await openRuntime(moments.subgraph, engine);
  const sums = new Map<string, Float64Array>();
  try {
    for (const feed of feeds) {
      signal?.throwIfAborted();
      for (const [name, { data }] of Object.entries(await runtime.run(feed))) {
        const sum = sums.get(name) ?? new Float64Array(data.length);
        for (let i = 0; i < sum.length; i++) sum[i]! += Number(data[i]);
        sums.set(name, sum);
      }
    }
  } finally {
    await runtime.release();
  }
  return { sums, outputs: moments.outputs };
}
