/** A model opened for inference: one onnxruntime session per graph, opened when first needed. */
import { queryHeadsTogether } from '../../kernels/head-chains.ts';
import { collectGarbage } from '../collect-garbage.ts';
import type { Runtime, RuntimeOptions } from '../graph/runtime.ts';
import type { HostTensor } from '../graph/subgraph.ts';
import type { Absorption } from '../models/absorption.ts';
import { cacheLayoutOf, formsOf, type DecoderForm, type DecoderOutput } from '../models/decoder.ts';
import type { CacheFormat } from '../models/cache-layout.ts';
import type { Model } from '../models/model.ts';
import { decodePassesFor } from '../passes/decode-passes.ts';
import type { Pass } from '../passes/pass.ts';
import { batchStep } from './batch-step.ts';
import { createCache, type Cache } from './cache.ts';
import { decoderGraphs, type OpenGraph } from './decoder-graphs.ts';
import { floatOutput } from './float-output.ts';
import { graphShelf } from './graph-shelf.ts';
import { chunkBehind } from './prompt-chunks.ts';
import { tokenFeeds } from './token-feeds.ts';

export interface SessionOptions {
  /** Threads of onnxruntime. Default: the cores this process may use, at most 8. */
  readonly threads?: number;
  /** Where graphs run: see RuntimeOptions.provider. Default 'cpu'. */
  readonly provider?: NonNullable<RuntimeOptions['provider']>;
  /** Tokens a cache holds at most; for few of them its rows lie otherwise, and steps are faster. Default: what the model was made for. */
  readonly contextLength?: number;
  /** Tokens of a prompt that go through the graph at once: bounded memory, and future keys are never computed. Default 256, fewer behind a long context (`chunkBehind`). */
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
  /** Rewrites the graph of a step once more, for speed and without a change of its numbers. Default `decodePassesFor` the context. */
  readonly decodePasses?: readonly Pass[];
  /**
   * Up-projections of a converted model while decoding: 'separate' products, 'merged' into queries and output, or by the
   * cost rule of lib/models/absorption.ts. Default 'auto'.
   */
  readonly absorption?: Absorption | 'auto';
  /** Let a step write its rows into the cache itself, where a test at opening shows that it works. Default true. */
  readonly appendInPlace?: boolean;
  /**
   * Free every other graph before one is opened: the most memory is then that of one graph, not of two, and each change
   * from prompts to steps or back opens a graph again. For one prompt and one answer it costs nothing. Default false.
   */
  readonly oneGraph?: boolean;
  readonly signal?: AbortSignal;
}

export interface Session {
  readonly model: Model;
  readonly contextLength: number;
  readonly cacheFormat: CacheFormat;
  createCache(capacityTokens?: number): Cache;
  /** Runs `ids` behind what the cache holds, in causal chunks; the logits of the last one: [vocab]. */
  prefill(cache: Cache, ids: readonly number[], onProgress?: (done: number) => void): Promise<Float32Array>;
  /** Runs one token through the decode graph: the logits that follow it: [vocab]. */
  step(cache: Cache, id: number): Promise<Float32Array>;
  /**
   * Runs one token of each of several sequences in one run, so that weights are read once: ids[q] behind caches[q], of
   * whatever length. Logits [ids.length, vocab]. Every number of sequences has a graph of its own, opened when first needed,
   * with its own copy of the weights in memory.
   */
  stepBatch(caches: readonly Cache[], ids: readonly number[]): Promise<HostTensor<'float32'>>;
  /**
   * Logits of every one of a few `ids` in one run of the decode form: [ids.length, vocab]. Their rows are appended:
   * `cache.truncate` takes back those that are rejected (speculative decoding). Behind an empty cache the same as `logits`.
   */
  score(cache: Cache, ids: readonly number[]): Promise<HostTensor<'float32'>>;
  /** Logits of every one of `ids`, through the prefill graph: [ids.length, vocab]. */
  logits(cache: Cache, ids: readonly number[]): Promise<HostTensor<'float32'>>;
  /** Nats of each of ids[1..] given those before it: ids.length - 1 numbers. Needs no decode graph. */
  nll(ids: readonly number[]): Promise<Float64Array>;
  /** Opens the graph of prompts, that of steps, or one after the other, which otherwise happens at first use: timings after it show the work alone. */
  open(graph?: 'prefill' | 'decode'): Promise<void>;
  close(): Promise<void>;
}

/** What a graph was made of, all its weights in JavaScript, is garbage once the engine has it. */
async function leavingNothing(opening: Promise<OpenGraph>): Promise<OpenGraph> {
  const opened = await opening;
  collectGarbage();
  return opened;
}

/**
 * Opens a model for inference. Nothing is loaded before it is needed; close() frees the graphs.
 * Errors: a form the model cannot take, chunkTokens below 1.
 */
export function openSession(model: Model, options: SessionOptions = {}): Session {
  const { chunkTokens, contextLength = model.config.maxPositions, signal } = options;
  if (chunkTokens !== undefined && (!Number.isInteger(chunkTokens) || chunkTokens < 1)) throw new RangeError(`openSession: chunkTokens must be 1 or more, got ${chunkTokens}`);
  const valid = formsOf(model);
  const forms = options.forms ?? (model.mla === null ? { prefill: 'source', decode: 'source' } : { prefill: 'expanded', decode: 'absorbed' });
  for (const form of [forms.prefill, forms.decode]) {
    if (!valid.includes(form)) throw new RangeError(`openSession: form must be one of ${valid} for ${model.path}, got ${form}`);
  }
  const { vocab, heads, kvHeads } = model.config;
  const headsTogether = forms.prefill === 'absorbed' ? heads : queryHeadsTogether(kvHeads, heads / kvHeads);
  const cacheFormat = options.cache ?? 'f32';
  const layout = cacheLayoutOf(model, cacheFormat, contextLength);
  const graphs = decoderGraphs(model, {
    runtime: { ...(options.threads === undefined ? {} : { threads: options.threads }), provider: options.provider ?? 'cpu' }, cache: cacheFormat, positions: contextLength, passes: options.passes ?? [],
    decodePasses: options.decodePasses ?? decodePassesFor(contextLength), absorption: options.absorption ?? 'auto', appendInPlace: options.appendInPlace ?? true,
  });
  const shelf = graphShelf(options.oneGraph ?? false);
  const decodeGraph = (): Promise<OpenGraph> => shelf.take('decode', () => leavingNothing(graphs.decode(forms.decode)));
  /** A graph that returns its rows. */
  const returning = async (name: string, open: () => Promise<OpenGraph>): Promise<Runtime> => (await shelf.take(name, () => leavingNothing(open()))).graph;
  const prefillGraph = (output: DecoderOutput): Promise<Runtime> => returning(`prefill ${output}`, () => graphs.prefill(forms.prefill, output));

  const checkIds = (ids: readonly number[]): void => {
    const bad = ids.find((id) => !Number.isInteger(id) || id < 0 || id >= vocab);
    if (bad !== undefined) throw new RangeError(`openSession: token ids must be 0..${vocab - 1}, got ${bad}`);
  };

  const roomOf = (cache: Cache): number => Math.min(contextLength, cache.capacity);
  const checkRoom = (caller: string, cache: Cache): void => {
    if (cache.length + 1 > roomOf(cache)) throw new RangeError(`${caller}: the context of ${roomOf(cache)} tokens is full`);
  };

  /** One run of one graph over `ids`; the new rows go into the cache. */
  const run = async (graph: Runtime, cache: Cache, ids: readonly number[], targets?: readonly number[]): Promise<Record<string, HostTensor>> => {
    signal?.throwIfAborted();
    const outputs = await graph.run({ ...tokenFeeds(graph, ids, cache.length, cache.length, targets), ...cache.feeds() });
    cache.append(outputs, ids.length);
    return outputs;
  };

  /** One token whose rows the graph writes into the cache itself. */
  const runAppending = async (graph: Runtime, cache: Cache, id: number): Promise<Record<string, HostTensor>> => {
    signal?.throwIfAborted();
    const { rows, feeds, fetches } = cache.appending(1);
    // In memory of this step's own, so that the run has nothing to copy.
    const logits: HostTensor = { dtype: 'float32', shape: [1, 1, vocab], data: new Float32Array(vocab) };
    const outputs = await graph.run(Object.assign(feeds, tokenFeeds(graph, [id], cache.length, rows)), Object.assign(fetches, { logits }));
    cache.advance(1);
    return outputs;
  };

  /** `run` in causal chunks. */
  const chunked = async (
    graph: Runtime, cache: Cache, ids: readonly number[], targets: readonly number[] | undefined, take: (outputs: Record<string, HostTensor>, start: number, end: number) => void,
  ): Promise<void> => {
    checkIds(ids);
    if (cache.length + ids.length > roomOf(cache)) {
      throw new RangeError(`openSession: prompt must fit the context of ${roomOf(cache)} tokens, got ${cache.length} cached and ${ids.length} new`);
    }
    for (let start = 0, end = 0; start < ids.length; start = end) {
      end = Math.min(ids.length, start + (chunkTokens ?? chunkBehind(cache.length, headsTogether)));
      take(await run(graph, cache, ids.slice(start, end), targets?.slice(start, end)), start, end);
    }
  };

  const step = async (cache: Cache, id: number): Promise<Float32Array> => {
    checkIds([id]);
    checkRoom('Session.step', cache);
    const { graph, appends } = await decodeGraph();
    // onnxruntime 1.29 divides by zero in its fused product over no cached rows: there the first token takes the prefill graph.
    const outputs = appends ? await runAppending(graph, cache, id) : await run(cache.length === 0 ? await prefillGraph('last') : graph, cache, [id]);
    return floatOutput(outputs, 'logits');
  };

  const everyLogits = async (graph: Runtime, cache: Cache, ids: readonly number[]): Promise<HostTensor<'float32'>> => {
    const data = new Float32Array(ids.length * vocab);
    await chunked(graph, cache, ids, undefined, (outputs, start) => data.set(floatOutput(outputs, 'logits'), start * vocab));
    return { dtype: 'float32', shape: [ids.length, vocab], data };
  };

  return {
    model,
    contextLength,
    cacheFormat,
    createCache: (capacityTokens = contextLength) => createCache(layout, capacityTokens),
    async prefill(cache, ids, onProgress) {
      if (ids.length === 0) throw new RangeError('Session.prefill: a prompt must have at least one token, got none');
      let last = new Float32Array(0);
      await chunked(await prefillGraph('last'), cache, ids, undefined, (outputs, _start, end) => {
        last = Float32Array.from(floatOutput(outputs, 'logits'));
        onProgress?.(end);
      });
      return last;
    },
    step,
    async stepBatch(caches, ids) {
      checkIds(ids);
      const distinct = new Set(caches).size;
      if (caches.length !== ids.length || distinct !== ids.length || distinct === 0) {
        throw new RangeError(`Session.stepBatch: every token must have a cache of its own, got ${ids.length} tokens and ${distinct} caches`);
      }
      for (const [q, cache] of caches.entries()) checkRoom(`Session.stepBatch: sequence ${q}`, cache);
      return batchStep(caches, ids, vocab, {
        alone: step,
        together(sequences) {
          signal?.throwIfAborted();
          return returning(`batch ${sequences}`, () => graphs.batch(forms.decode, sequences));
        },
      });
    },
    score: async (cache, ids) => everyLogits(cache.length === 0 ? await prefillGraph('logits') : await returning('score', () => graphs.score(forms.decode)), cache, ids),
    logits: async (cache, ids) => everyLogits(await prefillGraph('logits'), cache, ids),
    async nll(ids) {
      if (ids.length < 2) throw new RangeError(`Session.nll: needs at least 2 tokens, got ${ids.length}`);
      checkIds(ids);
      const nats = new Float64Array(ids.length - 1);
      const cache = createCache(layout, ids.length - 1);
      await chunked(await prefillGraph('nll'), cache, ids.slice(0, -1), ids.slice(1), (outputs, start) => nats.set(floatOutput(outputs, 'nll'), start));
      return nats;
    },
    async open(graph) {
      if (graph !== 'decode') await prefillGraph('last');
      if (graph !== 'prefill') await decodeGraph();
    },
    close: () => shelf.close(),
  };
}
