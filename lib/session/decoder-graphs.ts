/** The graphs of a session, from weights to open runtimes. */
import { openRuntime, type Runtime, type RuntimeOptions } from '../graph/runtime.ts';
import type { Constant, Subgraph } from '../graph/subgraph.ts';
import { withGemm } from '../linalg/onnx-gemm.ts';
import { absorptions, type Absorption } from '../models/absorption.ts';
import { hasSteps, isOneRow, pastPort, presentPort, type CacheFormat } from '../models/cache-layout.ts';
import { buildDecoder, cacheLayoutOf, type DecoderForm, type DecoderOptions, type DecoderOutput } from '../models/decoder.ts';
import { loadDecoderWeights } from '../models/decoder-weights.ts';
import { levelRopeKeys } from '../models/level-rope-keys.ts';
import { mergeUpProjections } from '../models/merge-up-projections.ts';
import type { Model } from '../models/model.ts';
import { oneRowProjections } from '../models/one-row-projection.ts';
import { rotateLatents } from '../models/rotate-latent.ts';
import { appendsAreOrdered } from '../passes/appends-are-ordered.ts';
import { runPasses, type Pass } from '../passes/pass.ts';
import { signCodes } from '../passes/sign-codes.ts';
import { appendsInPlace } from './append-in-place.ts';
import { signedProductsAreExact } from './signed-products.ts';

export interface DecoderGraphOptions {
  readonly threads: number | undefined;
  readonly cache: CacheFormat;
  readonly positions: number;
  readonly passes: readonly Pass[];
  readonly decodePasses: readonly Pass[];
  readonly absorption: Absorption | 'auto';
  readonly appendInPlace: boolean;
}

/** A step's graph, and whether it writes its rows into the cache itself. */
export interface DecodeGraph {
  readonly graph: Runtime;
  readonly appends: boolean;
}

export interface DecoderGraphs {
  prefill(form: DecoderForm, output: DecoderOutput): Promise<Runtime>;
  decode(form: DecoderForm): Promise<DecodeGraph>;
  /** A few tokens of one sequence against the cache as it lies, with the logits of each. */
  score(form: DecoderForm): Promise<Runtime>;
  /** One token of each of `sequences` sequences. */
  batch(form: DecoderForm, sequences: number): Promise<Runtime>;
}

/** 4 bytes a weight as a checkpoint has them; passes are taken to quantise to about one. */
const bytesPerWeight = (passes: readonly Pass[]): number => (passes.length === 0 ? 4 : 1);

export function decoderGraphs(model: Model, options: DecoderGraphOptions): DecoderGraphs {
  const { cache, positions, passes } = options;
  const runtimeOptions: RuntimeOptions = options.threads === undefined ? {} : { threads: options.threads };
  const weights = async (): Promise<ReadonlyMap<string, Constant>> => {
    const loaded = await loadDecoderWeights(model);
    return hasSteps(cache) ? levelRopeKeys(model, await withGemm((gemm) => rotateLatents(model, loaded, { gemm }))) : loaded;
  };
  const decodeWeights = async (form: DecoderForm): Promise<ReadonlyMap<string, Constant>> => {
    const loaded = await weights();
    if (model.mla === null || form !== 'absorbed') return loaded;
    const merged = absorptions(model.config, model.mla, bytesPerWeight(passes), options.absorption).flatMap(({ chosen }, layer) => (chosen === 'merged' ? [layer] : []));
    if (merged.length === 0) return loaded;
    const { layers } = model.mla, oneRow = merged.filter((layer) => isOneRow(layers[layer]!, cache, positions));
    return oneRowProjections(model, await withGemm((gemm) => mergeUpProjections(model, loaded, merged, gemm)), oneRow);
  };
  const allPasses = [...passes, ...options.decodePasses];
  const open = async (subgraph: Subgraph): Promise<Runtime> => openRuntime(await signedProductsAreExact() ? signCodes(subgraph) : subgraph, runtimeOptions);
  const split = async (form: DecoderForm, how: Pick<DecoderOptions, 'sequences'>): Promise<Runtime> =>
    open(runPasses(buildDecoder(model, await decodeWeights(form), { form, join: false, output: 'logits', cache, positions, ...how }), allPasses));
  return {
    score: (form) => split(form, {}),
    batch: (form, sequences) => split(form, { sequences }),
    prefill: async (form, output) => open(runPasses(buildDecoder(model, await weights(), { form, join: true, output, cache, positions }), passes)),
    async decode(form) {
      const constants = await decodeWeights(form), layout = cacheLayoutOf(model, cache, positions);
      const build = (appended: boolean) => {
        const one: DecoderOptions = { form, join: false, appended, output: 'last', cache, positions, tokens: 1 };
        return runPasses(buildDecoder(model, constants, one), allPasses);
      };
      const appending = options.appendInPlace ? build(true) : null;
      if (appending !== null && appendsAreOrdered(appending, layout.map((part) => ({ input: pastPort(part), output: presentPort(part) })))) {
        const graph = await open(appending);
        if (await appendsInPlace(graph, layout)) return { graph, appends: true };
        await graph.release();
      }
      return { graph: await open(build(false)), appends: false };
    },
  };
}
