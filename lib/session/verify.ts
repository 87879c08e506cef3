/** Two ways to the same logits, compared: a model against recorded logits or another model, and against itself. */
import type { HostTensor } from '../graph/subgraph.ts';
import { formsOf } from '../models/decoder.ts';
import type { Model } from '../models/model.ts';
import { compareLogits, largestDifference, mergeComparisons, type LogitComparison } from './compare-logits.ts';
import { openSession, type Session, type SessionOptions } from './session.ts';

export interface VerifyOptions extends Pick<SessionOptions, 'threads' | 'signal'> {
  /** Work done and in all, in tokens run through a graph. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

export interface Verification {
  /** Largest |logit - reference| of the ways compared: see verifyAgainstLogits and verifyAgainstModel. */
  readonly maxAbsDifference: number;
  /** Mean over positions of KL(reference || model) in nats, through one prefill. */
  readonly meanKl: number;
  /** Share of positions whose likeliest token is the reference's, through one prefill. */
  readonly top1Agreement: number;
  /** Largest difference between the absorbed and the expanded form through one prefill; null for a source model. */
  readonly absorbedVsExpanded: number | null;
  /** Largest difference between one prefill and decoding token by token, or a prefill in parts. */
  readonly cachedVsUncached: number;
  readonly sequences: number;
  /** Positions compared, over all sequences. */
  readonly tokens: number;
}

/** Logits of one sequence through every way the model can take. */
interface Ways {
  readonly prefill: HostTensor<'float32'>;
  readonly stepped: HostTensor<'float32'>;
  readonly split: HostTensor<'float32'>;
  readonly absorbed: HostTensor<'float32'> | null;
}

/**
 * Compares a model with logits that something else computed. `ids` int64 or int32 [b, s]; `logits` float32 [b, s, vocab].
 * maxAbsDifference is the largest over one prefill, token by token, and a prefill in three parts.
 * Errors: shapes or vocabulary that do not fit, more tokens than the context, NaN logits.
 */
export async function verifyAgainstLogits(model: Model, ids: HostTensor, logits: HostTensor, options: VerifyOptions = {}): Promise<Verification> {
  const sequences = sequencesOf(model, ids);
  const { vocab } = model.config;
  const length = sequences[0]?.length ?? 0;
  const shape = [sequences.length, length, vocab];
  if (logits.dtype !== 'float32' || logits.shape.join() !== shape.join()) {
    throw new RangeError(`verifyAgainstLogits: logits must be float32 [${shape}] for ids [${ids.shape}] and the model's vocabulary, got ${logits.dtype} [${logits.shape}]`);
  }
  const { data } = logits;
  return verify(model, sequences, (ways, i) => {
    const reference: HostTensor<'float32'> = { dtype: 'float32', shape: [length, vocab], data: data.subarray(i * length * vocab, (i + 1) * length * vocab) };
    const comparison = compareLogits(ways.prefill, reference);
    return { ...comparison, maxAbsDifference: Math.max(comparison.maxAbsDifference, largestDifference(ways.stepped, reference), largestDifference(ways.split, reference)) };
  }, options);
}

/**
 * Compares a model with another on the same ids, both through one prefill; cachedVsUncached and absorbedVsExpanded are
 * `model`'s. Errors: different vocabularies, more tokens than either context.
 */
export async function verifyAgainstModel(model: Model, other: Model, ids: readonly number[], options: VerifyOptions = {}): Promise<Verification> {
  if (other.config.vocab !== model.config.vocab) {
    throw new RangeError(`verifyAgainstModel: vocabularies must be equal, got ${model.config.vocab} of ${model.path} and ${other.config.vocab} of ${other.path}`);
  }
  checkSequence(other, ids.length);
  const reference = await withSession(other, ids.length, options, (session) => session.logits(session.createCache(ids.length), ids));
  return verify(model, [[...ids]], (ways) => compareLogits(ways.prefill, reference), options);
}

async function verify(
  model: Model, sequences: readonly number[][], compare: (ways: Ways, sequence: number) => LogitComparison, options: VerifyOptions,
): Promise<Verification> {
  const length = sequences[0]?.length ?? 0;
  checkSequence(model, length);
  const absorbable = formsOf(model).includes('absorbed');
  const total = sequences.length * length * (absorbable ? 4 : 3);
  let done = 0;
  const ran = (tokens: number): void => options.onProgress?.((done += tokens), total);
  // One form in memory at a time: the absorbed prefill first, its logits kept.
  const absorbed = absorbable ? await withForm(model, 'absorbed', length, options, async (session) => {
    const results: HostTensor<'float32'>[] = [];
    for (const ids of sequences) {
      results.push(await session.logits(session.createCache(length), ids));
      ran(length);
    }
    return results;
  }) : null;
  return withSession(model, length, options, async (session) => {
    const comparisons: LogitComparison[] = [];
    let absorbedVsExpanded: number | null = null;
    let cachedVsUncached = 0;
    for (const [i, ids] of sequences.entries()) {
      const prefill = await session.logits(session.createCache(length), ids);
      ran(length);
      const ways: Ways = { prefill, split: await splitPrefill(session, ids, ran), stepped: await tokenByToken(session, ids, ran), absorbed: absorbed?.[i] ?? null };
      comparisons.push(compare(ways, i));
      cachedVsUncached = Math.max(cachedVsUncached, largestDifference(ways.split, prefill), largestDifference(ways.stepped, prefill));
      if (ways.absorbed !== null) absorbedVsExpanded = Math.max(absorbedVsExpanded ?? 0, largestDifference(ways.absorbed, prefill));
    }
    return { ...mergeComparisons(comparisons), absorbedVsExpanded, cachedVsUncached, sequences: sequences.length, tokens: sequences.length * length };
  });
}

/** One prefill is one run of the graph: the chunk is the whole sequence. */
async function withSession<T>(model: Model, length: number, options: VerifyOptions, use: (session: Session) => Promise<T>, forms?: SessionOptions['forms']): Promise<T> {
  const { threads, signal } = options;
  const session = openSession(model, { chunkTokens: length, threads, signal, forms });
  try {
    return await use(session);
  } finally {
    await session.close();
  }
}

const withForm = <T>(model: Model, form: 'absorbed', length: number, options: VerifyOptions, use: (session: Session) => Promise<T>): Promise<T> =>
  withSession(model, length, options, use, { prefill: form, decode: form });

/** A prefill in three parts, each behind what the ones before it left in the cache. */
async function splitPrefill(session: Session, ids: readonly number[], ran: (tokens: number) => void): Promise<HostTensor<'float32'>> {
  const { vocab } = session.model.config;
  const data = new Float32Array(ids.length * vocab);
  const cache = session.createCache(ids.length);
  const part = Math.ceil(ids.length / 3);
  for (let start = 0; start < ids.length; start += part) {
    const piece = ids.slice(start, start + part);
    data.set((await session.logits(cache, piece)).data, start * vocab);
    ran(piece.length);
  }
  return { dtype: 'float32', shape: [ids.length, vocab], data };
}

/** Every token alone: the first through the prefill graph, as a session does, the others through the decode graph. */
async function tokenByToken(session: Session, ids: readonly number[], ran: (tokens: number) => void): Promise<HostTensor<'float32'>> {
  const { vocab } = session.model.config;
  const data = new Float32Array(ids.length * vocab);
  const cache = session.createCache(ids.length);
  for (const [i, id] of ids.entries()) {
    data.set(i === 0 ? (await session.logits(cache, [id])).data : await session.step(cache, id), i * vocab);
    ran(1);
  }
  return { dtype: 'float32', shape: [ids.length, vocab], data };
}

function checkSequence({ config, path }: Model, length: number): void {
  if (length < 1 || length > config.maxPositions) throw new RangeError(`verify: sequences must have 1..${config.maxPositions} tokens, the context of ${path}, got ${length}`);
}

function sequencesOf(model: Model, ids: HostTensor): number[][] {
  const [count, length] = ids.shape;
  if ((ids.dtype !== 'int64' && ids.dtype !== 'int32') || ids.shape.length !== 2 || count === undefined || length === undefined || count < 1) {
    throw new RangeError(`verifyAgainstLogits: ids must be int64 [b, s] of at least one sequence, got ${ids.dtype} [${ids.shape}]`);
  }
  checkSequence(model, length);
  const flat = Array.from<number | bigint, number>(ids.data, Number);
  return Array.from({ length: count }, (_, i) => flat.slice(i * length, (i + 1) * length));
}
