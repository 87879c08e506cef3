import { at } from './at.ts';
import type { Emit } from './emit.ts';
import { ofEachSequence } from './sequences.ts';
import { plainRows, type RowReader } from './stored-rows.ts';

/**
 * How attention sees cached and current rows. Joined: one segment of past and current rows behind each other, cheap
 * when many tokens come at once. Split: two segments, so that a long cache is never copied for one new token.
 */
export interface Segmentation<V> {
  readonly join: boolean;
  /**
   * One additive mask (or null) per segment, in order: [past, current], or only one when joined or nothing is cached. Of
   * several sequences (kernels/sequences.ts) those of the first, then those of the next.
   */
  readonly masks: readonly (V | null)[];
  /**
   * Where nothing is cached: queries go through attention in blocks of so many tokens, each against the keys up to
   * its own end only, which nears half the work. The number of tokens must be known when recorded.
   */
  readonly block?: number;
  /**
   * The cached rows hold those of the current tokens already, as their last ones: one segment, nothing joined. Then a
   * graph's own new rows must reach the cache before it is read (lib/session/append-in-place.ts).
   */
  readonly appended?: boolean;
}

/** Sequences with these cached rows: where nothing is cached there is one. */
const countOf = (past: readonly unknown[]): number => Math.max(past.length, 1);

/**
 * Rows [b, t, ...] of each sequence's segments, from the cached rows of each (none when nothing is cached) and the current
 * ones of all [b, s, ...].
 */
export function segmentRows<V>(g: Emit<V>, past: readonly V[], current: V, segmentation: Segmentation<V>): V[][] {
  return ofEachSequence(g, current, countOf(past)).map((own, i) => segmentsOf(past[i], own, segmentation, (old) => g.concat(1, [old, own])));
}

function segmentsOf<T>(past: T | undefined, current: T, { join, appended = false }: Segmentation<unknown>, joined: (past: T) => T): T[] {
  if (past === undefined) return [current];
  if (appended) return [past];
  return join ? [joined(past)] : [past, current];
}

/** The mask that belongs to segment i of all sequences' segments, counted through. */
export const maskOf = <V>(segmentation: Segmentation<V>, i: number): V | null => at(segmentation.masks, i);

/** One cached part of a layer: the old rows of each sequence (none when nothing is cached), and what becomes of new ones. */
export interface RowStore<V> {
  readonly past: readonly RowReader<V>[];
  /** Takes the current tokens' rows [b, s, n] and gives those of each sequence back as they will be read from the cache. */
  keep(rows: V): readonly RowReader<V>[];
}

/** A part of one sequence, kept as plain values; null where nothing is cached. */
export const plainStore = <V>(g: Emit<V>, past: V | null): RowStore<V> =>
  ({ past: past === null ? [] : [plainRows(g, past)], keep: (rows) => [plainRows(g, rows)] });

/** `segmentRows` for rows in any format. */
export function segmentReaders<V>(g: Emit<V>, { past, keep }: RowStore<V>, current: V, segmentation: Segmentation<V>): RowReader<V>[][] {
  return keep(current).map((own, i) => segmentsOf(past[i], own, segmentation, (old) => plainRows(g, g.concat(1, [old.widen(), own.widen()]))));
}
