/**
 * The frequency bank, our own plan. Neighbouring frequencies are almost the same rotation over the distances that
 * attention looks at, so a segment of them, over all KV heads, shares one frequency, and a few complex principal
 * components carry its energy. NoPE is the segment of frequency 0. Frequencies, segments and components are chosen by
 * the score error expected on calibration text; the rotation that is lost on average is folded into the queries.
 */
import type { ComplexMatrix, HermitianEigen } from '../linalg/hermitian-eigh.ts';
import { zeros, type Matrix } from '../linalg/matrix.ts';
import type { LayerStatistics } from '../statistics/layer-statistics.ts';
import { pairsPerHead, type AttentionLayer } from '../surgery/attention-layer.ts';
import type { PairTerm, PlanChoice, RopeComponent } from '../surgery/rope-plan.ts';
import { chooseSegments, type SegmentGains } from './frequency-segments.ts';
import { meanRotations } from './mean-rotation.ts';
import { rowsOf, segmentComponents } from './segment-components.ts';
import { anyComponents, required, type PlanStrategy } from './strategy.ts';

/** Frequencies in one segment at most: 4 lose a little, more than 8 gain nothing. */
const LONGEST_SEGMENT = 8;
/** Components kept in one segment at most, unless all are to be kept. */
const MOST_PER_SEGMENT = 6;
/** Weights are divided by; none is taken below this share of the largest. */
const WEIGHT_FLOOR = 1e-4;

/** A segment with its common frequency and the components that gain most at it. */
interface Segment extends SegmentGains {
  /** frequency[m] and order[m] belong to gains[m]: columns of `vectors`, best first. */
  readonly choices: readonly { readonly frequency: number; readonly columns: readonly number[] }[];
  readonly vectors: ComplexMatrix;
}

/** Numbers of one layer that every segment needs; index (g, f) is g * pairs + f. */
interface Energies {
  readonly pairs: number;
  readonly kvHeads: number;
  /** E[k k^*] of the complex keys: [g f, g f]. */
  readonly keys: ComplexMatrix;
  /** w_{g,f}: sum over the heads h of g of tau_h E|q_{h,f}|^2, floored. */
  readonly weights: Float64Array;
  /** Error of (g, f), relative to its weighted energy, when turned by candidate c, or not at all. */
  readonly error: (pair: number, candidate: number) => number;
  readonly still: Float64Array;
  /** Candidate frequencies in half steps of the pair index: candidate 2a is that of pair a. */
  readonly candidates: Float64Array;
}

/**
 * n components that all heads share: 2n cached elements. Needs statistics. Source: this project, docs/frequency-bank.md;
 * MHA2MLA (single pairs) and TransMLA (real components, fixed segments) are special cases.
 */
export const bank: PlanStrategy = {
  paper: 'this project: frequency bank',
  needsStatistics: true,
  counts: 'components',
  countRange: anyComponents,
  plan: (attention, { count, statistics }) => bankPlan(attention, required('bank', statistics), count),
};

function bankPlan(attention: AttentionLayer, statistics: LayerStatistics, count: number): PlanChoice {
  const pairs = pairsPerHead(attention);
  const energies = energiesOf(attention, statistics);
  const most = Math.max(MOST_PER_SEGMENT, Math.ceil(count / pairs));
  const componentsIn = segmentComponents(energies.keys, energies.weights, attention.kvHeads, pairs);
  const segments: Segment[] = [];
  for (let from = 0; from < pairs; from++) {
    for (let to = from + 1; to <= Math.min(from + LONGEST_SEGMENT, pairs); to++) segments.push(segmentOf(energies, componentsIn(from, to), from, to, most));
  }
  const chosen = chooseSegments(segments, pairs, count);
  const components = chosen.flatMap(({ segment, components: kept }) => {
    const choice = segment.choices[kept];
    return choice === undefined ? [] : componentsOf(attention, statistics, energies, segment, choice);
  });
  const scores = Float64Array.from(energies.still, (error, i) => error * energies.weights[i]! * energies.keys.real.data[i * (energies.keys.real.cols + 1)]!);
  return { components, scores, fold: foldOf(attention, statistics) };
}

function energiesOf(attention: AttentionLayer, { keyMoment, queryMoments, outputSensitivity, distances }: LayerStatistics): Energies {
  const { heads, kvHeads, headDim, frequencies } = attention;
  const pairs = headDim / 2;
  const perGroup = heads / kvHeads;
  const candidates = Float64Array.from({ length: 2 * pairs - 1 }, (_, c) => betweenFrequencies(frequencies, c / 2));
  // tau_h E|q_{h,f}|^2
  const queries = Float64Array.from({ length: heads * pairs }, (_, i) => {
    const [head, pair] = [Math.floor(i / pairs), i % pairs];
    const own = (element: number): number => queryMoments.data[(head * headDim + element) * headDim + element]!;
    return outputSensitivity[head]! * (own(pair) + own(pair + pairs));
  });
  const overGroup = (index: number, f: (head: number) => number): number => {
    const [group, pair] = [Math.floor(index / pairs), index % pairs];
    let sum = 0;
    for (let head = group * perGroup; head < (group + 1) * perGroup; head++) sum += queries[head * pairs + pair]! * f(head);
    return sum;
  };
  const plain = Float64Array.from({ length: kvHeads * pairs }, (_, i) => overGroup(i, () => 1));
  const largest = plain.reduce((a, b) => Math.max(a, b), 0);
  if (!(largest > 0)) throw new RangeError(`bank: layer ${attention.layer} must have an output that depends on its scores, got sensitivity 0 in every head`);
  const weights = plain.map((w) => Math.max(w, WEIGHT_FLOOR * largest));
  const lost = ({ re, im }: { re: Float64Array; im: Float64Array }) => (head: number): number => 1 - re[head]! ** 2 - im[head]! ** 2;
  const still = new Float64Array(kvHeads * pairs);
  const table = new Float64Array(kvHeads * pairs * candidates.length);
  for (let pair = 0; pair < pairs; pair++) {
    const set = (into: (index: number) => void): void => { for (let g = 0; g < kvHeads; g++) into(g * pairs + pair); };
    const whole = lost(meanRotations(distances, frequencies[pair]!));
    set((index) => { still[index] = overGroup(index, whole) / weights[index]!; });
    for (let c = Math.max(0, 2 * (pair - LONGEST_SEGMENT + 1)); c <= Math.min(candidates.length - 1, 2 * (pair + LONGEST_SEGMENT - 1)); c++) {
      const partial = lost(meanRotations(distances, frequencies[pair]! - candidates[c]!));
      set((index) => { table[index * candidates.length + c] = overGroup(index, partial) / weights[index]!; });
    }
  }
  return { pairs, kvHeads, candidates, weights, still, keys: complexMoment(keyMoment, kvHeads, pairs), error: (index, c) => table[index * candidates.length + c]! };
}

/** The frequency at a whole or half pair index; between two pairs their geometric mean, as RoPE spaces them. */
function betweenFrequencies(frequencies: Float64Array, index: number): number {
  const [low, high] = [frequencies[Math.floor(index)]!, frequencies[Math.ceil(index)]!];
  return low === high ? low : Math.sqrt(low * high);
}

/** E[k k^*] of the pairs (k, k + n) of every head from E[k k^T] of the elements. */
function complexMoment({ data, cols }: Matrix, heads: number, pairs: number): ComplexMatrix {
  const n = heads * pairs;
  const [real, imaginary] = [zeros(n, n), zeros(n, n)];
  const element = (index: number): number => Math.floor(index / pairs) * 2 * pairs + (index % pairs);
  for (let a = 0; a < n; a++) {
    for (let b = 0; b < n; b++) {
      const [i, j] = [element(a), element(b)];
      const at = (row: number, column: number): number => data[row * cols + column]!;
      real.data[a * n + b] = at(i, j) + at(i + pairs, j + pairs);
      imaginary.data[a * n + b] = at(i + pairs, j) - at(i, j + pairs);
    }
  }
  return { real, imaginary };
}

function segmentOf({ kvHeads, pairs, still, error, candidates }: Energies, { values, vectors }: HermitianEigen, from: number, to: number, most: number): Segment {
  const indices = rowsOf(kvHeads, pairs, from, to);
  const n = values.length; // components
  // energy of component c at (g, f)
  const energy = (row: number, column: number): number =>
    Math.max(values[column]!, 0) * (vectors.real.data[row * n + column]! ** 2 + vectors.imaginary.data[row * n + column]! ** 2);
  const shares = Float64Array.from({ length: indices.length * n }, (_, at) => energy(Math.floor(at / n), at % n));
  const gains = [0];
  const choices: { frequency: number; columns: readonly number[] }[] = [{ frequency: 0, columns: [] }];
  for (let c = 2 * from; c <= 2 * (to - 1); c++) {
    const gainOf = Float64Array.from({ length: n }, (_, column) => {
      let gain = 0;
      for (let row = 0; row < indices.length; row++) gain += shares[row * n + column]! * (still[indices[row]!]! - error(indices[row]!, c));
      return gain;
    });
    const order = Array.from(gainOf.keys()).sort((a, b) => gainOf[b]! - gainOf[a]!).slice(0, most);
    let sum = 0;
    order.forEach((column, i) => {
      sum += Math.max(gainOf[column]!, 0);
      if (sum > (gains[i + 1] ?? -1)) {
        gains[i + 1] = sum;
        choices[i + 1] = { frequency: candidates[c]!, columns: order.slice(0, i + 1) };
      }
    });
  }
  return { from, to, gains, choices, vectors };
}

/** r_c = u_c^* W^{1/2} K over the segment, given back by V = W^{-1/2} U, seen by head h through chi_h(theta_f - phi) conj(V). */
function componentsOf(attention: AttentionLayer, { distances }: LayerStatistics, energies: Energies, { from, to, vectors }: Segment, { frequency, columns }: Segment['choices'][number]): RopeComponent[] {
  const { heads, kvHeads, frequencies } = attention;
  const { pairs, weights } = energies;
  const indices = rowsOf(kvHeads, pairs, from, to);
  const perGroup = heads / kvHeads;
  const turned = Array.from({ length: to - from }, (_, i) => meanRotations(distances, frequencies[from + i]! - frequency));
  return columns.map((column) => {
    const u = (row: number) => ({ re: vectors.real.data[row * vectors.real.cols + column]!, im: vectors.imaginary.data[row * vectors.real.cols + column]! });
    const terms = (f: (row: number, index: number) => { re: number; im: number }): PairTerm[] =>
      indices.map((index, row) => ({ head: Math.floor(index / pairs), pair: index % pairs, ...f(row, index) }));
    const back = terms((row, index) => ({ re: u(row).re / Math.sqrt(weights[index]!), im: u(row).im / Math.sqrt(weights[index]!) }));
    return {
      frequency, back,
      key: terms((row, index) => ({ re: u(row).re * Math.sqrt(weights[index]!), im: -u(row).im * Math.sqrt(weights[index]!) })),
      query: back.flatMap(({ head: group, pair, re, im }) => Array.from({ length: perGroup }, (_, i): PairTerm => {
        const head = group * perGroup + i;
        const mean = turned[pair - from]!;
        const [a, b] = [mean.re[head]!, mean.im[head]!];
        return { head, pair, re: a * re + b * im, im: b * re - a * im };
      })),
    };
  });
}

/** Queries of the remainder times the mean rotation that their keys no longer do. */
function foldOf({ heads, frequencies }: AttentionLayer, { distances }: LayerStatistics): PairTerm[] {
  return Array.from(frequencies, (frequency, pair) => {
    const { re, im } = meanRotations(distances, frequency);
    return Array.from({ length: heads }, (_, head): PairTerm => ({ head, pair, re: re[head]!, im: im[head]! }));
  }).flat();
}
