/**
 * Axis lengths as polynomials with integer coefficients in named symbols, e.g. `p+s`, `3*s+1`, `b*s`. Every function
 * returns the canonical spelling (terms by falling degree, then by name; the plain number last), so equal expressions
 * are equal strings, and a `number` whenever no symbol is left. Parentheses and spaces are accepted on input.
 */
import type { Dim } from '../../kernels/emit.ts';

/** Coefficient of every product of symbols; the key is the symbols sorted and joined by `*`, '' for the plain number. */
type Polynomial = ReadonlyMap<string, number>;

const TOKEN = /\s*(?:(\d+)|([A-Za-z_][\w.]*)|([-+*()]))/y;

/** Splits `text` into numbers, symbols and the signs + - * ( ). */
function tokens(text: string): string[] {
  const found: string[] = [];
  let at = 0;
  while (text.slice(at).trim() !== '') {
    TOKEN.lastIndex = at;
    const match = TOKEN.exec(text);
    if (match === null) {
      throw new Error(`dims: "${text}" must be sums and products of numbers and symbols, unreadable at "${text.slice(at)}"`);
    }
    found.push((match[1] ?? match[2] ?? match[3])!);
    at = TOKEN.lastIndex;
  }
  return found;
}

function parse(dim: Dim): Polynomial {
  if (typeof dim === 'number') {
    if (!Number.isSafeInteger(dim)) throw new Error(`dims: a length must be an integer, got ${dim}`);
    return constant(dim);
  }
  const list = tokens(dim);
  let at = 0;
  const fail = (): never => {
    throw new Error(`dims: "${dim}" must be sums and products of numbers and symbols, got "${list[at] ?? 'its end'}"`);
  };
  const factor = (): Polynomial => {
    const token = list[at] ?? fail();
    at++;
    if (token === '-') return multiply(constant(-1), factor());
    if (token === '(') {
      const inside = sum();
      if (list[at] !== ')') fail();
      at++;
      return inside;
    }
    if (/^\d/.test(token)) return constant(Number(token));
    if (/^\w/.test(token)) return new Map([[token, 1]]);
    at--;
    return fail();
  };
  const product = (): Polynomial => {
    let result = factor();
    while (list[at] === '*') {
      at++;
      result = multiply(result, factor());
    }
    return result;
  };
  const sum = (): Polynomial => {
    let result = product();
    for (let sign = list[at]; sign === '+' || sign === '-'; sign = list[at]) {
      at++;
      result = plus(result, product(), sign === '+' ? 1 : -1);
    }
    return result;
  };
  const result = sum();
  if (at < list.length) fail();
  return result;
}

const constant = (value: number): Polynomial => (value === 0 ? new Map() : new Map([['', value]]));
const symbolsOf = (product: string): string[] => (product === '' ? [] : product.split('*'));
const joined = (symbols: readonly string[]): string => [...symbols].sort().join('*');

function plus(a: Polynomial, b: Polynomial, factor: number): Polynomial {
  const result = new Map(a);
  for (const [product, coefficient] of b) {
    const total = (result.get(product) ?? 0) + factor * coefficient;
    if (total === 0) result.delete(product);
    else result.set(product, total);
  }
  return result;
}

function multiply(a: Polynomial, b: Polynomial): Polynomial {
  let result: Polynomial = new Map();
  for (const [left, x] of a) {
    const row = new Map([...b].map(([right, y]) => [joined([...symbolsOf(left), ...symbolsOf(right)]), x * y]));
    result = plus(result, row, 1);
  }
  return result;
}

/** Graded lexicographic order: a monomial order, which exact division needs, and a readable one. */
function byTerm(left: string, right: string): number {
  const a = symbolsOf(left), b = symbolsOf(right);
  if (a.length !== b.length) return b.length - a.length;
  const at = a.findIndex((symbol, i) => symbol !== b[i]);
  return at < 0 ? 0 : a[at]! < b[at]! ? -1 : 1;
}

const leading = (p: Polynomial): string | undefined => [...p.keys()].sort(byTerm)[0];

function print(p: Polynomial): Dim {
  if (p.size === 0) return 0;
  if (p.size === 1 && p.has('')) return p.get('')!;
  return [...p.keys()].sort(byTerm).map((product, i) => {
    const coefficient = p.get(product)!;
    const size = Math.abs(coefficient);
    const text = product === '' ? `${size}` : size === 1 ? product : `${size}*${product}`;
    return (coefficient < 0 ? '-' : i === 0 ? '' : '+') + text;
  }).join('');
}

/** The canonical spelling of `dim`; throws when it is no sum of products. */
export const canonicalDim = (dim: Dim): Dim => print(parse(dim));

/** a + b. */
export const addDims = (a: Dim, b: Dim): Dim => print(plus(parse(a), parse(b), 1));

/** a - b. */
export const subDims = (a: Dim, b: Dim): Dim => print(plus(parse(a), parse(b), -1));

/** a · b. */
export const mulDims = (a: Dim, b: Dim): Dim => print(multiply(parse(a), parse(b)));

/** The product of all lengths: the element count of a shape (1 for a scalar). */
export const productOfDims = (dims: readonly Dim[]): Dim => print(dims.map(parse).reduce(multiply, constant(1)));

/** Whether two lengths are equal for every value of their symbols. */
export const sameDim = (a: Dim, b: Dim): boolean => a === b || canonicalDim(a) === canonicalDim(b);

/** The symbols a length depends on, sorted. */
export const symbolsOfDim = (dim: Dim): string[] =>
  typeof dim === 'number' ? [] : [...new Set([...parse(dim).keys()].flatMap(symbolsOf))].sort();

/** a / b where that is a polynomial with integer coefficients, else null. */
export function divideExactly(a: Dim, b: Dim): Dim | null {
  const divisor = parse(b);
  const top = leading(divisor);
  if (top === undefined) return null;
  let rest = parse(a);
  let quotient: Polynomial = new Map();
  for (let term = leading(rest); term !== undefined; term = leading(rest)) {
    const symbols = symbolsOf(term);
    for (const symbol of symbolsOf(top)) {
      const at = symbols.indexOf(symbol);
      if (at < 0) return null;
      symbols.splice(at, 1);
    }
    const coefficient = rest.get(term)! / divisor.get(top)!;
    if (!Number.isInteger(coefficient)) return null;
    const step: Polynomial = new Map([[joined(symbols), coefficient]]);
    quotient = plus(quotient, step, 1);
    rest = plus(rest, multiply(step, divisor), -1);
  }
  return print(quotient);
}

/** a / b; throws when the division is not exact for every value of the symbols. */
export function divDims(a: Dim, b: Dim): Dim {
  const quotient = divideExactly(a, b);
  if (quotient === null) throw new Error(`divDims: ${a} must be a multiple of ${b}`);
  return quotient;
}

/** Replaces symbols by lengths; symbols that `bindings` lacks stay. */
export function substituteDim(dim: Dim, bindings: Readonly<Record<string, Dim>>): Dim {
  if (typeof dim === 'number') return dim;
  let result: Polynomial = new Map();
  for (const [product, coefficient] of parse(dim)) {
    const factors = symbolsOf(product).map((symbol) => (Object.hasOwn(bindings, symbol) ? parse(bindings[symbol]!) : parse(symbol)));
    result = plus(result, factors.reduce(multiply, constant(coefficient)), 1);
  }
  return print(result);
}

/** The number `dim` stands for under `bindings`, e.g. evaluateDim('p+s', { p: 5, s: 2 }) = 7; throws on an unbound symbol. */
export function evaluateDim(dim: Dim, bindings: Readonly<Record<string, number>>): number {
  const value = substituteDim(dim, bindings);
  if (typeof value === 'number') return value;
  throw new Error(`evaluateDim: every symbol of ${dim} needs a value, got none for ${symbolsOfDim(value).join(', ')}`);
}

/** The terms of a length: 3*s*b + 2 is [{3, [b, s]}, {2, []}]; what a graph needs to compute it from Shape nodes. */
export const termsOfDim = (dim: Dim): { readonly coefficient: number; readonly symbols: readonly string[] }[] =>
  [...parse(dim)].map(([product, coefficient]) => ({ coefficient, symbols: symbolsOf(product) }));
