/** The one public list. Everything else is an inside that may move; test/surface.test.ts pins these names. */

// The four functions, on one layer with no model around it.
export { readAttentionLayer } from './surgery/attention-layer.ts';
export type { AttentionLayer, Projection } from './surgery/attention-layer.ts';
export { rankRopeDims, ropePlan } from './surgery/rank-rope-dims.ts';
export type { RankRopeDimsOptions } from './surgery/rank-rope-dims.ts';
export type { PairTerm, PlanChoice, RopeComponent, RopePlan } from './surgery/rope-plan.ts';
export { jointKvSvd } from './surgery/joint-kv-svd.ts';
export type { JointKvSvdOptions, KvFactors } from './surgery/joint-kv-svd.ts';
export { buildMlaLayer } from './surgery/build-mla-layer.ts';
export type { MlaLayer } from './surgery/build-mla-layer.ts';
export { absorbUpProjections } from './surgery/absorb-up-projections.ts';
export type { AbsorbedLayer } from './surgery/absorb-up-projections.ts';

// Strategies: rows of tables.
export { planStrategies } from './plan/index.ts';
export type { PlanStrategyName } from './plan/index.ts';
export type { PlanStrategy } from './plan/strategy.ts';
export { factorStrategies } from './factor/index.ts';
export type { FactorStrategyName } from './factor/index.ts';
export type { FactorInput, FactorMatrices, FactorStrategy, SingularValuePlacement } from './factor/strategy.ts';
export type { LayerStatistics, StatisticsIdentity } from './statistics/layer-statistics.ts';
export { calibrationOf } from './statistics/calibration.ts';
export type { Calibration, CalibrationOptions, CalibrationText } from './statistics/calibration.ts';
export { collectStatistics } from './statistics/collect-statistics.ts';
export type { CollectOptions } from './statistics/collect-statistics.ts';
export { openStatistics } from './statistics/saved-statistics.ts';
export type { ModelStatistics } from './statistics/saved-statistics.ts';

// Whole models: convert, open, run, measure.
export { openModel } from './models/model.ts';
export type { Model } from './models/model.ts';
export type { OpenReleasedOptions } from './released/released.ts';
export type { ModelConfig } from './checkpoint/config.ts';
export type { MlaConfig, MlaLayerConfig } from './models/mla-config.ts';
export type { DecoderForm } from './models/decoder.ts';
export { convert } from './convert.ts';
export type { ConversionReport, ConvertOptions, LayerReport } from './convert.ts';
export { convertAndHeal } from './convert-and-heal.ts';
export type { ConvertAndHealOptions } from './convert-and-heal.ts';
export { resolveBudget } from './budget.ts';
export type { Budget, ResolvedBudget } from './budget.ts';
export { chooseLatentGroups, costMs, decodeCost } from './cost.ts';
export type { DecodeCost, HeadShape, LatentShape, MachineRates } from './cost.ts';
export { relayModel } from './released/relay.ts';
export type { RelayOptions, RelayReport } from './released/relay.ts';
export { readPairTable } from './released/pair-table.ts';
export type { PairTable, PairTableShape } from './released/pair-table.ts';
export { decodePasses, decodePassesFor } from './passes/decode-passes.ts';
export { scoreByRows } from './passes/score-by-rows.ts';
export { hugePageEnvironment } from './huge-pages.ts';
export type { HugePageHost } from './huge-pages.ts';
export type { Absorption } from './models/absorption.ts';
export { openSession } from './session/session.ts';
export type { Session, SessionOptions } from './session/session.ts';
export type { Cache } from './session/cache.ts';
export { cacheFormats, isOneRow } from './models/cache-layout.ts';
export type { CachedLayer, CachedRows, CacheFormat } from './models/cache-layout.ts';
export { finishGeneration, generate } from './session/generate.ts';
export type { FinishReason, GeneratedToken, GenerateOptions, GenerationResult } from './session/generate.ts';
export { loadPrompt, savePrompt } from './session/prompt-cache.ts';
export type { SavedPrompt } from './session/prompt-cache.ts';
export { sampleToken, samplingCandidates } from './session/sampler.ts';
export type { Candidates, SamplingOptions } from './session/sampler.ts';
export { perplexity } from './session/perplexity.ts';
export type { PerplexityOptions, PerplexityResult } from './session/perplexity.ts';
export { verifyAgainstLogits, verifyAgainstModel } from './session/verify.ts';
export type { Verification, VerifyOptions } from './session/verify.ts';

// Subgraphs: record, change, write, run.
export { record } from './graph/record.ts';
export type { Recorder, Value } from './graph/record.ts';
export type { Attribute, Constant, Dim, Node, Port, StoredTensor, Subgraph } from './graph/subgraph.ts';
export { compose, prune } from './graph/compose.ts';
export type { PruneOptions } from './graph/compose.ts';
export { renamePorts, replaceSymbols } from './graph/rename.ts';
export { inferShapes } from './graph/infer.ts';
export type { Fact } from './graph/rules/rule.ts';
export { printSubgraph } from './graph/print.ts';
export type { Facts } from './graph/print.ts';
export { fromModel, toModel } from './graph/onnx.ts';
export type { ModelOptions } from './graph/onnx.ts';
export { readModel, writeModel } from './graph/model-file.ts';
export type { WriteModelOptions } from './graph/model-file.ts';
export { openRuntime } from './graph/runtime.ts';
export type { Runtime, RuntimeOptions } from './graph/runtime.ts';
export { benchmarkSubgraph, runSubgraph } from './graph/run.ts';
export type { Benchmark, BenchmarkOptions, RunOptions } from './graph/run.ts';
export { runPasses } from './passes/pass.ts';
export type { Pass } from './passes/pass.ts';
export { quantiseWeights } from './passes/quantise-weights.ts';
export type { QuantiseOptions } from './passes/quantise-weights.ts';
export { quantiseDynamic } from './passes/quantise-dynamic.ts';
export type { DynamicOptions } from './passes/quantise-dynamic.ts';
export type { QuantisedSubgraph, QuantisedWeight, WeightInfo } from './passes/weight-report.ts';
export { weightFormats, weightPasses } from './passes/weight-formats.ts';
export type { WeightFormat, WeightFormatName } from './passes/weight-formats.ts';
export { calibrateWeights, weightCodesPass } from './session/calibrate-weights.ts';
export type { WeightCodes } from './session/calibrate-weights.ts';
export { loadWeightCodes, saveWeightCodes } from './session/weight-codes-file.ts';
export type { Bits, BlockCodes } from './passes/block-codes.ts';
export type { CalibratedCodesOptions } from './passes/calibrated-codes.ts';
export { rotateResidual } from './passes/rotate-residual.ts';
export { fuseSkipNorms } from './passes/skip-norm.ts';
export { fuseIntegerProducts } from './passes/fuse-integer-products.ts';
export { signCodes } from './passes/sign-codes.ts';
export { signedProductsAreExact } from './session/signed-products.ts';
export { fuseTransposedWeights } from './passes/fuse-transposed-weights.ts';
export { mergeProjections } from './passes/merge-projections.ts';
export { mergeRotations } from './passes/merge-rotations.ts';
export { mergeRoundings } from './passes/merge-roundings.ts';
export { eager, toEager } from './eager.ts';
export type { EagerTensor } from './eager.ts';

// Training: gradients are subgraphs too.
export { differentiate, gradientOf } from './autodiff/differentiate.ts';
export type { DifferentiateOptions } from './autodiff/differentiate.ts';
export { initialWeights } from './train/initialise.ts';
export type { InitialiseOptions } from './train/initialise.ts';
export { createTrainer, trainStep } from './train/trainer.ts';
export type { Feeds, StepMemory, Trainer, TrainerOptions, TrainStep, Update, WeightRows, Weights } from './train/trainer.ts';
export { placeWeights } from './train/placed-weights.ts';
export { createAdamW, relativeRates } from './train/adamw.ts';
export type { AdamW, AdamWOptions, AdamWState } from './train/adamw.ts';
export { optimiserKernel } from './train/optimiser-kernel.ts';
export type { AdamWNumbers, AdamWRows, OptimiserKernel } from './train/optimiser-kernel.ts';
export { heal } from './train/heal.ts';
export type { Healing, HealOptions } from './train/heal.ts';
export { healLayers } from './train/heal-layers.ts';
export type { HealedLayer, HealLayersOptions } from './train/heal-layers.ts';
export { healingText } from './train/healing-text.ts';
export type { HealingText } from './train/healing-text.ts';
export { train } from './train/train.ts';
export type { TrainedFiles, TrainOptions, TrainProgress, TrainResult } from './train/settings.ts';
export { losses } from './train/objective.ts';
export type { Batch, LossName, LossRow, Objective, ObjectiveOptions, VocabularySampling } from './train/objective.ts';
export { vocabularySampler } from './train/vocabulary-sample.ts';
export type { VocabularySample } from './train/vocabulary-sample.ts';
export { openTokenSource, tokenSource } from './train/token-source.ts';
export type { TokenFormat, TokenSource, TokenSourceOptions } from './train/token-source.ts';
export { openSequences } from './train/sequences.ts';
export type { SequenceOptions, Sequences, WeightedSource } from './train/sequences.ts';
export { learningRateFactor, schedules } from './train/schedule.ts';
export type { Schedule, ScheduleName, ScheduleOptions } from './train/schedule.ts';
export { trainableNames, trainableSets } from './train/trainable.ts';
export type { TrainableName, TrainableSet } from './train/trainable.ts';
export { nextTokenSubgraph, regressionSubgraph, teacherSubgraph } from './train/training-graph.ts';
export type { RegressionOptions, SequenceShape, TeacherShape } from './train/training-graph.ts';

// Host tensors.
export { byteLength, fromNdarray, tensor, toDType, toFloat32, toFloat64, toNdarray, zeros } from './tensor.ts';
export type { DataOf, DType, HostTensor, NdarrayOf } from './tensor.ts';
export { normals, seededRandom } from './random.ts';
export type { Random } from './random.ts';

// Files.
export { openCheckpoint } from './checkpoint/checkpoint.ts';
export type { Checkpoint, TensorInfo } from './checkpoint/checkpoint.ts';
export { parseConfig, readConfig } from './checkpoint/config.ts';
export { openGguf } from './checkpoint/gguf.ts';
export type { GgufEntry, GgufFile, GgufMetadata, GgufValue } from './checkpoint/gguf.ts';
export { openSafetensors, readSafetensors } from './checkpoint/safetensors.ts';
export type { SafetensorsEntry, SafetensorsFile } from './checkpoint/safetensors.ts';
export { tensorSources, writeSafetensors, writeShardedSafetensors } from './checkpoint/write-safetensors.ts';
export type { SafetensorsWriteOptions, ShardedWriteOptions, TensorSource } from './checkpoint/write-safetensors.ts';

// Text and the hub.
export { openTokenizer } from './text/tokenizer.ts';
export type { DecodeOptions, Tokenizer, TokenStream } from './text/tokenizer.ts';
export { renderChat } from './text/chat.ts';
export type { ChatMessage, ChatOptions } from './text/chat.ts';
export { downloadModel, isHubId } from './hub.ts';
export type { DownloadModelOptions, HubProgress } from './hub.ts';
export { packageFile } from './package-file.ts';
export { svgOf } from './report/plots.ts';
export type { Chart, Point } from './report/charts.ts';
export { startProgress } from './progress.ts';
export type { Progress, ProgressOptions } from './progress.ts';
