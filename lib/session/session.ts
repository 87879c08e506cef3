/** A model opened for inference: one onnxruntime session per graph, opened when first needed. */
import { openRuntime, type Runtime } from '../graph/runtime.ts';
import type { HostTensor } from '../graph/subgraph.ts';
import { withGemm } from '../linalg/onnx-gemm.ts';
import { buildDecoder, cacheLayoutOf, formsOf, type DecoderForm, type DecoderOptions, type DecoderOutput } from '../models/decoder.ts';
import { loadDecoderWeights } from '../models/decoder-weights.ts';
import { rotatesLatent, type CacheFormat } from '../models/cache-layout.ts';
import type { Model } from '../models/model.ts';
import { rotateLatents } from '../models/rotate-latent.ts';
import { runPasses, type Pass } from '../passes/pass.ts';
import { createCache, type Cache } from './cache.ts';

export interface SessionOptions {
  /** Threads of onnxruntime. Default: the cores this process may use, at most 8. */
  readonly threads?: number;
  /** Tokens a cache holds at most. Default: what the model was made for. */
  readonly contextLength?: number;
  /** Tokens of a prompt that go through the graph at once: bounded memory, and future keys are never computed. Default 256. */
  readonly chunkTokens?: number;
  /** Form of prefill and of decode. Default: source; for a converted model expanded and absorbed. */
  readonly forms?: { readonly prefill: DecoderForm; readonly decode: DecoderForm };
  /** How rows lie in the cache: f32 (default), f16, int8 or int4. */
  readonly cache?: CacheFormat;
  /**
   * Rewrites every graph before it is opened, one after another: `weightPasses('int8')`, fusions, and any function
   * Subgraph -> Subgraph that keeps the ports. Default none.
   */
  readonly passes?: readonly Pass[];
  readonly signal?: AbortSignal;
}

export interface Session {
  readonly model: Model;
  readonly contextLength: number;
  createCache(capacityTokens?: number): Cache;
  /** Runs `ids` behind what the cache holds, in causal chunks; the logits of the last one: [vocab]. */
  prefill(cache: Cache, ids: readonly number[], onProgress?: (done: number) => void): Promise<Float32Array>;
  /** Runs one token through the decode graph: the logits that follow it: [vocab]. */
  step(cache: Cache, id: number): Promise<Float32Array>;
  /** Logits of every one of `ids`, through the prefill graph: [ids.length, vocab]. */
  logits(cache: Cache, ids: readonly number[]): Promise<HostTensor<'float32'>>;
  /** Nats of each of ids[1..] given those before it: ids.length - 1 numbers. Needs no decode graph. */
  nll(ids: readonly number[]): Promise<Float64Array>;
  /** Opens the graphs of prefill and decode, which otherwise happens at first use: timings after it show the work alone. */
  open(): Promise<void>;
  close(): Promise<void>;
}

const int64 = (values: readonly number[], shape: readonly number[]): HostTensor => ({ dtype: 'int64', shape, data: BigInt64Array.from(values, BigInt) });
const range = (from: number, count: number): number[] => Array.from({ length: count }, (_, i) => from + i);

function floats(tensor: HostTensor | undefined, name: string): Float32Array {
  if (tensor?.dtype !== 'float32') throw new TypeError(`openSession: output ${name} must be float32, got ${tensor?.dtype}`);
  return tensor.data;
}

/**
 * Opens a model for inference. Nothing is loaded before it is needed; close() frees the graphs.
 * Errors: a form the model cannot take, chunkTokens below 1.
 */
export function openSession(model: Model, options: SessionOptions = {}): Session {
  const { chunkTokens = 256, contextLength = model.config.maxPositions, signal } = options;
  if (!Number.isInteger(chunkTokens) || chunkTokens < 1) throw new RangeError(`openSession: chunkTokens must be 1 or more, got ${chunkTokens}`);
  const valid = formsOf(model);
  const forms = options.forms ?? (model.mla === null ? { prefill: 'source', decode: 'source' } : { prefill: 'expanded', decode: 'absorbed' });
  for (const form of [forms.prefill, forms.decode]) {
    if (!valid.includes(form)) throw new RangeError(`openSession: form must be one of ${valid} for ${model.path}, got ${form}`);
  }
  const cacheFormat = options.cache ?? 'f32';
  const layout = cacheLayoutOf(model, cacheFormat);
  const runtimes = new Map<string, Promise<Runtime>>();
  const openGraph = async (graph: DecoderOptions): Promise<Runtime> => {
    const loaded = await loadDecoderWeights(model);
    const constants = rotatesLatent(cacheFormat) ? await withGemm((gemm) => rotateLatents(model, loaded, { gemm })) : loaded;
    return openRuntime(runPasses(buildDecoder(model, constants, graph), options.passes ?? []), options.threads === undefined ? {} : { threads: options.threads });
  };
  const runtime = (form: DecoderForm, join: boolean, output: DecoderOutput): Promise<Runtime> => {
    const key = `${form} ${join} ${output}`;
    const open = runtimes.get(key) ?? openGraph({ form, join, output, cache: cacheFormat, positions: contextLength, ...(join ? {} : { tokens: 1 }) });
    runtimes.set(key, open);
    return open;
  };

  const checkIds = (ids: readonly number[]): void => {
    const bad = ids.find((id) => !Number.isInteger(id) || id < 0 || id >= model.config.vocab);
    if (bad !== undefined) throw new RangeError(`openSession: token ids must be 0..${model.config.vocab - 1}, got ${bad}`);
  };

  /** One run of one graph over `ids`; the new rows go into the cache. */
  const run = async (graph: Runtime, cache: Cache, ids: readonly number[], targets?: readonly number[]): Promise<Record<string, HostTensor>> => {
    signal?.throwIfAborted();
    const feeds: Record<string, HostTensor> = {
      ids: int64(ids, [1, ids.length]), positions: int64(range(cache.length, ids.length), [ids.length]), ...cache.feeds(),
    };
    if (graph.inputs.includes('past_positions')) feeds.past_positions = int64(range(0, cache.length), [cache.length]);
    if (targets !== undefined) feeds.targets = int64(targets, [1, targets.length]);
    const outputs = await graph.run(feeds);
    cache.append(outputs, ids.length);
    return outputs;
  };

  /** `run` in causal chunks. */
  const chunked = async (
    graph: Runtime, cache: Cache, ids: readonly number[], targets: readonly number[] | undefined, take: (outputs: Record<string, HostTensor>, start: number) => void,
  ): Promise<void> => {
    checkIds(ids);
    if (cache.length + ids.length > Math.min(contextLength, cache.capacity)) {
      throw new RangeError(`openSession: prompt must fit the context of ${Math.min(contextLength, cache.capacity)} tokens, got ${cache.length} cached and ${ids.length} new`);
    }
    for (let start = 0; start < ids.length; start += chunkTokens) {
      take(await run(graph, cache, ids.slice(start, start + chunkTokens), targets?.slice(start, start + chunkTokens)), start);
    }
  };

  return {
    model,
    contextLength,
    createCache: (capacityTokens = contextLength) => createCache(layout, capacityTokens),
    async prefill(cache, ids, onProgress) {
      if (ids.length === 0) throw new RangeError('Session.prefill: a prompt must have at least one token, got none');
      let last = new Float32Array(0);
      await chunked(await runtime(forms.prefill, true, 'last'), cache, ids, undefined, (outputs, start) => {
        last = Float32Array.from(floats(outputs.logits, 'logits'));
        onProgress?.(Math.min(start + chunkTokens, ids.length));
      });
      return last;
    },
    async step(cache, id) {
      checkIds([id]);
      if (cache.length + 1 > Math.min(contextLength, cache.capacity)) throw new RangeError(`Session.step: the context of ${Math.min(contextLength, cache.capacity)} tokens is full`);
      // onnxruntime 1.29 divides by zero in its fused product over no cached rows: the first token takes the prefill graph.
      const graph = cache.length === 0 ? runtime(forms.prefill, true, 'last') : runtime(forms.decode, false, 'last');
      return floats((await run(await graph, cache, [id])).logits, 'logits');
    },
    async logits(cache, ids) {
      const { vocab } = model.config;
      const data = new Float32Array(ids.length * vocab);
      await chunked(await runtime(forms.prefill, true, 'logits'), cache, ids, undefined, (outputs, start) => data.set(floats(outputs.logits, 'logits'), start * vocab));
      return { dtype: 'float32', shape: [ids.length, vocab], data };
    },
    async nll(ids) {
      if (ids.length < 2) throw new RangeError(`Session.nll: needs at least 2 tokens, got ${ids.length}`);
      checkIds(ids);
      const nats = new Float64Array(ids.length - 1);
      const cache = createCache(layout, ids.length - 1);
      await chunked(await runtime(forms.prefill, true, 'nll'), cache, ids.slice(0, -1), ids.slice(1), (outputs, start) => nats.set(floats(outputs.nll, 'nll'), start));
      return nats;
    },
    async open() {
      await runtime(forms.prefill, true, 'last');
      await runtime(forms.decode, false, 'last');
    },
    async close() {
      // A graph that failed to open has told its caller so already.
      for (const open of runtimes.values()) await open.then((graph) => graph.release(), () => undefined);
      runtimes.clear();
    },
  };
}
