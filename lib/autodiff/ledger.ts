/** What the way back adds up: contributions to the cotangent of each value, summed when the value's turn comes. */
import type { Emit } from '../../kernels/emit.ts';
import { full, type Pull } from '../../kernels/vjp.ts';

/** A value with an identity of its own: two words may give one and the same value, their cotangents stay apart. */
export interface Tracked<V> {
  readonly value: V;
}

/** One word as it was carried out, and the way back through it. */
export interface Step<V> {
  readonly inputs: readonly Tracked<V>[];
  readonly outputs: readonly Tracked<V>[];
  back(cotangents: readonly (V | null)[], ledger: Ledger<V>): void;
}

/** Contributions to the cotangents of the values that are wanted. */
export interface Ledger<V> {
  wants(of: Tracked<V>): boolean;
  /** Marks results as wanted where an operand is. */
  follow(steps: readonly Step<V>[]): void;
  want(of: Tracked<V>): void;
  add(to: Tracked<V>, pull: Pull<V>): void;
  /** Evaluates what was contributed to a value so far; null where that is nothing, or only rows of something larger. */
  settle(of: Tracked<V>): V | null;
  total(of: Tracked<V>): V | null;
}

export function openLedger<V>(g: Emit<V>): Ledger<V> {
  const wanted = new Set<Tracked<V>>();
  const pulls = new Map<Tracked<V>, Pull<V>[]>();
  const totals = new Map<Tracked<V>, V>();
  const wants = (of: Tracked<V>): boolean => wanted.has(of);
  const settle = (of: Tracked<V>): V | null => {
    const all = pulls.get(of) ?? [];
    const values = all.flatMap((pull) => ('value' in pull ? [pull.value()] : []));
    if (values.length === 0) return null;
    const sum = values.reduce((a, b) => g.add(a, b));
    pulls.set(of, [{ value: () => sum }, ...all.filter((pull) => 'onto' in pull)]);
    return sum;
  };
  const sumUp = (of: Tracked<V>): V | null => {
    const sum = settle(of);
    const sparse = (pulls.get(of) ?? []).flatMap((pull) => ('onto' in pull ? [pull] : []));
    if (sparse.length === 0) return sum;
    const shape = g.shape(of.value);
    return sparse.reduce((base, pull) => pull.onto(base), sum === null ? g.fill(of.value, shape, 0) : full(g, sum, shape));
  };
  return {
    wants, settle,
    want: (of) => { wanted.add(of); },
    follow(steps) {
      for (const { inputs, outputs } of steps) if (inputs.some(wants)) for (const output of outputs) wanted.add(output);
    },
    add(to, pull) {
      if (wanted.has(to)) pulls.set(to, [...(pulls.get(to) ?? []), pull]);
    },
    total(of) {
      const total = totals.get(of) ?? sumUp(of);
      if (total !== null) totals.set(of, total);
      return total;
    },
  };
}
