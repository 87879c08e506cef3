/**
 * What is left of a conversion's error, repaired by least squares: layer by layer, with the converted model's own inputs,
 * o_proj and its bias are fitted to the source's attention output. Source: this project, docs/frequency-bank.md, step 3.
 */
import { freeMemory } from './free-memory.ts';
import { openForWindows } from './graph/open-for-windows.ts';
import type { Runtime } from './graph/runtime.ts';
import type { Constant, HostTensor } from './graph/subgraph.ts';
import type { Gemm } from './linalg/gemm.ts';
import { solveSpd } from './linalg/cholesky.ts';
import { matrix } from './linalg/matrix.ts';
import { loadLayerWeights } from './models/decoder-weights.ts';
import type { Model } from './models/model.ts';
import { convertedAttentionSubgraph, convertedBodySubgraph } from './refit-graph.ts';
import type { Calibration } from './statistics/calibration.ts';
import { embedWindows } from './statistics/embed-windows.ts';
import { sourceLayerSubgraph } from './statistics/layer-graph.ts';
import { memoryStore, type WindowStore } from './statistics/window-store.ts';
import type { MlaLayer } from './surgery/build-mla-layer.ts';
import { replaceOutput, valuesFromLatent } from './surgery/refitted-output.ts';

export interface RefitOptions {
  readonly gemm: Gemm;
  /** False measures the error without changing a weight. Default true. */
  readonly change?: boolean;
  /** The first windows of the calibration. Default `REFIT_WINDOWS`. */
  readonly windows?: number;
  /** Ridge, relative to the mean squared feature. Default 0.03. */
  readonly damping?: number;
  /**
   * Weight of the first `heavyRows` rows of each window (default 4 rows, and 32 for each 1024 tokens of the window, at least
   * 1): the sink token carries massive activations in some layers, and an error there drifts through all later ones.
   */
  readonly heavyRows?: number;
  readonly heavyWeight?: number;
  readonly threads?: number;
  readonly signal?: AbortSignal;
}

export interface RefittedLayer {
  readonly mla: MlaLayer;
  /** ||o_source - o|| / ||o_source|| over the windows' attention outputs, in the converted model's own stream. */
  readonly errorBefore: number;
  readonly errorAfter: number;
}

/** Takes the layers of a conversion in order, each once. */
export interface Refit {
  /** Windows it runs on: the first of the calibration. */
  readonly windows: number;
  /**
   * `targets` are the source attention's outputs of those windows, where somebody has run the source anyway; without them
   * it is run here. Once given they must be given for all later layers.
   */
  next(mla: MlaLayer, targets?: WindowStore | null): Promise<RefittedLayer>;
}

/** Enough for o_proj's 577 features on SmolLM2-135M: 8k tokens. */
export const REFIT_WINDOWS = 8;

/** Starts at layer 0 with the embeddings of the calibration's windows. Errors: a layer out of order. */
export async function openRefit(model: Model, calibration: Calibration, options: RefitOptions): Promise<Refit> {
  const { windows: count = REFIT_WINDOWS, damping = 0.03, heavyRows = 4, change = true, gemm, signal } = options;
  const { window } = calibration;
  const heavyWeight = options.heavyWeight ?? Math.max(1, window / 32);
  const windows = calibration.windows.slice(0, count);
  const rowWeights = Float32Array.from({ length: window }, (_, row) => (row < heavyRows ? heavyWeight : 1));
  const source = memoryStore();
  await embedWindows(model, windows, source);
  // The same embeddings start both streams; neither writes into them.
  const converted = memoryStore();
  for (const at of windows.keys()) await converted.write(at, await source.read(at));
  const runtimeOptions = { threads: options.threads };
  const eachWindow = async (runtime: Promise<Runtime>, use: (runtime: Runtime, at: number) => Promise<void>): Promise<void> => {
    const open = await runtime;
    try {
      for (const at of windows.keys()) {
        signal?.throwIfAborted();
        await use(open, at);
      }
    } finally {
      await open.release();
    }
  };
  const state = (data: Float32Array): HostTensor => ({ dtype: 'float32', shape: [1, window, model.config.hidden], data });
  /** The layer fitted to the targets, what its heads attend to, and the squares of its error before and of the targets. The normal equations are gone when this returns. */
  const fit = async (before: MlaLayer, constants: ReadonlyMap<string, Constant>, targets: WindowStore): Promise<{ mla: MlaLayer; attended: WindowStore; lost: number; whole: number }> => {
    const { hidden } = before, features = before.heads * before.valueWidth;
    const attended = memoryStore();
    const [gram, cross] = [new Float64Array((features + 1) ** 2), new Float64Array((features + 1) * hidden)];
    let [lost, whole] = [0, 0];
    const wanted = ['attended', 'lost', 'whole', ...(change ? ['gram', 'cross'] : [])];
    await eachWindow(openForWindows(convertedAttentionSubgraph(model, before, constants, rowWeights), runtimeOptions), async (runtime, at) => {
      const parts = await runtime.run({ hidden: state(await converted.read(at)), target: state(await targets.read(at)) }, wanted);
      await attended.write(at, floats(parts.attended, 'attended'));
      lost += sumOf(parts.lost);
      whole += sumOf(parts.whole);
      if (change) {
        const [gramPart, crossPart] = [floats(parts.gram, 'gram'), floats(parts.cross, 'cross')];
        addTo(gram, gramPart);
        addTo(cross, crossPart);
        freeMemory([gramPart, crossPart]);
      }
    });
    if (!change) return { mla: before, attended, lost, whole };
    const step = await ridgeStep(gram, cross, features, hidden, damping, gemm);
    freeMemory([gram, cross]);
    const mla = replaceOutput(before, step);
    freeMemory([step]);
    return { mla, attended, lost, whole };
  };
  let expected = 0;
  let sourceAt = 0; // the layer whose input `source` holds
  return {
    windows: windows.length,
    async next(given, known = null) {
      const { layer, hidden } = given;
      if (layer !== expected) throw new RangeError(`openRefit: layers must come in order, layer ${expected} is next, got ${layer}`);
      expected++;
      const last = expected === model.config.layers;
      const constants = await loadLayerWeights(model, layer);
      const targets = known ?? memoryStore();
      if (known === null) {
        if (sourceAt !== layer) throw new RangeError(`openRefit: targets must go on being given, got none for layer ${layer}`);
        await eachWindow(openForWindows(sourceLayerSubgraph(model, constants, layer, window, last ? ['attention'] : ['next', 'attention']), runtimeOptions), async (runtime, at) => {
          const { next, attention } = await runtime.run({ hidden: state(await source.read(at)) });
          await targets.write(at, floats(attention, 'attention'));
          if (!last) await source.write(at, floats(next, 'next'));
        });
        sourceAt = layer + 1;
      }

      const { mla, attended, lost, whole } = await fit(change ? valuesFromLatent(given) : given, constants, targets);
      let lostAfter = 0;
      const output = {
        o_weight: mla.weights.output.weight,
        o_bias: mla.weights.output.bias ?? { dtype: 'float32', shape: [hidden], data: new Float32Array(hidden) },
      } satisfies Record<string, HostTensor>;
      await eachWindow(openForWindows(convertedBodySubgraph(model, mla, constants, window), runtimeOptions), async (runtime, at) => {
        const feeds = { hidden: state(await converted.read(at)), target: state(await targets.read(at)), attended: { dtype: 'float32', shape: [1, window, mla.heads * mla.valueWidth], data: await attended.read(at) }, ...output } satisfies Record<string, HostTensor>;
        const parts = await runtime.run(feeds, last ? ['lost'] : ['next', 'lost']);
        lostAfter += sumOf(parts.lost);
        if (!last) await converted.write(at, floats(parts.next, 'next'));
      });
      const relative = (squares: number): number => (whole === 0 ? 0 : Math.sqrt(squares / whole));
      return { mla, errorBefore: relative(lost), errorAfter: relative(lostAfter) };
    },
  };
}

/** X [f + 1, d] of (gram + ridge) X = cross; features that never differ from zero do not count for the ridge. */
async function ridgeStep(gram: Float64Array, cross: Float64Array, features: number, hidden: number, damping: number, gemm: Gemm): Promise<Float64Array> {
  const n = features + 1;
  const squares = Array.from({ length: features }, (_, i) => gram[i * n + i] ?? 0).filter((x) => x > 0);
  const mean = squares.reduce((sum, x) => sum + x, 0) / Math.max(squares.length, 1);
  if (!(mean > 0)) return new Float64Array(n * hidden);
  return (await solveSpd(matrix(n, n, gram), matrix(n, hidden, cross), { gemm, ridge: damping * mean })).data;
}

function floats(tensor: HostTensor | undefined, name: string): Float32Array {
  if (tensor?.dtype !== 'float32') throw new TypeError(`openRefit: output ${name} must be float32, got ${tensor?.dtype}`);
  return tensor.data;
}

const sumOf = (tensor: HostTensor | undefined): number => floats(tensor, 'lost').reduce((sum, x) => sum + x, 0);

function addTo(sum: Float64Array, part: Float32Array): void {
  for (let i = 0; i < sum.length; i++) sum[i]! += part[i]!;
}
