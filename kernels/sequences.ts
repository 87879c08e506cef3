/**
 * Sequences of one token each, side by side on the s axis: what has weights runs over all of them at once, attention for
 * each against cached rows of its own, however many. Nothing is padded. One sequence may have any number of tokens.
 */
import { at } from './at.ts';
import type { Emit } from './emit.ts';

/** What belongs to each sequence: [b, n, ...] -> n times [b, 1, ...]. */
export const ofEachSequence = <V>(g: Emit<V>, a: V, sequences: number): V[] =>
  (sequences === 1 ? [a] : g.split(a, 1, Array.from({ length: sequences }, () => 1)));

/** `ofEachSequence` of a part that a layer may be without. */
export const partOfEachSequence = <V>(g: Emit<V>, a: V | null, sequences: number): (V | null)[] =>
  (a === null ? Array.from({ length: sequences }, () => null) : ofEachSequence(g, a, sequences));

/** The inverse: n times [b, 1, ...] -> [b, n, ...]. */
export const sideBySide = <V>(g: Emit<V>, parts: readonly V[]): V => (parts.length === 1 ? at(parts, 0) : g.concat(1, parts));
