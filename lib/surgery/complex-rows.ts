/** Weight rows read as complex pairs: row f and row f + n of a head are real and imaginary part. All in float64. */
import type { HostTensor } from '../../kernels/emit.ts';
import { freeMemory } from '../free-memory.ts';
import type { PairTerm, RopePlan } from './rope-plan.ts';
import type { AttentionLayer, Projection } from './attention-layer.ts';

/** A projection in float64, as surgery computes with it. */
export interface Rows {
  readonly weight: Float64Array; // [rows, cols]
  readonly bias: Float64Array | null; // [rows]
  readonly rows: number;
  readonly cols: number;
}

const emptyRows = (rows: number, { weight, bias }: Projection): Rows => {
  const cols = weight.shape[1] ?? 0;
  return { weight: new Float64Array(rows * cols), bias: bias === null ? null : new Float64Array(rows), rows, cols };
};

/** to[row] += factor * from[source], for weight and bias alike. */
function accumulate(to: Rows, row: number, from: Projection | Rows, source: number, factor: number): void {
  if (factor === 0) return;
  const weight = from.weight instanceof Float64Array ? from.weight : from.weight.data;
  const bias = from.bias === null || from.bias instanceof Float64Array ? from.bias : from.bias.data;
  const { cols } = to;
  for (let j = 0; j < cols; j++) to.weight[row * cols + j] = (to.weight[row * cols + j] ?? 0) + factor * (weight[source * cols + j] ?? NaN);
  if (to.bias !== null && bias !== null) to.bias[row] = (to.bias[row] ?? 0) + factor * (bias[source] ?? NaN);
}

/** Rows (re, im) += coefficient x the pair of rows (fromRe, fromIm). */
function accumulatePair(to: Rows, re: number, im: number, from: Projection | Rows, fromRe: number, fromIm: number, coefficient: { re: number; im: number }): void {
  accumulate(to, re, from, fromRe, coefficient.re);
  accumulate(to, re, from, fromIm, -coefficient.im);
  accumulate(to, im, from, fromIm, coefficient.re);
  accumulate(to, im, from, fromRe, coefficient.im);
}

type Components = Pick<RopePlan, 'components'>;

/** Rows of a pair's real and imaginary element. */
const pairRows = ({ headDim }: AttentionLayer, { head, pair }: PairTerm): [number, number] => [head * headDim + pair, head * headDim + pair + headDim / 2];

/**
 * Rotating part of the queries: [h 2n, d], per head [n real | n imaginary]. Where every KV head keeps its own pairs
 * (keepsOwnPairs) `ownOnly` leaves out the components that a head does not see: [h 2n / g, d].
 */
export function queryRopeRows(attention: AttentionLayer, { components }: Components, ownOnly = false): Rows {
  const width = ownOnly ? components.length / attention.kvHeads : components.length;
  const rows = emptyRows(attention.heads * 2 * width, attention.query);
  components.forEach(({ query }, c) => {
    for (const term of query) {
      const row = term.head * 2 * width + (c % width);
      accumulatePair(rows, row, row + width, attention.query, ...pairRows(attention, term), term);
    }
  });
  return rows;
}

/** Rotating part of the keys, one for all heads: [2n, d], [n real | n imaginary]. */
export function keyRopeRows(attention: AttentionLayer, { components }: Components): Rows {
  const n = components.length;
  const rows = emptyRows(2 * n, attention.key);
  components.forEach(({ key }, c) => {
    for (const term of key) accumulatePair(rows, c, n + c, attention.key, ...pairRows(attention, term), term);
  });
  return rows;
}

/** Keys without what the rotating part gives back, at their full head width: [g headDim, d]. */
export function keyNopeRows(attention: AttentionLayer, plan: Components, keyRope = keyRopeRows(attention, plan)): Rows {
  const n = plan.components.length;
  const rows = emptyRows(attention.kvHeads * attention.headDim, attention.key);
  for (let row = 0; row < rows.rows; row++) accumulate(rows, row, attention.key, row, 1);
  plan.components.forEach(({ back }, c) => {
    for (const term of back) accumulatePair(rows, ...pairRows(attention, term), keyRope, c, n + c, { re: -term.re, im: -term.im });
  });
  return rows;
}

/** Queries with the mean rotation folded in, at their full head width: [h headDim, d]. */
export function queryNopeRows(attention: AttentionLayer, { fold }: Pick<RopePlan, 'fold'>): Rows {
  const { heads, headDim, query } = attention;
  const half = headDim / 2;
  const rows = emptyRows(heads * headDim, query);
  const folds = new Map(fold.map((term) => [term.head * half + term.pair, term]));
  for (let head = 0; head < heads; head++) {
    for (let pair = 0; pair < half; pair++) {
      const own = pairRows(attention, { head, pair, re: 1, im: 0 });
      accumulatePair(rows, ...own, query, ...own, folds.get(head * half + pair) ?? { re: 1, im: 0 });
    }
  }
  return rows;
}

/**
 * Elements of each KV head that a remainder needs: a pair is gone when the components give it back whole, that is when
 * its row of (1 - back key) is zero. Lists are padded to one length with elements that are zero anyway.
 */
export function remainingElements({ kvHeads, headDim }: Pick<AttentionLayer, 'kvHeads' | 'headDim'>, { components }: Pick<RopePlan, 'components'>): number[][] {
  const half = headDim / 2;
  const gone = wholePairs(kvHeads * half, half, components);
  const kept = Array.from({ length: kvHeads }, (_, head) => {
    const pairs = Array.from({ length: half }, (_, pair) => pair);
    return { left: pairs.filter((pair) => !gone.has(head * half + pair)), taken: pairs.filter((pair) => gone.has(head * half + pair)) };
  });
  const width = Math.max(...kept.map(({ left }) => left.length));
  return kept.map(({ left, taken }) => {
    const pairs = [...left, ...taken.slice(0, width - left.length)].sort((a, b) => a - b);
    return [...pairs, ...pairs.map((pair) => pair + half)];
  });
}

/** Indices head * half + pair of the pairs that the components give back whole. */
function wholePairs(pairs: number, half: number, components: RopePlan['components']): ReadonlySet<number> {
  const touching = new Map<number, { readonly term: PairTerm; readonly key: readonly PairTerm[] }[]>();
  for (const { key, back } of components) {
    for (const term of back) {
      const at = term.head * half + term.pair;
      touching.set(at, [...(touching.get(at) ?? []), { term, key }]);
    }
  }
  const [real, imaginary] = [new Float64Array(pairs), new Float64Array(pairs)];
  const whole = [...touching].filter(([own, terms]) => {
    real.fill(0);
    imaginary.fill(0);
    real[own] = -1;
    for (const { term: b, key } of terms) {
      for (const k of key) {
        const at = k.head * half + k.pair;
        real[at]! += b.re * k.re - b.im * k.im;
        imaginary[at]! += b.re * k.im + b.im * k.re;
      }
    }
    return real.every((re, at) => Math.hypot(re, imaginary[at]!) < 1e-12);
  });
  return new Set(whole.map(([at]) => at));
}

/** Rows of W_q that a plan's remainder uses: each query head those of its KV head's elements. */
export function queryElements({ nopeElements }: Pick<RopePlan, 'nopeElements'>, { heads, kvHeads, headDim }: Pick<AttentionLayer, 'heads' | 'kvHeads' | 'headDim'>): number[] {
  const perGroup = heads / kvHeads;
  return Array.from({ length: heads }, (_, head) => (nopeElements[Math.floor(head / perGroup)] ?? []).map((element) => head * headDim + element)).flat();
}

/** `selectRows` of rows that nothing else needs. */
export function takeRows(from: Rows, rows: readonly number[]): Rows {
  const taken = selectRows(from, rows);
  freeMemory([from.weight]);
  return taken;
}

/** `toProjection` of rows that nothing else needs. */
export function takeProjection(rows: Rows): Projection {
  const projection = toProjection(rows);
  freeMemory([rows.weight]);
  return projection;
}

/** The given rows, in order. */
export function selectRows(from: Rows, rows: readonly number[]): Rows {
  const { cols } = from;
  const weight = new Float64Array(rows.length * cols);
  rows.forEach((row, i) => weight.set(from.weight.subarray(row * cols, (row + 1) * cols), i * cols));
  const { bias } = from;
  return { weight, bias: bias === null ? null : Float64Array.from(rows, (row) => bias[row] ?? NaN), rows: rows.length, cols };
}

/** The given rows where they are, and zero in place of all others. */
export function zeroOtherRows({ weight, bias, rows, cols }: Rows, keep: readonly number[]): Rows {
  const kept = new Set(keep);
  return {
    rows, cols, weight: weight.map((value, i) => (kept.has(Math.floor(i / cols)) ? value : 0)),
    bias: bias === null ? null : bias.map((value, row) => (kept.has(row) ? value : 0)),
  };
}

/** Rounded to float32 tensors, as graphs and files take them. */
export function toProjection({ weight, bias, rows, cols }: Rows): Projection {
  const tensor = (shape: number[], data: Float64Array): HostTensor<'float32'> => ({ dtype: 'float32', shape, data: Float32Array.from(data) });
  return { weight: tensor([rows, cols], weight), bias: bias === null ? null : tensor([rows], bias) };
}
