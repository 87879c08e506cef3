/**
 * Rows whose pieces lie in arrays of their own, each read by its own group of KV heads. A piece of a row in one array is
 * followed by those of all other groups: of a long cache the processor then fetches a page for a few hundred bytes.
 * Dimension key as in latent-attention.ts; l pieces.
 */
import { at } from './at.ts';
import type { Dim, Emit } from './emit.ts';
import type { RowStore } from './segments.ts';
import { plainRows, type RowReader } from './stored-rows.ts';

/** Rows [b, t, c] of which piece i [b, t, c / l] is the i-th reader's: side by side only for those who ask for the whole. */
export function piecedRows<V>(g: Emit<V>, pieces: readonly RowReader<V>[]): RowReader<V> {
  let rows: V | null = null;
  const widen = (): V => (rows ??= g.concat(2, pieces.map((piece) => piece.widen())));
  const whole = (): RowReader<V> => plainRows(g, widen());
  return { pieces, widen, score: (query) => whole().score(query), weigh: (weights) => whole().weigh(weights), cut: (groups) => whole().cut(groups) };
}

/** A store over those of equal pieces: new rows [b, s, c] are cut. */
export function piecedStore<V>(g: Emit<V>, stores: readonly RowStore<V>[]): RowStore<V> {
  /** From the sequences of each piece to the pieces of each sequence. */
  const bySequence = (readers: readonly (readonly RowReader<V>[])[]): RowReader<V>[] => at(readers, 0).map((_, q) => piecedRows(g, readers.map((own) => at(own, q))));
  return {
    past: bySequence(stores.map(({ past }) => past)),
    keep: (rows) => bySequence(g.split(rows, 2, equalParts(at(g.shape(rows), 2), stores.length)).map((piece, i) => at(stores, i).keep(piece))),
  };
}

/** `parts` equal lengths that add up to an axis. Errors: a length that is not a multiple, or not known when recorded. */
export function equalParts(length: Dim, parts: number): number[] {
  if (typeof length !== 'number' || length % parts !== 0) throw new RangeError(`equalParts: an axis must be a known multiple of ${parts} long, got ${length}`);
  return Array<number>(parts).fill(length / parts);
}
