/** Weight rows read as complex pairs: row f and row f + n of a head are real and imaginary part. All in float64. */
import type { HostTensor } from '../../kernels/emit.ts';
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

/** The four projections a plan makes of W_q and W_k; the remainder keeps its full head width here. */
export interface PlannedRows {
  readonly queryRope: Rows; // [heads 2n, hidden], per head [n real | n imaginary]
  readonly keyRope: Rows; // [2n, hidden]
  readonly queryNope: Rows; // [heads headDim, hidden]
  readonly keyNope: Rows; // [kvHeads headDim, hidden]
}

export function plannedRows(attention: AttentionLayer, plan: Pick<RopePlan, 'components' | 'fold'>): PlannedRows {
  const { heads, kvHeads, headDim, query, key } = attention;
  const half = headDim / 2;
  const n = plan.components.length;
  const queryRope = emptyRows(heads * 2 * n, query);
  const keyRope = emptyRows(2 * n, key);
  const queryNope = emptyRows(heads * headDim, query);
  const keyNope = emptyRows(kvHeads * headDim, key);
  const source = ({ head, pair }: PairTerm): [number, number] => [head * headDim + pair, head * headDim + pair + half];
  plan.components.forEach((component, c) => {
    for (const term of component.key) accumulatePair(keyRope, c, n + c, key, ...source(term), term);
    for (const term of component.query) accumulatePair(queryRope, term.head * 2 * n + c, term.head * 2 * n + n + c, query, ...source(term), term);
  });
  for (let row = 0; row < keyNope.rows; row++) accumulate(keyNope, row, key, row, 1);
  plan.components.forEach((component, c) => {
    for (const term of component.back) accumulatePair(keyNope, ...source(term), keyRope, c, n + c, { re: -term.re, im: -term.im });
  });
  const folds = new Map(plan.fold.map((term) => [term.head * half + term.pair, term]));
  for (let head = 0; head < heads; head++) {
    for (let pair = 0; pair < half; pair++) {
      const rows = source({ head, pair, re: 1, im: 0 });
      accumulatePair(queryNope, ...rows, query, ...rows, folds.get(head * half + pair) ?? { re: 1, im: 0 });
    }
  }
  return { queryRope, keyRope, queryNope, keyNope };
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

/** The given rows, in order. */
export function selectRows(from: Rows, rows: readonly number[]): Rows {
  const { cols } = from;
  const weight = new Float64Array(rows.length * cols);
  rows.forEach((row, i) => weight.set(from.weight.subarray(row * cols, (row + 1) * cols), i * cols));
  const { bias } = from;
  return { weight, bias: bias === null ? null : Float64Array.from(rows, (row) => bias[row] ?? NaN), rows: rows.length, cols };
}

/** Rope query rows [h 2n, d] without those that are zero when a head sees the components of its own KV head only: [h 2n / g, d]. */
export function ownSlots(rows: Rows, { heads, kvHeads }: Pick<AttentionLayer, 'heads' | 'kvHeads'>): Rows {
  const half = rows.rows / heads / 2;
  const own = half / kvHeads;
  return selectRows(rows, Array.from({ length: heads }, (_, head) => [0, half].flatMap((member) =>
    Array.from({ length: own }, (_, i) => head * 2 * half + member + Math.floor((head * kvHeads) / heads) * own + i))).flat());
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
