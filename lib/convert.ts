/** Whole-model conversion: layer by layer through the four functions into one directory that any loader can read. */
import { mkdir, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { refuseOccupied, writeDirectoryAtomic, writeFileAtomic, type WriteOptions } from './atomic-write.ts';
import { resolveBudget, type Budget } from './budget.ts';
import { openCheckpoint } from './checkpoint/checkpoint.ts';
import { tensorSources, writeSafetensors, type TensorSource } from './checkpoint/write-safetensors.ts';
import type { FactorStrategyName } from './factor/index.ts';
import type { SingularValuePlacement } from './factor/strategy.ts';
import type { HostTensor } from './graph/subgraph.ts';
import type { Gemm } from './linalg/gemm.ts';
import { withGemm } from './linalg/onnx-gemm.ts';
import { bodyTensorNames } from './models/decoder-weights.ts';
import { fingerprintOf } from './models/fingerprint.ts';
import { mlaTensorName, rowElements, type MlaConfig, type MlaExtra, type MlaLayerConfig, type MlaTensor } from './models/mla-config.ts';
import type { Model } from './models/model.ts';
import { planStrategies, type PlanStrategyName } from './plan/index.ts';
import type { LayerStatistics } from './statistics/layer-statistics.ts';
import { readAttentionLayer } from './surgery/attention-layer.ts';
import { buildMlaLayer, type MlaLayer } from './surgery/build-mla-layer.ts';
import { jointKvSvd } from './surgery/joint-kv-svd.ts';
import { rankRopeDims } from './surgery/rank-rope-dims.ts';

export interface ConvertOptions {
  readonly budget?: Budget;
  /** Default 'uniform'. */
  readonly plan?: PlanStrategyName;
  /** Default 'joint'. */
  readonly factor?: FactorStrategyName;
  readonly singularValues?: SingularValuePlacement;
  /** Statistics of every layer, where the strategy needs them. */
  readonly statistics?: readonly LayerStatistics[];
  /** Files to put beside the weights: the tokenizer's, by name. */
  readonly files?: Readonly<Record<string, string>>;
  readonly threads?: number;
  readonly seed?: number;
  readonly onProgress?: (done: number, total: number) => void;
  /** Stops between layers and between writes; nothing is left behind. */
  readonly signal?: AbortSignal;
  readonly writeBytes?: WriteOptions['writeBytes'];
  /** Milliseconds; default performance.now. */
  readonly clock?: () => number;
}

export interface LayerReport {
  readonly layer: number;
  readonly rank: number;
  /** Rotating components of the layer. */
  readonly components: number;
  readonly pairs: number;
  readonly keyError: number;
  readonly valueError: number;
  /** Relative error of the layer's output on calibration text; null without text. */
  readonly outputError: number | null;
  readonly energyKept: number;
  readonly spectrum: readonly number[];
}

export interface ConversionReport {
  readonly source: string;
  readonly plan: string;
  readonly factor: string;
  readonly budget: string;
  readonly cacheElementsPerToken: { readonly before: number; readonly after: number };
  /** 1 - after / before. */
  readonly reduction: number;
  readonly layers: readonly LayerReport[];
  readonly seconds: number;
}

/**
 * Converts a source model into `out`: config.json (with the `mla` block), model.safetensors, `files`, conversion.json.
 * One layer is in memory at a time. The directory appears only when it is whole.
 * Errors: a converted model as source, an occupied `out`, what the four functions refuse, a failed write.
 */
export async function convert(model: Model, out: string, options: ConvertOptions = {}): Promise<ConversionReport> {
  const { plan = 'uniform', factor = 'joint', singularValues = 'up', clock = () => performance.now(), signal } = options;
  if (model.mla !== null) throw new TypeError(`convert: MODEL must be a source model, got ${model.path}, which is converted already`);
  if (planStrategies[plan].needsStatistics && options.statistics === undefined) throw new TypeError(`convert: strategy ${plan} needs calibration text, got none`);
  const budget = resolveBudget(model.config, options.budget ?? {});
  await refuseOccupied(out);
  const start = clock();
  const write: WriteOptions = { signal, writeBytes: options.writeBytes };
  let report: ConversionReport | null = null;
  await writeDirectoryAtomic(out, async (directory) => {
    const layersDirectory = join(directory, '.layers');
    await mkdir(layersDirectory);
    const layers: { readonly file: string; readonly config: MlaLayerConfig; readonly report: LayerReport }[] = [];
    await withGemm(async (gemm) => {
      for (let layer = 0; layer < model.config.layers; layer++) {
        signal?.throwIfAborted();
        const { mla, report: layerReport } = await convertLayer(model, layer, { ...options, plan, factor, singularValues }, budget, gemm);
        const file = join(layersDirectory, `${layer}.safetensors`);
        await writeSafetensors(file, tensorSources(mlaTensors(mla)), write);
        layers.push({ file, config: { rank: mla.rank, frequencies: [...mla.frequencies], nopeWidth: mla.nopeWidth, ...headNormConfig(mla) }, report: layerReport });
        options.onProgress?.(layer + 1, model.config.layers);
      }
    }, options.threads === undefined ? {} : { threads: options.threads });
    const config: MlaConfig = {
      version: 1, scale: model.scale,
      layers: layers.map((layer) => layer.config),
      plan: { strategy: plan, pairs: budget.pairs },
      factor: { strategy: factor, rank: budget.rank, singularValues },
      source: { name: basename(model.path), architecture: model.config.architecture, fingerprint: await fingerprintOf(model) },
    };
    const attention = await Promise.all(layers.map(({ file }) => checkpointSources(file)));
    const body = bodyTensorNames(model).map((name): TensorSource =>
      ({ name, dtype: 'float32', shape: model.checkpoint.tensors.get(name)?.shape ?? [], read: () => model.checkpoint.read(name) }));
    await writeSafetensors(join(directory, 'model.safetensors'), [...body, ...attention.flat()], write);
    await rm(layersDirectory, { recursive: true });
    for (const [name, text] of Object.entries(options.files ?? {})) await writeFileAtomic(join(directory, name), text, write);
    const before = 2 * model.config.kvHeads * model.config.headDim * model.config.layers;
    const after = layers.reduce((sum, layer) => sum + rowElements(layer.config), 0);
    report = {
      source: basename(model.path), plan, factor, budget: budget.reason,
      cacheElementsPerToken: { before, after }, reduction: 1 - after / before,
      layers: layers.map((layer) => layer.report), seconds: (clock() - start) / 1000,
    };
    await writeFileAtomic(join(directory, 'conversion.json'), `${JSON.stringify(report, null, 1)}\n`, write);
    await writeFileAtomic(join(directory, 'config.json'), `${JSON.stringify({ ...model.config.raw, mla: config }, null, 1)}\n`, write);
  }, { signal });
  if (report === null) throw new Error('convert: the directory must have been written');
  return report;
}

type LayerOptions = ConvertOptions & Required<Pick<ConvertOptions, 'plan' | 'factor' | 'singularValues'>>;

async function convertLayer(model: Model, layer: number, options: LayerOptions, budget: { pairs: number; rank: number }, gemm: Gemm): Promise<{ mla: MlaLayer; report: LayerReport }> {
  const attention = await readAttentionLayer(model, layer);
  const statistics = options.statistics?.[layer];
  const plan = rankRopeDims(attention, { strategy: options.plan, pairs: budget.pairs, ...(statistics === undefined ? {} : { statistics }) });
  const factors = await jointKvSvd(attention, plan, { strategy: options.factor, singularValues: options.singularValues, rank: budget.rank, gemm, seed: options.seed ?? 0 });
  const mla = buildMlaLayer(attention, plan, factors);
  return {
    mla,
    report: {
      layer, rank: mla.rank, components: plan.components.length, pairs: budget.pairs, keyError: factors.keyError, valueError: factors.valueError, outputError: null,
      energyKept: factors.energyKept, spectrum: Array.from(factors.spectrum),
    },
  };
}

const headNormConfig = ({ headNorm, kvHeads }: MlaLayer): Pick<MlaLayerConfig, 'headNorm'> => (headNorm === null ? {} : { headNorm: { eps: headNorm.eps, kvHeads } });

/** A layer's tensors under their names in the artefact. */
export function mlaTensors({ layer, weights, headNorm }: MlaLayer): [string, HostTensor][] {
  const norms: readonly [MlaExtra, HostTensor | null][] = headNorm === null ? [] : [['queryRopeNorm', headNorm.queryRope], ['keyRopeNorm', headNorm.keyRope], ['nopeNorm', headNorm.nope]];
  const tensors = norms.flatMap(([name, weight]): [string, HostTensor][] => (weight === null ? [] : [[`${mlaTensorName(layer, name)}.weight`, weight]]));
  const order: readonly MlaTensor[] = ['queryRope', 'queryNope', 'keyRope', 'down', 'keyUp', 'valueUp', 'output'];
  for (const tensor of order) {
    const projection = weights[tensor];
    if (projection === null) continue;
    const name = mlaTensorName(layer, tensor);
    tensors.push([`${name}.weight`, projection.weight]);
    if (projection.bias !== null) tensors.push([`${name}.bias`, projection.bias]);
  }
  return tensors;
}

async function checkpointSources(file: string): Promise<TensorSource[]> {
  const checkpoint = await openCheckpoint(file);
  return [...checkpoint.tensors.values()].map(({ name, shape }) => ({ name, dtype: 'float32', shape, read: () => checkpoint.read(name) }));
}
