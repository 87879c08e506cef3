/** Sequences of a fixed length in an order that a seed decides, from one or several sources. */
import { seededRandom, type Random } from '../random.ts';
import type { HostTensor } from '../../kernels/emit.ts';
import type { TokenSource } from './token-source.ts';

export interface WeightedSource {
  readonly source: TokenSource;
  /** Share of the sequences, relative to the other sources. Default: its number of tokens. */
  readonly weight?: number;
}

export interface SequenceOptions {
  readonly sequenceLength: number;
  readonly batch: number;
  readonly seed: number;
}

export interface Sequences {
  /** The next batch: ids and targets (the following tokens), int64 [b, s]. */
  next(): Promise<{ readonly ids: HostTensor<'int64'>; readonly targets: HostTensor<'int64'> }>;
  /** Goes on as if `batches` more had been drawn; reads nothing. */
  skip(batches: number): void;
}

/** Start of a source's next sequence: every sequence once in an order of its own, then once more in another. */
function starts(sequences: number, random: Random): () => number {
  let order: Uint32Array = new Uint32Array(0);
  let at = 0;
  return () => {
    if (at === order.length) {
      order = Uint32Array.from({ length: sequences }, (_, i) => i);
      for (let i = sequences - 1; i > 0; i--) {
        const j = random.integer(i + 1);
        [order[i], order[j]] = [order[j] ?? 0, order[i] ?? 0];
      }
      at = 0;
    }
    return order[at++] ?? 0;
  };
}

/**
 * Sources are packed: each is one row of tokens, cut into sequences side by side; the targets of one are its tokens and
 * one more. Every sequence of a source comes once before any comes twice. The same seed gives the same batches.
 * Errors: a source shorter than one sequence and its last target, a weight that is not positive.
 */
export function openSequences(sources: readonly WeightedSource[], { sequenceLength, batch, seed }: SequenceOptions): Sequences {
  if (sources.length === 0) throw new RangeError('openSequences: data must have at least one source, got none');
  const random = seededRandom(seed);
  const rows = sources.map(({ source, weight = source.length }) => {
    if (source.length < sequenceLength + 1) {
      throw new RangeError(`openSequences: ${source.name} must have ${sequenceLength + 1} tokens or more for sequences of ${sequenceLength}, got ${source.length}`);
    }
    if (!(weight > 0 && Number.isFinite(weight))) throw new RangeError(`openSequences: the weight of ${source.name} must be positive, got ${weight}`);
    return { source, weight, start: starts(Math.floor((source.length - 1) / sequenceLength), seededRandom(random.integer(2 ** 32))) };
  });
  const total = rows.reduce((sum, { weight }) => sum + weight, 0);
  const draw = (): { source: TokenSource; from: number } => {
    let left = random.uniform() * total;
    const row = rows.find(({ weight }) => (left -= weight) < 0) ?? rows[rows.length - 1];
    if (row === undefined) throw new RangeError('openSequences: data must have at least one source, got none');
    return { source: row.source, from: row.start() * sequenceLength };
  };
  return {
    async next() {
      const shape = [batch, sequenceLength];
      const [ids, targets] = [new BigInt64Array(batch * sequenceLength), new BigInt64Array(batch * sequenceLength)];
      for (let b = 0; b < batch; b++) {
        const { source, from } = draw();
        const tokens = BigInt64Array.from(await source.read(from, sequenceLength + 1), BigInt);
        ids.set(tokens.subarray(0, sequenceLength), b * sequenceLength);
        targets.set(tokens.subarray(1), b * sequenceLength);
      }
      return { ids: { dtype: 'int64', shape, data: ids }, targets: { dtype: 'int64', shape, data: targets } };
    },
    skip(batches) {
      for (let i = 0; i < batches * batch; i++) draw();
    },
  };
}
