/**
 * The third reading of a kernel: one reverse rule per word. With L the number that is differentiated, the cotangent of
 * a value v is dv = dL/dv; a rule leads from the cotangent dy of a word's result y to those of its operands, in the
 * same words. Source: Griewank and Walther 2008, chapter 3.
 *
 * A cotangent may be compact: where it is constant along an axis, that axis may have length 1. `full` spells it out.
 */
import { at } from './at.ts';
import type { Dim, Emit } from './emit.ts';

/**
 * The cotangent of one operand: a value of its own, or something added onto what other uses of the operand
 * contributed (a few rows of a large table). Evaluated only when it is wanted.
 */
export type Pull<V> = { value(): V } | { onto(base: V): V };

/** Words without a cotangent: what they give does not depend smoothly on an operand. */
export type ConstantWord = 'constant' | 'shape' | 'fill' | 'causalMask';
export type Word = Exclude<keyof Emit<unknown>, ConstantWord>;

/** Result and cotangent of a word; for `split` one of each per piece, null where nothing depends on the piece. */
type Back<V, W extends Word> = W extends 'split' ? { readonly y: readonly V[]; readonly dy: readonly (V | null)[] } : { readonly y: V; readonly dy: V };

/** One pull per operand that is a tensor of real numbers, in the word's order of operands. */
export type Rule<W extends Word> = <V>(g: Emit<V>, back: Back<V, W>, ...operands: Parameters<Emit<V>[W]>) => Pull<V>[];

/** Letters for the axes of a value. */
const LETTERS = 'abcdefghijklmnop';
const sameShape = (a: readonly Dim[], b: readonly Dim[]): boolean => a.length === b.length && a.every((dim, i) => dim === b[i]);

/** A cotangent in the whole shape of its value. */
export function full<V>(g: Emit<V>, dy: V, shape: readonly Dim[]): V {
  return sameShape(g.shape(dy), shape) ? dy : g.expand(dy, shape);
}

/** The cotangent of an operand of shape `to` that was broadcast to `from`: a sum over the repeated axes. */
function unbroadcast<V>(g: Emit<V>, dy: V, from: readonly Dim[], to: readonly Dim[]): V {
  const own = (axis: number): Dim => to[axis - (from.length - to.length)] ?? 1;
  const repeated = from.map((dim, axis) => dim !== 1 && own(axis) === 1);
  if (!repeated.includes(true)) return from.length === to.length ? dy : g.reshape(full(g, dy, from), to);
  // Along a repeated axis a compact cotangent counts once per repetition.
  const whole = repeated.some((yes, axis) => yes && g.shape(dy)[axis] === 1) ? full(g, dy, from) : dy;
  const axes = LETTERS.slice(0, from.length);
  const kept = [...axes].filter((_, axis) => repeated[axis] !== true).join('');
  const lengths = g.shape(whole);
  const shape = to.map((_, i) => (repeated[i + from.length - to.length] === true ? 1 : at(lengths, i + from.length - to.length)));
  return g.reshape(g.einsum(`${axes}->${kept}`, whole), shape);
}

/** Einsum's rule is einsum with the operand's axes and the result's exchanged; axes that only the operand has are spread. */
function einsumPull<V>(g: Emit<V>, equation: string, dy: V, y: V, operands: readonly V[], index: number): V {
  const [left = '', output = ''] = equation.split('->');
  const axes = left.split(',');
  const own = at(axes, index);
  const others = operands.flatMap((value, i) => (i === index ? [] : [{ value, axes: at(axes, i) }]));
  const known = [...own].filter((axis) => output.includes(axis) || others.some((other) => other.axes.includes(axis))).join('');
  const cotangent = g.einsum(`${[output, ...others.map((other) => other.axes)].join(',')}->${known}`, full(g, dy, g.shape(y)), ...others.map((other) => other.value));
  const shape = g.shape(at(operands, index));
  return known === own ? cotangent : g.reshape(cotangent, [...own].map((axis, i) => (known.includes(axis) ? at(shape, i) : 1)));
}

/** 1 / length of the last axis, for a length that may be a symbol. */
function perElement<V>(g: Emit<V>, dy: V, a: V): V {
  const shape = g.shape(a);
  const n = at(shape, shape.length - 1);
  return typeof n === 'number' ? g.scale(dy, 1 / n) : g.div(dy, g.sum(g.fill(a, [n], 1)));
}

const value = <V>(of: () => V): Pull<V> => ({ value: of });

/** The two halves of what rotates of a [b, s, h, 2n or more] by angles [s, n]. */
function halves<V>(g: Emit<V>, a: V, angles: V): [V, V] {
  const n = Number(at(g.shape(angles), 1)), rest = Number(at(g.shape(a), 3)) - 2 * n;
  const parts = g.split(a, 3, rest === 0 ? [n, n] : [n, n, rest]);
  return [at(parts, 0), at(parts, 1)];
}

/** d cos and d sin of y = [x1 cos - x2 sin | x2 cos + x1 sin], summed over batch and heads: [s, n]. */
function cosPull<V>(g: Emit<V>, dy: V, x: V, angles: V): V {
  const [[dy1, dy2], [x1, x2]] = [halves(g, dy, angles), halves(g, x, angles)];
  return g.add(g.einsum('bshn,bshn->sn', dy1, x1), g.einsum('bshn,bshn->sn', dy2, x2));
}
function sinPull<V>(g: Emit<V>, dy: V, x: V, angles: V): V {
  const [[dy1, dy2], [x1, x2]] = [halves(g, dy, angles), halves(g, x, angles)];
  return g.sub(g.einsum('bshn,bshn->sn', dy2, x1), g.einsum('bshn,bshn->sn', dy1, x2));
}

/** Exhaustive: a word without a rule does not compile. */
export const rules: { readonly [W in Word]: Rule<W> } = {
  einsum: (g, { y, dy }, equation, ...operands) => operands.map((_, i) => value(() => einsumPull(g, equation, dy, y, operands, i))),
  add: (g, { y, dy }, a, b) => [a, b].map((x) => value(() => unbroadcast(g, dy, g.shape(y), g.shape(x)))),
  sub: (g, { y, dy }, a, b) => [
    value(() => unbroadcast(g, dy, g.shape(y), g.shape(a))),
    value(() => g.scale(unbroadcast(g, dy, g.shape(y), g.shape(b)), -1)),
  ],
  mul: (g, { y, dy }, a, b) => [
    value(() => unbroadcast(g, g.mul(dy, b), g.shape(y), g.shape(a))),
    value(() => unbroadcast(g, g.mul(dy, a), g.shape(y), g.shape(b))),
  ],
  div: (g, { y, dy }, a, b) => [
    value(() => unbroadcast(g, g.div(dy, b), g.shape(y), g.shape(a))),
    value(() => g.scale(g.div(unbroadcast(g, g.mul(dy, y), g.shape(y), g.shape(b)), b), -1)),
  ],
  scale: (g, { dy }, _a, by) => [value(() => g.scale(dy, by))],
  shift: (_g, { dy }) => [value(() => dy)],
  square: (g, { dy }, a) => [value(() => g.mul(a, g.scale(dy, 2)))],
  sqrt: (g, { y, dy }) => [value(() => g.div(g.scale(dy, 0.5), y))],
  exp: (g, { y, dy }) => [value(() => g.mul(dy, y))],
  log: (g, { dy }, a) => [value(() => g.div(dy, a))],
  // Written so that every step waits for dy: an engine that runs nodes as early as it can would keep y (1 - y) otherwise.
  sigmoid: (g, { y, dy }) => [value(() => g.mul(g.sub(dy, g.mul(dy, y)), y))],
  sum: (_g, { dy }) => [value(() => dy)],
  mean: (g, { dy }, a) => [value(() => perElement(g, dy, a))],
  softmax: (g, { y, dy }) => [value(() => g.mul(y, g.sub(dy, g.sum(g.mul(dy, y)))))],
  logSumExp: (g, { y, dy }, a) => [value(() => g.mul(dy, g.exp(g.sub(a, y))))],
  rotate: (g, { y, dy }, a, cos, sin) => {
    const whole = full(g, dy, g.shape(y));
    return [value(() => g.rotate(whole, cos, g.scale(sin, -1))), value(() => cosPull(g, whole, a, cos)), value(() => sinPull(g, whole, a, cos))];
  },
  gather: (g, { y, dy }, _table, indices) => [{ onto: (base) => g.addRows(base, indices, full(g, dy, g.shape(y))) }],
  pick: (g, { y, dy }, _a, indices) => [{ onto: (base) => g.addPicked(base, indices, full(g, dy, g.shape(y))) }],
  concat: (g, { y, dy }, axis, parts) => {
    const lengths = parts.map((part) => at(g.shape(part), axis));
    return parts.map((_, i) => value(() => at(g.split(full(g, dy, g.shape(y)), axis, lengths), i)));
  },
  split: (g, { y, dy }, a, axis) => [value(() => g.concat(axis, y.map((piece, i) => {
    const known = dy[i] ?? null;
    return known === null ? g.fill(a, g.shape(piece), 0) : full(g, known, g.shape(piece));
  })))],
  reshape: (g, { y, dy }, a) => [value(() => g.reshape(full(g, dy, g.shape(y)), g.shape(a)))],
  expand: (g, { y, dy }, a) => [value(() => unbroadcast(g, dy, g.shape(y), g.shape(a)))],
  addRows: (g, { y, dy }, _table, indices) => [value(() => dy), value(() => g.gather(full(g, dy, g.shape(y)), indices))],
  addPicked: (g, { y, dy }, _a, indices) => [value(() => dy), value(() => g.pick(full(g, dy, g.shape(y)), indices))],
};
