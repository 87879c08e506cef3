/** The graphs of a session, from weights to open runtimes. */
import { tmpdir } from 'node:os';
import { collectGarbage } from '../collect-garbage.ts';
import { openRuntime, type Runtime, type RuntimeOptions } from '../graph/runtime.ts';
import { spillConstants } from '../graph/spill.ts';
import type { Constant, Subgraph } from '../graph/subgraph.ts';
import { withGemm } from '../linalg/onnx-gemm.ts';
import type { Absorption } from '../models/absorption.ts';
import { hasSteps, pastPort, presentPort, type CacheFormat } from '../models/cache-layout.ts';
import { buildDecoder, cacheLayoutOf, type DecoderForm, type DecoderOptions, type DecoderOutput } from '../models/decoder.ts';
import { loadDecoderWeights } from '../models/decoder-weights.ts';
import { levelRopeKeys } from '../models/level-rope-keys.ts';
import type { Model } from '../models/model.ts';
import { rotateLatents } from '../models/rotate-latent.ts';
import { appendsAreOrdered } from '../passes/appends-are-ordered.ts';
import { fuseTransposedWeights } from '../passes/fuse-transposed-weights.ts';
import { gatherApart } from '../passes/gather-apart.ts';
import { runPasses, type Pass } from '../passes/pass.ts';
import { signCodes } from '../passes/sign-codes.ts';
import { appendsInPlace } from './append-in-place.ts';
import { signedProductsAreExact } from './signed-products.ts';
import { QUANTISED_BYTES_PER_WEIGHT, stepWeights } from './step-weights.ts';

export interface DecoderGraphOptions {
  readonly runtime: RuntimeOptions;
  readonly cache: CacheFormat;
  readonly positions: number;
  readonly passes: readonly Pass[];
  readonly decodePasses: readonly Pass[];
  readonly absorption: Absorption | 'auto';
  readonly appendInPlace: boolean;
}

/** A graph, and whether it writes its rows into the cache itself. */
export interface OpenGraph {
  readonly graph: Runtime;
  readonly appends: boolean;
}

interface Made extends Pick<OpenGraph, 'appends'> {
  readonly subgraph: Subgraph;
}

export interface DecoderGraphs {
  prefill(form: DecoderForm, output: DecoderOutput): Promise<OpenGraph>;
  decode(form: DecoderForm): Promise<OpenGraph>;
  /** A few tokens of one sequence against the cache as it lies, with the logits of each. */
  score(form: DecoderForm): Promise<OpenGraph>;
  /** One token of each of `sequences` sequences. */
  batch(form: DecoderForm, sequences: number): Promise<OpenGraph>;
}

/** 4 bytes a weight as a checkpoint has them; passes are taken to quantise. */
const bytesPerWeight = (passes: readonly Pass[]): number => (passes.length === 0 ? 4 : QUANTISED_BYTES_PER_WEIGHT);

export function decoderGraphs(model: Model, options: DecoderGraphOptions): DecoderGraphs {
  const { cache, positions, passes } = options;
  const weights = async (): Promise<ReadonlyMap<string, Constant>> => {
    const loaded = await loadDecoderWeights(model);
    return hasSteps(cache) ? levelRopeKeys(model, await withGemm((gemm) => rotateLatents(model, loaded, { gemm }))) : loaded;
  };
  const decodeWeights = async (form: DecoderForm): Promise<ReadonlyMap<string, Constant>> => {
    const loaded = await weights();
    return form === 'absorbed' ? stepWeights(model, loaded, { cache, positions, bytesPerWeight: bytesPerWeight(passes), absorption: options.absorption }) : loaded;
  };
  const allPasses = [...passes, ...options.decodePasses];
  /** Weights in JavaScript live no longer than this: none are left there while the engine copies those it has mapped. */
  const stored = async (make: () => Promise<Made>): Promise<Made & { readonly done: () => void }> => {
    const { subgraph, appends } = await make();
    return { ...spillConstants(gatherApart(await signedProductsAreExact() ? signCodes(subgraph) : subgraph), tmpdir()), appends };
  };
  const open = async (make: () => Promise<Made>): Promise<OpenGraph> => {
    const { subgraph, appends, done } = await stored(make);
    collectGarbage();
    try {
      // A step that appends has memory for all it returns, its caller's: there is nothing to copy.
      return { graph: await openRuntime(subgraph, { ...options.runtime, uncopied: appends }), appends };
    } finally {
      done();
    }
  };
  const returning = (make: () => Promise<Subgraph>): Promise<OpenGraph> => open(async () => ({ subgraph: await make(), appends: false }));
  const split = (form: DecoderForm, how: Pick<DecoderOptions, 'sequences'>): Promise<OpenGraph> =>
    returning(async () => runPasses(buildDecoder(model, await decodeWeights(form), { form, join: false, output: 'logits', cache, positions, ...how }), allPasses));
  return {
    score: (form) => split(form, {}),
    batch: (form, sequences) => split(form, { sequences }),
    prefill: (form, output) => returning(async () => runPasses(buildDecoder(model, await weights(), { form, join: true, output, cache, positions }), [...passes, fuseTransposedWeights])),
    async decode(form) {
      const layout = cacheLayoutOf(model, cache, positions), ports = layout.map((part) => ({ input: pastPort(part), output: presentPort(part) }));
      const step = (mayAppend: boolean): Promise<OpenGraph> => open(async () => {
        const constants = await decodeWeights(form);
        const build = (appended: boolean): Subgraph => runPasses(buildDecoder(model, constants, { form, join: false, appended, output: 'last', cache, positions, tokens: 1 }), allPasses);
        const appending = mayAppend ? build(true) : null;
        return appending !== null && appendsAreOrdered(appending, ports) ? { subgraph: appending, appends: true } : { subgraph: build(false), appends: false };
      });
      const opened = await step(options.appendInPlace);
      if (!opened.appends || await appendsInPlace(opened.graph, layout)) return opened;
      await opened.graph.release();
      return step(false);
    },
  };
}
