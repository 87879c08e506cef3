/** The reference reading: every word of the vocabulary as obvious float64 loops. Slow on purpose, never clever. */
import type { Dim, HostTensor, StorageEmit } from '../kernels/emit.ts';
import { parseEinsum } from './einsum.ts';
import { float16At, float16Bits } from './float16.ts';

export interface EagerTensor {
  readonly shape: readonly number[];
  readonly data: Float64Array;
}

const product = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);
const last = (shape: readonly number[]): number => shape.at(-1) ?? 1;
const stridesOf = (shape: readonly number[]): number[] => shape.map((_, i) => product(shape.slice(i + 1)));
const numeric = (shape: readonly Dim[]): number[] => shape.map((dim) => {
  if (typeof dim !== 'number') throw new RangeError(`eager: shapes are numbers here, got symbol ${dim}`);
  return dim;
});

/** A float64 copy of a host tensor of any numeric dtype but the half-width floats, which have no exact plain reading. */
export function toEager(tensor: HostTensor): EagerTensor {
  if (tensor.dtype === 'float16' || tensor.dtype === 'bfloat16') throw new TypeError(`eager: widen ${tensor.dtype} to float32 first`);
  const data = Float64Array.from<number | bigint>(tensor.data, Number);
  if (data.length !== product(tensor.shape)) throw new RangeError(`eager: data must have ${product(tensor.shape)} elements for shape [${tensor.shape}], got ${data.length}`);
  return { shape: tensor.shape, data };
}

function unary(a: EagerTensor, f: (x: number) => number): EagerTensor {
  return { shape: a.shape, data: a.data.map(f) };
}

function binary(name: string, a: EagerTensor, b: EagerTensor, f: (x: number, y: number) => number): EagerTensor {
  const rank = Math.max(a.shape.length, b.shape.length);
  const pad = (shape: readonly number[]): number[] => [...Array<number>(rank - shape.length).fill(1), ...shape];
  const [left, right] = [pad(a.shape), pad(b.shape)];
  const shape = left.map((n, i) => {
    const m = right[i] ?? 1;
    if (n !== m && n !== 1 && m !== 1) throw new RangeError(`${name}: shapes must broadcast, got [${a.shape}] and [${b.shape}]`);
    return n === 1 ? m : n;
  });
  const step = (own: number[]): number[] => stridesOf(own).map((stride, i) => (own[i] === 1 ? 0 : stride));
  const [stepA, stepB] = [step(left), step(right)];
  const data = new Float64Array(product(shape));
  forEachIndex(shape, (index, flat) => {
    let [i, j] = [0, 0];
    index.forEach((n, axis) => { i += n * (stepA[axis] ?? 0); j += n * (stepB[axis] ?? 0); });
    data[flat] = f(a.data[i] ?? NaN, b.data[j] ?? NaN);
  });
  return { shape, data };
}

function forEachIndex(shape: readonly number[], visit: (index: readonly number[], flat: number) => void): void {
  const index = shape.map(() => 0);
  for (let flat = 0, n = product(shape); flat < n; flat++) {
    visit(index, flat);
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      index[axis] = (index[axis] ?? 0) + 1;
      if ((index[axis] ?? 0) < (shape[axis] ?? 0)) break;
      index[axis] = 0;
    }
  }
}

/** One result row per row of the last axis. */
function perRow(a: EagerTensor, width: number, f: (row: Float64Array, out: Float64Array) => void): EagerTensor {
  const n = last(a.shape);
  const rows = n === 0 ? product(a.shape.slice(0, -1)) : a.data.length / n;
  const data = new Float64Array(rows * width);
  for (let row = 0; row < rows; row++) f(a.data.subarray(row * n, (row + 1) * n), data.subarray(row * width, (row + 1) * width));
  return { shape: [...a.shape.slice(0, -1), width], data };
}

const total = (row: Float64Array): number => row.reduce((a, b) => a + b, 0);
const logSumExpOf = (row: Float64Array): number => {
  const top = row.reduce((a, b) => Math.max(a, b), -Infinity);
  return top + Math.log(row.reduce((sum, x) => sum + Math.exp(x - top), 0));
};

/** As QuantizeLinear and Round do: 2.5 becomes 2, 3.5 becomes 4. */
function roundHalfToEven(x: number): number {
  const down = Math.floor(x);
  return x - down === 0.5 ? down + Math.abs(down % 2) : Math.round(x);
}

/** Blocks of axis `axis`: [outer, length of the axis, inner]. */
const blocks = (shape: readonly number[], axis: number): { outer: number; inner: number } =>
  ({ outer: product(shape.slice(0, axis)), inner: product(shape.slice(axis + 1)) });

/** The vocabulary evaluated at once in float64: the reference every other reading is checked against. */
export const eager: StorageEmit<EagerTensor> = {
  constant: toEager,
  shape: (a) => a.shape,
  einsum(equation, ...operands) {
    const call = parseEinsum(equation, operands.map(({ shape }) => shape));
    const axes = [...call.length.keys()];
    const lengths = numeric([...call.length.values()]);
    const stepsOf = (names: string, shape: readonly number[]): number[] => {
      const strides = stridesOf(shape);
      return axes.map((axis) => (names.includes(axis) ? strides[names.indexOf(axis)] ?? 0 : 0));
    };
    const steps = operands.map((operand, i) => stepsOf(call.operands[i] ?? '', operand.shape));
    const shape = numeric(call.shape);
    const outSteps = stepsOf(call.output, shape);
    const data = new Float64Array(product(shape));
    forEachIndex(lengths, (index) => {
      const offset = (step: readonly number[]): number => index.reduce((sum, n, axis) => sum + n * (step[axis] ?? 0), 0);
      const out = offset(outSteps);
      data[out] = (data[out] ?? 0) + operands.reduce((p, operand, i) => p * (operand.data[offset(steps[i] ?? [])] ?? NaN), 1);
    });
    return { shape, data };
  },
  add: (a, b) => binary('add', a, b, (x, y) => x + y),
  sub: (a, b) => binary('sub', a, b, (x, y) => x - y),
  mul: (a, b) => binary('mul', a, b, (x, y) => x * y),
  div: (a, b) => binary('div', a, b, (x, y) => x / y),
  scale: (a, by) => unary(a, (x) => x * by),
  shift: (a, by) => unary(a, (x) => x + by),
  square: (a) => unary(a, (x) => x * x),
  sqrt: (a) => unary(a, Math.sqrt),
  exp: (a) => unary(a, Math.exp),
  log: (a) => unary(a, Math.log),
  sigmoid: (a) => unary(a, (x) => 1 / (1 + Math.exp(-x))),
  sum: (a) => perRow(a, 1, (row, out) => { out[0] = total(row); }),
  mean: (a) => perRow(a, 1, (row, out) => { out[0] = total(row) / row.length; }),
  logSumExp: (a) => perRow(a, 1, (row, out) => { out[0] = logSumExpOf(row); }),
  softmax: (a) => perRow(a, last(a.shape), (row, out) => {
    const z = logSumExpOf(row);
    row.forEach((x, i) => { out[i] = Math.exp(x - z); });
  }),
  rotate(a, cos, sin) {
    const [, s = 0, heads = 0, width = 0] = a.shape;
    const n = cos.shape[1] ?? NaN;
    if (a.shape.length !== 4 || !(2 * n <= width) || cos.shape[0] !== s || sin.shape[0] !== s || sin.shape[1] !== n) {
      throw new RangeError(`rotate: a must be [b, s, heads, 2n or more] with cos and sin [s, n], got [${a.shape}], [${cos.shape}], [${sin.shape}]`);
    }
    let row = 0;
    return perRow(a, width, (x, out) => {
      const position = Math.floor(row++ / heads) % s;
      for (let k = 0; k < n; k++) {
        const [c, d] = [cos.data[position * n + k] ?? NaN, sin.data[position * n + k] ?? NaN];
        const [re, im] = [x[k] ?? NaN, x[k + n] ?? NaN];
        out[k] = re * c - im * d;
        out[k + n] = im * c + re * d;
      }
      for (let k = 2 * n; k < width; k++) out[k] = x[k] ?? NaN;
    });
  },
  gather(table, indices) {
    const [rows = 0, ...rest] = table.shape;
    const width = product(rest);
    const data = new Float64Array(indices.data.length * width);
    indices.data.forEach((index, i) => {
      if (!(index >= 0 && index < rows)) throw new RangeError(`gather: index must be 0..${rows - 1}, got ${index}`);
      data.set(table.data.subarray(index * width, (index + 1) * width), i * width);
    });
    return { shape: [...indices.shape, ...rest], data };
  },
  pick(a, indices) {
    let row = 0;
    return perRow(a, 1, (values, out) => { out[0] = values[indices.data[row++] ?? -1] ?? NaN; });
  },
  concat(axis, parts) {
    const shapes = parts.map(({ shape }) => shape);
    const shape = (shapes[0] ?? []).map((n, i) => (i === axis ? shapes.reduce((sum, own) => sum + (own[axis] ?? 0), 0) : n));
    const { outer, inner } = blocks(shape, axis);
    const data = new Float64Array(product(shape));
    let at = 0;
    for (let o = 0; o < outer; o++) {
      for (const part of parts) {
        const run = (part.shape[axis] ?? 0) * inner;
        data.set(part.data.subarray(o * run, (o + 1) * run), at);
        at += run;
      }
    }
    return { shape, data };
  },
  split(a, axis, lengths) {
    const { outer, inner } = blocks(a.shape, axis);
    const run = (a.shape[axis] ?? 0) * inner;
    let start = 0;
    return numeric(lengths).map((length) => {
      const data = new Float64Array(outer * length * inner);
      for (let o = 0; o < outer; o++) data.set(a.data.subarray(o * run + start * inner, o * run + (start + length) * inner), o * length * inner);
      start += length;
      return { shape: a.shape.map((n, i) => (i === axis ? length : n)), data };
    });
  },
  reshape(a, shape) {
    const to = numeric(shape);
    if (product(to) !== a.data.length) throw new RangeError(`reshape: [${to}] must have ${a.data.length} elements as [${a.shape}] has`);
    return { shape: to, data: a.data };
  },
  expand(a, shape) {
    const to = numeric(shape);
    return binary('expand', a, { shape: to, data: new Float64Array(product(to)) }, (x) => x);
  },
  fill: (_like, shape, value) => ({ shape: numeric(shape), data: new Float64Array(product(numeric(shape))).fill(value) }),
  addRows(table, indices, updates) {
    const [rows = 0, ...rest] = table.shape;
    const width = product(rest);
    const data = table.data.slice();
    indices.data.forEach((index, i) => {
      if (!(index >= 0 && index < rows)) throw new RangeError(`addRows: index must be 0..${rows - 1}, got ${index}`);
      for (let j = 0; j < width; j++) data[index * width + j] = (data[index * width + j] ?? NaN) + (updates.data[i * width + j] ?? NaN);
    });
    return { shape: table.shape, data };
  },
  addPicked(a, indices, updates) {
    let row = 0;
    return perRow(a, last(a.shape), (values, out) => {
      out.set(values);
      const column = indices.data[row] ?? -1;
      out[column] = (values[column] ?? NaN) + (updates.data[row++] ?? NaN);
    });
  },
  maxAbs: (a) => perRow(a, 1, (row, out) => { out[0] = row.reduce((top, x) => Math.max(top, Math.abs(x)), 0); }),
  cast: (a, dtype) => unary(a, dtype === 'float16' ? (x) => float16At(float16Bits(x)) : Math.fround),
  encode(a, step, bits) {
    const half = 2 ** (bits - 1), round = bits === 8 ? roundHalfToEven : Math.floor;
    const codes = binary('encode', a, step, (x, unit) => Math.min(half - 1, Math.max(-half, round(x / unit))) + half);
    if (bits === 8) return codes;
    const n = last(a.shape) / 2;
    return perRow(codes, n, (row, out) => { for (let i = 0; i < n; i++) out[i] = (row[i] ?? NaN) + 16 * (row[i + n] ?? NaN); });
  },
  decode(bytes, bits) {
    if (bits === 8) return unary(bytes, (byte) => byte - 128);
    const n = last(bytes.shape);
    return perRow(bytes, 2 * n, (row, out) => { row.forEach((byte, i) => { out[i] = (byte % 16) - 7.5; out[i + n] = Math.floor(byte / 16) - 7.5; }); });
  },
  einsumCodes: (equation, a, bytes, bits) => eager.einsum(equation, a, eager.decode(bytes, bits)),
  weighCodes: (equation, weights, bytes, bits) => eager.einsumCodes(equation, weights, bytes, bits),
  causalMask(queryPositions, keyPositions, window) {
    const shape = [queryPositions.data.length, keyPositions.data.length];
    const data = new Float64Array(product(shape));
    forEachIndex(shape, ([i = 0, j = 0], flat) => {
      const distance = (queryPositions.data[i] ?? NaN) - (keyPositions.data[j] ?? NaN);
      data[flat] = distance >= 0 && (window === null || distance < window) ? 0 : -Infinity;
    });
    return { shape, data };
  },
};
