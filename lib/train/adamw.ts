/** AdamW over named weights: clipping by the global norm, decay on matrices only, a learning rate per weight. */
import type { HostTensor } from '../../kernels/emit.ts';
import { optimiserKernel, type AdamWRows, type OptimiserKernel } from './optimiser-kernel.ts';

export interface AdamWOptions {
  /** Default [0.9, 0.95]. */
  readonly betas?: readonly [number, number];
  /** Default 1e-8. */
  readonly epsilon?: number;
  /** Default 0.1, on weights of two or more axes; vectors (norms, biases) never decay. */
  readonly weightDecay?: number;
  /** Gradients are scaled down so that the norm over all of them is at most this; null: never. Default 1. */
  readonly clipNorm?: number | null;
  /** Factors on the learning rate by weight, where they are not 1. */
  readonly rateFactors?: Readonly<Record<string, number>>;
}

/** What AdamW remembers, by weight. */
export interface AdamWState {
  /** Updates done. */
  readonly step: number;
  readonly first: ReadonlyMap<string, Float32Array>;
  readonly second: ReadonlyMap<string, Float32Array>;
}

export interface AdamW {
  readonly state: AdamWState;
  /**
   * Changes `weights` in place. `gradients` are sums over `micro` batches. Returns the norm of the mean gradient before
   * clipping and the weight with the largest one. `rows`: of weights whose gradient is of some rows only, their numbers,
   * each once; the others stay as they are, and so does what is remembered of them. Errors, before anything is changed: a
   * gradient that is not finite, rows that are not there, by name.
   */
  update(
    weights: ReadonlyMap<string, HostTensor<'float32'>>, gradients: ReadonlyMap<string, Float32Array>, micro: number, learningRate: number, rows?: ReadonlyMap<string, BigInt64Array>,
  ): { readonly norm: number; readonly largest: string };
}

/** Norm of each gradient by name, of the mean over `micro` batches. */
export function gradientNorms(kernel: OptimiserKernel, gradients: ReadonlyMap<string, Float32Array>, micro: number): Map<string, number> {
  return new Map([...gradients].map(([name, gradient]) => [name, Math.sqrt(kernel.squares(gradient)) / micro]));
}

const rowWidth = ({ data, shape: [rows = 1] }: HostTensor<'float32'>): number => data.length / rows;

function checkRows(name: string, rows: BigInt64Array, weight: HostTensor<'float32'> | undefined, gradient: Float32Array | undefined): void {
  if (weight === undefined || gradient === undefined) throw new RangeError(`AdamW.update: rows must be of weights with a gradient, got ${name}`);
  if (gradient.length !== rows.length * rowWidth(weight)) throw new RangeError(`AdamW.update: gradient of ${name} must have ${rows.length} rows of ${rowWidth(weight)}, got ${gradient.length} elements`);
  const last = BigInt(weight.shape[0] ?? 0) - 1n, bad = rows.find((row) => row < 0n || row > last);
  if (bad !== undefined) throw new RangeError(`AdamW.update: rows of ${name} must be 0..${last}, got ${bad}`);
}

/** Row `row` of a weight and of what is remembered of it, with row `i` of a gradient. */
function rowOf({ weights, first, second, gradient }: AdamWRows, row: number, i: number, width: number): AdamWRows {
  const there = (of: Float32Array): Float32Array => of.subarray(row * width, (row + 1) * width);
  return { weights: there(weights), first: there(first), second: there(second), gradient: gradient.subarray(i * width, (i + 1) * width) };
}

/** Starts from a copy of `state`, or from nothing. `kernel` makes the rows that the optimiser remembers. */
export function createAdamW(options: AdamWOptions = {}, state: AdamWState = { step: 0, first: new Map(), second: new Map() }, kernel: OptimiserKernel = optimiserKernel()): AdamW {
  const { betas: [beta1, beta2] = [0.9, 0.95], epsilon = 1e-8, weightDecay = 0.1, clipNorm = 1, rateFactors = {} } = options;
  const copied = (rows: ReadonlyMap<string, Float32Array>): Map<string, Float32Array> => new Map([...rows].map(([name, values]) => {
    const row = kernel.row(values.length);
    row.set(values);
    return [name, row];
  }));
  const first = copied(state.first), second = copied(state.second);
  let step = state.step;
  const memory = (of: Map<string, Float32Array>, name: string, length: number): Float32Array => {
    const row = of.get(name) ?? kernel.row(length);
    of.set(name, row);
    return row;
  };
  return {
    get state() { return { step, first, second }; },
    update(weights, gradients, micro, learningRate, rows) {
      const norms = gradientNorms(kernel, gradients, micro);
      const bad = [...norms].find(([, norm]) => !Number.isFinite(norm));
      if (bad !== undefined) throw new RangeError(`AdamW.update: gradient of ${bad[0]} must be finite, got a norm of ${bad[1]}`);
      for (const [name, some] of rows ?? []) checkRows(name, some, weights.get(name), gradients.get(name));
      const norm = Math.hypot(...norms.values());
      const clipped = clipNorm === null ? 1 : Math.min(1, clipNorm / (norm + 1e-6));
      step++;
      for (const [name, gradient] of gradients) {
        const weight = weights.get(name);
        if (weight === undefined) throw new RangeError(`AdamW.update: a gradient must have its weight, got ${name}`);
        const rate = learningRate * (rateFactors[name] ?? 1);
        const size = weight.data.length, some = rows?.get(name);
        const all = { weights: weight.data, first: memory(first, name, size), second: memory(second, name, size), gradient };
        const numbers = {
          gradientScale: clipped / micro, beta1, beta2, keep: 1 - rate * (weight.shape.length > 1 ? weightDecay : 0),
          stepSize: rate / (1 - beta1 ** step), rootScale: 1 / Math.sqrt(1 - beta2 ** step), epsilon,
        };
        if (some === undefined) kernel.adamw(all, numbers);
        else some.forEach((row, i) => kernel.adamw(rowOf(all, Number(row), i, rowWidth(weight)), numbers));
      }
      return { norm, largest: [...norms].reduce((a, b) => (b[1] > a[1] ? b : a), ['', -1])[0] };
    },
  };
}

/** A factor per weight that makes the learning rate relative to its size: its root mean square, at least 1e-6. */
export function relativeRates(weights: ReadonlyMap<string, HostTensor<'float32'>>): Record<string, number> {
  const kernel = optimiserKernel();
  return Object.fromEntries([...weights].map(([name, { data }]) => [name, Math.max(1e-6, Math.sqrt(kernel.squares(data) / Math.max(1, data.length)))]));
}
