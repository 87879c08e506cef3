/** Whole-model conversion: layer by layer through the four functions into one directory that any loader can read. */
import { mkdir, rm } from 'node:fs/promises';
import { totalmem } from 'node:os';
import { basename, join } from 'node:path';
import { refuseOccupied, writeDirectoryAtomic, writeFileAtomic, type WriteOptions } from './atomic-write.ts';
import { resolveBudget, type Budget, type ResolvedBudget } from './budget.ts';
import { checkpointSources } from './checkpoint/checkpoint-sources.ts';
import { tensorSources, writeSafetensors, writeShardedSafetensors, type TensorSource } from './checkpoint/write-safetensors.ts';
import { statisticsSource } from './convert-statistics.ts';
import { conversionWarnings } from './conversion-warnings.ts';
import { chooseOverLayers } from './convert-choices.ts';
import { convertLayer, layerConfig, mlaTensors, type LayerReport } from './convert-layer.ts';
import { factorStrategies, type FactorStrategyName } from './factor/index.ts';
import type { SingularValuePlacement } from './factor/strategy.ts';
import { freeMemory } from './free-memory.ts';
import { withGemm } from './linalg/onnx-gemm.ts';
import { bodyTensorNames } from './models/decoder-weights.ts';
import { fingerprintOf } from './models/fingerprint.ts';
import { rowElements, type MlaConfig, type MlaLayerConfig } from './models/mla-config.ts';
import type { Model } from './models/model.ts';
import { planStrategies, type PlanStrategyName } from './plan/index.ts';
import { openRefit } from './refit.ts';
import { heldOutPerplexity, tooLargeToRun, type HeldOutPerplexity } from './report/held-out.ts';
import { reportHtml } from './report/report-html.ts';
import type { FoldSearch } from './search-fold.ts';
import type { Calibration } from './statistics/calibration.ts';
import type { LayerStatistics, StatisticsIdentity } from './statistics/layer-statistics.ts';
import type { ModelStatistics } from './statistics/saved-statistics.ts';
import type { WindowStore } from './statistics/window-store.ts';
import type { Healing } from './train/heal.ts';

export type { LayerReport };

export interface ConvertOptions {
  readonly budget?: Budget | undefined;
  /** Default 'bank' where there are statistics, heads have no norm and the budget counts no pairs, else 'uniform'. */
  readonly plan?: PlanStrategyName | undefined;
  /** Default 'two-sided' where there are statistics and heads have no norm, else 'joint'. */
  readonly factor?: FactorStrategyName | undefined;
  readonly singularValues?: SingularValuePlacement | undefined;
  /** Neighbouring frequencies taken together by plan 'ro-rope', or 'search' for the fold of least perplexity on the calibration text. */
  readonly fold?: number | 'search' | undefined;
  /** Whether factor 'care' allots the ranks of all layers by their spectra, within the same budget. Default false. */
  readonly adjustRanks?: boolean | undefined;
  /** Groups of KV heads with a latent of their own: same bytes, fewer FLOPs when decoding. A divisor of kvHeads. Default 1. */
  readonly latentGroups?: number | undefined;
  /** Text whose activations guide the conversion: statistics are collected from it, and the refit runs on it. */
  readonly calibration?: Calibration | undefined;
  /**
   * Memory of the machine. Perplexity of the calibration's held-out text needs the whole model at once; where its weights in
   * float32 are more than half of this it is not measured, which the warnings say. Default: os.totalmem().
   */
  readonly memoryBytes?: number | undefined;
  /** Statistics that exist already; instead of collecting them. They must be of this model. */
  readonly statistics?: ModelStatistics | readonly LayerStatistics[] | undefined;
  /** Directory where collected statistics are saved, reused when they fit, and gone on with when a collection was stopped. */
  readonly statisticsDirectory?: string | undefined;
  /** Whether o_proj is fitted to the source's attention output on the calibration text. Default true where there is text. */
  readonly refit?: boolean | undefined;
  /** Files to put beside the weights: the tokenizer's, by name. */
  readonly files?: Readonly<Record<string, string>>;
  readonly threads?: number | undefined;
  readonly seed?: number | undefined;
  /** Layers done of all layers. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
  /** Stops between layers and between writes; nothing is left behind. */
  readonly signal?: AbortSignal;
  readonly writeBytes?: WriteOptions['writeBytes'];
  /** Milliseconds; default performance.now. */
  readonly clock?: () => number;
}

export interface ConversionReport {
  readonly source: string;
  readonly plan: string;
  readonly factor: string;
  readonly budget: string;
  /** Fold of the plan, where it was given or searched, and what the search saw. */
  readonly fold: number | null;
  readonly foldSearch: FoldSearch | null;
  /** What experience says about such a conversion. */
  readonly warnings: readonly string[];
  /** Whose activations guided the conversion; null without text. */
  readonly calibration: (StatisticsIdentity & { readonly refit: boolean }) | null;
  readonly cacheElementsPerToken: { readonly before: number; readonly after: number };
  /** 1 - after / before. */
  readonly reduction: number;
  readonly layers: readonly LayerReport[];
  /** Of source and conversion, on windows of the calibration text that nothing was fitted to; null where there are none. */
  readonly perplexity: HeldOutPerplexity | null;
  /** What was trained afterwards; null without healing, see `convertAndHeal`. */
  readonly healing: Healing | null;
  readonly seconds: number;
}

/**
 * Converts a source model into `out`: config.json (with the `mla` block), model.safetensors (sharded when large), `files`,
 * conversion.json, report.html. One layer is in memory at a time, its statistics and its refit included. The directory appears only
 * when it is whole. Errors: a converted model as source, an occupied `out`, strategies that need text and get none,
 * statistics of another model, a budget too small for the strategy, what the four functions refuse, a failed write.
 */
export async function convert(model: Model, out: string, options: ConvertOptions = {}): Promise<ConversionReport> {
  const { singularValues = 'up', latentGroups = 1, seed = 0, threads, clock = () => performance.now(), signal, calibration = null } = options;
  if (model.mla !== null) throw new TypeError(`convert: MODEL must be a source model, got ${model.path}, which is converted already`);
  const fingerprint = await fingerprintOf(model);
  // Over all layers at once the outputs of the source would fill the memory: the refit then runs the source itself.
  const targets = calibration === null || options.adjustRanks === true || options.fold === 'search' ? null : new Map<number, WindowStore>();
  const statistics = statisticsSource(model, fingerprint, options, targets);
  const { plan, factor } = strategiesFor(model, statistics !== null, options);
  const refit = options.refit ?? calibration !== null;
  if (refit && calibration === null) throw new TypeError('convert: a refit needs calibration text, got none');
  const budget = wholeGroups(resolveBudget(model.config, options.budget ?? {}, planStrategies[plan].counts), model.config.kvHeads, latentGroups);
  await refuseOccupied(out);
  const start = clock();
  const write: WriteOptions = { signal, writeBytes: options.writeBytes };
  const chosen = await chooseOverLayers(model, statistics, { plan, factor, budget, latentGroups, fold: options.fold, adjustRanks: options.adjustRanks ?? false, calibration, threads, signal });
  let report: ConversionReport | null = null;
  await writeDirectoryAtomic(out, async (directory) => {
    const layersDirectory = join(directory, '.layers');
    await mkdir(layersDirectory);
    const layers: { readonly file: string; readonly config: MlaLayerConfig; readonly report: LayerReport }[] = [];
    await withGemm(async (gemm) => {
      const pass = calibration === null ? null : await openRefit(model, calibration, { gemm, change: refit, threads, signal });
      for (let layer = 0; layer < model.config.layers; layer++) {
        signal?.throwIfAborted();
        const known = async (): Promise<LayerStatistics | null> => (chosen.statistics === null ? null : chosen.statistics(layer));
        const { mla, report: layerReport } = await convertLayer(model, layer, known, { plan, factor, singularValues, budget, latentGroups, fold: chosen.fold, ranks: chosen.ranks?.[layer] ?? null, seed, gemm, refit: pass === null ? null : { pass, changes: refit, targets: targets?.get(layer) ?? null } });
        targets?.delete(layer);
        const file = join(layersDirectory, `${layer}.safetensors`);
        const tensors = mlaTensors(mla);
        await writeSafetensors(file, tensorSources(tensors), write);
        freeMemory(tensors.map(([, { data }]) => data));
        layers.push({ file, config: layerConfig(mla), report: layerReport });
        options.onProgress?.(layer + 1, model.config.layers);
      }
    }, { threads });
    const config: MlaConfig = {
      version: 1, scale: model.scale,
      layers: layers.map((layer) => layer.config),
      plan: { strategy: plan, ...(budget.pairs === null ? {} : { pairs: budget.pairs }), ...(budget.components === null ? {} : { components: budget.components }), ...(chosen.fold === null ? {} : { fold: chosen.fold }) },
      factor: { strategy: factor, rank: budget.rank, singularValues },
      source: { name: basename(model.path), architecture: model.config.architecture, fingerprint },
    };
    const attention = await Promise.all(layers.map(({ file }) => checkpointSources(file)));
    const body = bodyTensorNames(model).map((name): TensorSource =>
      ({ name, dtype: 'float32', shape: model.checkpoint.tensors.get(name)?.shape ?? [], read: () => model.checkpoint.read(name) }));
    await writeShardedSafetensors(directory, [...body, ...attention.flat()], write);
    await rm(layersDirectory, { recursive: true });
    for (const [name, text] of Object.entries(options.files ?? {})) await writeFileAtomic(join(directory, name), text, write);
    const before = 2 * model.config.kvHeads * model.config.headDim * model.config.layers;
    const after = layers.reduce((sum, layer) => sum + rowElements(layer.config), 0);
    await writeFileAtomic(join(directory, 'config.json'), `${JSON.stringify({ ...model.config.raw, mla: config }, null, 1)}\n`, write);
    const heldOut = calibration?.heldOut ?? [], unmeasured = heldOut.length === 0 ? null : tooLargeToRun(model, options.memoryBytes ?? totalmem());
    const perplexity = await heldOutPerplexity(model, directory, unmeasured === null ? heldOut : [], { threads, signal });
    report = {
      source: basename(model.path), plan, factor, budget: budget.reason, fold: chosen.fold, foldSearch: chosen.foldSearch, warnings: [...conversionWarnings(model.config, budget, calibration), ...(unmeasured === null ? [] : [unmeasured])],
      calibration: calibration === null ? null : { ...calibration.identity, refit },
      cacheElementsPerToken: { before, after }, reduction: 1 - after / before,
      layers: layers.map((layer) => layer.report), perplexity, healing: null, seconds: (clock() - start) / 1000,
    };
    await writeFileAtomic(join(directory, 'conversion.json'), `${JSON.stringify(report, null, 1)}\n`, write);
    await writeFileAtomic(join(directory, 'report.html'), await reportHtml(report), write);
  }, { signal });
  if (report === null) throw new Error('convert: the directory must have been written');
  return report;
}

/** A rank that every group gets an equal share of: rounded down, which the reason says. */
function wholeGroups(budget: ResolvedBudget, kvHeads: number, groups: number): ResolvedBudget {
  if (!Number.isInteger(groups) || groups < 1 || kvHeads % groups !== 0) throw new RangeError(`convert: latentGroups must divide the ${kvHeads} KV heads, got ${groups}`);
  const rank = budget.rank - (budget.rank % groups);
  if (rank === 0) throw new RangeError(`convert: a latent for each of ${groups} groups needs a rank of at least ${groups}, got ${budget.rank}`);
  return groups === 1 ? budget : { ...budget, rank, reason: `${budget.reason}, ${rank / groups} in each of ${groups} latent groups` };
}

/** What is asked for, or what fits: ours where there are statistics, the paper's without them and where heads have norms. */
function strategiesFor(model: Model, known: boolean, options: ConvertOptions): { plan: PlanStrategyName; factor: FactorStrategyName } {
  const ours = known && model.family.layer(0).queryNorm === null;
  // Who counts pairs wants pairs kept, who counts components wants them combined.
  const combines = options.budget?.components !== undefined || (ours && options.budget?.pairs === undefined);
  const { plan = combines ? 'bank' : 'uniform', factor = ours ? 'two-sided' : 'joint' } = options;
  const needy = [planStrategies[plan].needsStatistics ? [`plan ${plan}`] : [], factorStrategies[factor].needsStatistics ? [`factor ${factor}`] : []].flat();
  if (needy.length > 0 && !known) throw new TypeError(`convert: strategy needs calibration text or statistics, got none for ${needy.join(' and ')}`);
  return { plan, factor };
}
