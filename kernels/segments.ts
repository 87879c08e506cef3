import { at } from './at.ts';
import type { Emit } from './emit.ts';
import { plainRows, type RowReader } from './stored-rows.ts';

/**
 * How attention sees cached and current rows. Joined: one segment of past and current rows behind each other, cheap
 * when many tokens come at once. Split: two segments, so that a long cache is never copied for one new token.
 */
export interface Segmentation<V> {
  readonly join: boolean;
  /** One additive mask (or null) per segment, in order: [past, current], or only one when joined or nothing is cached. */
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

/** Rows [b, t, ...] per segment, from cached rows (null when nothing is cached) and current ones. */
export function segmentRows<V>(g: Emit<V>, past: V | null, current: V, { join, appended = false }: Segmentation<V>): V[] {
  if (past === null) return [current];
  if (appended) return [past];
  return join ? [g.concat(1, [past, current])] : [past, current];
}

/** The mask that belongs to segment i. */
export const maskOf = <V>(segmentation: Segmentation<V>, i: number): V | null => at(segmentation.masks, i);

/** One cached part of a layer: its old rows (null when nothing is cached), and what becomes of new ones. */
export interface RowStore<V> {
  readonly past: RowReader<V> | null;
  /** Takes the current tokens' rows [b, s, n] and gives them back as they will be read from the cache. */
  keep(rows: V): RowReader<V>;
}

/** A part kept as plain values. */
export const plainStore = <V>(g: Emit<V>, past: V | null): RowStore<V> =>
  ({ past: past === null ? null : plainRows(g, past), keep: (rows) => plainRows(g, rows) });

/** `segmentRows` for rows in any format. */
export function segmentReaders<V>(g: Emit<V>, { past, keep }: RowStore<V>, current: V, { join, appended = false }: Segmentation<V>): RowReader<V>[] {
  const kept = keep(current);
  if (past === null) return [kept];
  if (appended) return [past];
  return join ? [plainRows(g, g.concat(1, [past.widen(), kept.widen()]))] : [past, kept];
}
