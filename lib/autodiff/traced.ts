/** Reverse mode over any reading of the vocabulary: words are carried out and remembered, then pulled back. */
import { at } from '../../kernels/at.ts';
import type { Emit } from '../../kernels/emit.ts';
import { full, rules, type Pull } from '../../kernels/vjp.ts';
import { openLedger, type Ledger, type Step, type Tracked } from './ledger.ts';
import { madeAgain } from './made-again.ts';
import { after } from './waiting.ts';

export type { Tracked } from './ledger.ts';

export interface Tracer<V> {
  /** The reading, remembered. */
  readonly g: Emit<Tracked<V>>;
  /** Takes a value in: a variable or a constant. */
  track(value: V): Tracked<V>;
  /**
   * Runs `body` on `inputs` as a stretch that the way back finishes before it goes on: the cotangents of everything
   * that `body` reads are there before those of `inputs` are handed on, so that an engine which is free to order its
   * work does not keep a whole model's cotangents until the end. Inputs must be floating point.
   *
   * With `again` nothing in between is kept: the way back runs `body` a second time. That run waits for the cotangents,
   * so that its results do not lie about early and an optimiser cannot merge both runs.
   * Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
   */
  stretch(inputs: readonly Tracked<V>[], again: boolean, body: (inputs: readonly Tracked<V>[]) => readonly Tracked<V>[]): Tracked<V>[];
  /**
   * Cotangents of `wrt`, null where `outputs` do not depend on one. `outputs` come with their own cotangents.
   * Only what leads to `wrt` is computed; values used several times sum their cotangents.
   */
  pullback(outputs: readonly (readonly [output: Tracked<V>, cotangent: V])[], wrt: readonly Tracked<V>[]): (V | null)[];
}

/** The way back through steps, last first. */
function pullThrough<V>(steps: readonly Step<V>[], ledger: Ledger<V>): void {
  for (const step of [...steps].reverse()) {
    if (!step.inputs.some(ledger.wants)) continue;
    const cotangents = step.outputs.map((output) => ledger.total(output));
    if (cotangents.some((cotangent) => cotangent !== null)) step.back(cotangents, ledger);
  }
}

/** Of words whose cotangents never only add rows to something. */
function valueOf<V>(pull: Pull<V>): V {
  if ('onto' in pull) throw new TypeError('traced: a factor must have a cotangent of its own');
  return pull.value();
}

export function traced<V>(under: Emit<V>): Tracer<V> {
  let steps: Step<V>[] = [];
  const track = (value: V): Tracked<V> => ({ value });
  /** Remembers one word: `pulls` leads from its cotangents to those of `inputs`, in their order. */
  const keepAll = (inputs: readonly Tracked<V>[], values: readonly V[], pulls: (dy: readonly (V | null)[]) => Pull<V>[]): Tracked<V>[] => {
    const outputs = values.map(track);
    steps.push({ inputs, outputs, back: (dy, ledger) => pulls(dy).forEach((pull, i) => ledger.add(at(inputs, i), pull)) });
    return outputs;
  };
  const keep = (inputs: readonly Tracked<V>[], y: V, pulls: (back: { readonly y: V; readonly dy: V }) => Pull<V>[]): Tracked<V> =>
    at(keepAll(inputs, [y], ([dy]) => (dy === undefined || dy === null ? [] : pulls({ y, dy }))), 0);
  type Unary = 'square' | 'sqrt' | 'exp' | 'log' | 'sum' | 'mean' | 'softmax' | 'logSumExp';
  type Binary = 'add' | 'sub' | 'div';
  const unary = (word: Unary) => (a: Tracked<V>): Tracked<V> => keep([a], under[word](a.value), (back) => rules[word](under, back, a.value));
  const binary = (word: Binary) => (a: Tracked<V>, b: Tracked<V>): Tracked<V> =>
    keep([a, b], under[word](a.value, b.value), (back) => rules[word](under, back, a.value, b.value));
  const values = (of: readonly Tracked<V>[]): V[] => of.map((one) => one.value);
  const remade = madeAgain(under);
  /** False on the way back, where what is made does not lie about for long. */
  let onTheWay = true;
  const cheap = (of: Tracked<V>, make: (cotangent: V) => V): Tracked<V> => {
    if (onTheWay) remade.note(of, make);
    return of;
  };
  /** What the cotangent of operand `index` reads of the operands: the others. */
  const others = (of: readonly Tracked<V>[], index: number, dy: V): V[] => of.map((one, i) => (i === index ? one.value : remade.value(one, dy)));
  /** A word whose cotangents read the other operands alone. */
  const multiplied = (xs: readonly Tracked<V>[], y: V, rule: (back: { readonly y: V; readonly dy: V }, operands: readonly V[]) => Pull<V>[]): Tracked<V> =>
    keep(xs, y, (back) => xs.map((_, i) => ({ value: () => valueOf(at(rule(back, others(xs, i, back.dy)), i)) })));

  const g: Emit<Tracked<V>> = {
    constant: (tensor) => track(under.constant(tensor)),
    shape: (a) => under.shape(a.value),
    fill: (like, shape, value) => track(under.fill(like.value, shape, value)),
    causalMask: (query, key, window) => track(under.causalMask(query.value, key.value, window)),
    einsum: (equation, ...xs) => multiplied(xs, under.einsum(equation, ...values(xs)), (back, operands) => rules.einsum(under, back, equation, ...operands)),
    mul(a, b) {
      const product = multiplied([a, b], under.mul(a.value, b.value), (back, [x, y]) => rules.mul(under, back, x ?? a.value, y ?? b.value));
      return cheap(product, (dy) => {
        const [x, y] = remade.factors([a, b], dy);
        return under.mul(x ?? a.value, y ?? b.value);
      });
    },
    sigmoid(a) {
      const result: Tracked<V> = keep([a], under.sigmoid(a.value), ({ dy }) => rules.sigmoid(under, { y: remade.value(result, dy), dy }, a.value));
      return cheap(result, (dy) => under.sigmoid(at(remade.factors([a], dy), 0)));
    },
    add: binary('add'), sub: binary('sub'), div: binary('div'),
    square: unary('square'), sqrt: unary('sqrt'), exp: unary('exp'), log: unary('log'),
    sum: unary('sum'), mean: unary('mean'), softmax: unary('softmax'), logSumExp: unary('logSumExp'),
    scale: (a, by) => keep([a], under.scale(a.value, by), (back) => rules.scale(under, back, a.value, by)),
    shift: (a, by) => keep([a], under.shift(a.value, by), (back) => rules.shift(under, back, a.value, by)),
    rotate: (a, cos, sin) => keep([a, cos, sin], under.rotate(a.value, cos.value, sin.value), (back) => rules.rotate(under, back, a.value, cos.value, sin.value)),
    gather: (a, indices) => keep([a], under.gather(a.value, indices.value), (back) => rules.gather(under, back, a.value, indices.value)),
    pick: (a, indices) => keep([a], under.pick(a.value, indices.value), (back) => rules.pick(under, back, a.value, indices.value)),
    concat: (axis, parts) => keep(parts, under.concat(axis, values(parts)), (back) => rules.concat(under, back, axis, values(parts))),
    split(a, axis, lengths) {
      const y = under.split(a.value, axis, lengths);
      return keepAll([a], y, (dy) => rules.split(under, { y, dy }, a.value, axis, lengths));
    },
    reshape: (a, shape) => keep([a], under.reshape(a.value, shape), (back) => rules.reshape(under, back, a.value, shape)),
    expand: (a, shape) => keep([a], under.expand(a.value, shape), (back) => rules.expand(under, back, a.value, shape)),
    addRows: (a, indices, updates) =>
      keep([a, updates], under.addRows(a.value, indices.value, updates.value), (back) => rules.addRows(under, back, a.value, indices.value, updates.value)),
    addPicked: (a, indices, updates) =>
      keep([a, updates], under.addPicked(a.value, indices.value, updates.value), (back) => rules.addPicked(under, back, a.value, indices.value, updates.value)),
  };

  /** Runs `body` with its steps apart. */
  const apart = <T>(body: () => T): { result: T; inner: Step<V>[] } => {
    const outside = steps;
    steps = [];
    try {
      return { result: body(), inner: steps };
    } finally {
      steps = outside;
    }
  };

  return {
    g, track,
    stretch(inputs, again, body) {
      const copies = inputs.map(({ value }) => track(value));
      const first = apart(() => body(copies));
      const own = new Set([...copies, ...first.inner.flatMap((step) => step.outputs)]);
      const captured = [...new Set(first.inner.flatMap((step) => step.inputs))].filter((input) => !own.has(input));
      const outputs = first.result.map(({ value }) => track(value));
      steps.push({
        inputs: [...inputs, ...captured], outputs,
        back(cotangents, ledger) {
          const known = cotangents.filter((cotangent) => cotangent !== null);
          const given = again ? inputs.map(({ value }) => track(after(under, value, known))) : copies;
          const { result, inner } = again ? apart(() => body(given)) : first;
          given.forEach((copy, i) => { if (ledger.wants(at(inputs, i))) ledger.want(copy); });
          ledger.follow(inner);
          result.forEach((output, i) => {
            const cotangent = cotangents[i] ?? null;
            if (cotangent !== null) ledger.add(output, { value: () => cotangent });
          });
          pullThrough(inner, ledger);
          const finished = captured.filter(ledger.wants).map(ledger.settle).filter((value) => value !== null);
          given.forEach((copy, i) => {
            const cotangent = ledger.total(copy);
            if (cotangent !== null) ledger.add(at(inputs, i), { value: () => after(under, cotangent, finished) });
          });
        },
      });
      return outputs;
    },
    pullback(outputs, wrt) {
      onTheWay = false;
      const ledger = openLedger(under);
      for (const variable of wrt) ledger.want(variable);
      ledger.follow(steps);
      for (const [output, cotangent] of outputs) ledger.add(output, { value: () => cotangent });
      pullThrough(steps, ledger);
      return wrt.map((variable) => {
        const cotangent = ledger.total(variable);
        return cotangent === null ? null : full(under, cotangent, under.shape(variable.value));
      });
    },
  };
}
