/**
 * The words on quantised rows as operators. A product with codes runs in whole numbers (MatMulInteger) where the other
 * side has a known number of rows, as in decoding; otherwise the codes are widened first.
 */
import { at } from '../../kernels/at.ts';
import type { CodeBits, Emit, StorageEmit } from '../../kernels/emit.ts';
import { parseEinsum } from '../einsum.ts';
import { productOfDims } from './dims.ts';
import type { Movement } from './movement.ts';
import type { Dim, HostTensor } from './subgraph.ts';
import { int, text, type Tape, type Value } from './tape.ts';

type Host = Pick<Tape, 'one' | 'integers' | 'number' | 'namedConstant'> & Pick<Movement, 'reshape' | 'transpose'> & Pick<Emit<Value>, 'einsum'>;

type CodeWords = Pick<StorageEmit<Value>, 'encode' | 'decode' | 'einsumCodes' | 'weighCodes'>;

/** Codes that rows get for a product: around `zero`, `steps` of them on either side that is used. */
interface Rounding {
  readonly zero: number;
  readonly steps: number;
}
const EITHER_SIGN: Rounding = { zero: 128, steps: 127 };
const NOT_NEGATIVE: Rounding = { zero: 0, steps: 255 };

export function codeWords(host: Host): CodeWords {
  const { one, integers, number, namedConstant, reshape, transpose } = host;
  const bytes = (values: readonly number[], shape: readonly number[] = [values.length]): Value => {
    const tensor: HostTensor = { dtype: 'uint8', shape, data: Uint8Array.from(values) };
    return namedConstant(`u8_${values.length > 4 ? `${values.length}x${values[0]}` : values.join('_')}_${shape.length}`, tensor);
  };

  /** Bytes around `zero` of rows with one step each, both 2-D or more. */
  const quantise = (a: Value, step: Value, bits: CodeBits, zero = 2 ** (bits - 1)): Value => {
    const rows = productOfDims(a.shape.slice(0, -1));
    if (bits === 8 && typeof rows === 'number') {
      const flat = reshape(a, [rows, at(a.shape, a.shape.length - 1)]);
      const zeros = bytes(Array<number>(rows).fill(zero));
      return reshape(one('QuantizeLinear', [flat, reshape(step, [rows]), zeros], flat.shape, { axis: int(0) }, 'uint8'), a.shape);
    }
    const whole = one(bits === 8 ? 'Round' : 'Floor', [one('Div', [a, step], a.shape)], a.shape);
    const shifted = one('Add', [whole, number(zero, 'float32')], a.shape);
    const kept = one('Clip', [shifted, number(0, 'float32'), number(2 ** bits - 1, 'float32')], a.shape);
    return one('Cast', [kept], a.shape, { to: int(2) }, 'uint8');
  };

  /** Two codes a byte, apart again and doubled, which makes them whole: [..., n/2] -> [..., n], even bytes around 15. */
  const unpack = (packed: Value): Value => {
    const even = (direction: 'LEFT' | 'RIGHT', by: number): Value =>
      one('BitwiseAnd', [one('BitShift', [packed, bytes([by], [])], packed.shape, { direction: text(direction) }), bytes([30], [])], packed.shape);
    const n = at(packed.shape, packed.shape.length - 1);
    return one('Concat', [even('LEFT', 1), even('RIGHT', 3)], [...packed.shape.slice(0, -1), typeof n === 'number' ? 2 * n : productOfDims([2, n])], { axis: int(-1) });
  };
  /** Whole numbers of which a code is one `unit`: code = (bytes - zero) * unit. */
  const wholeCodes = (stored: Value, bits: CodeBits): { codes: Value; zero: number; unit: number } =>
    (bits === 8 ? { codes: stored, zero: 128, unit: 1 } : { codes: unpack(stored), zero: 15, unit: 0.5 });

  const decode = (stored: Value, bits: CodeBits): Value => {
    const { codes, zero, unit } = wholeCodes(stored, bits);
    const whole = one('Sub', [one('Cast', [codes], codes.shape, { to: int(1) }, 'float32'), number(zero, 'float32')], codes.shape);
    return unit === 1 ? whole : one('Mul', [whole, number(unit, 'float32')], whole.shape);
  };

  const product = (equation: string, a: Value, stored: Value, bits: CodeBits, rounding: Rounding): Value => {
    const { codes, zero, unit } = wholeCodes(stored, bits);
    const { operands, output, length } = parseEinsum(equation, [a.shape, codes.shape]);
    const real = (axes: string): string => [...axes].filter((axis) => length.get(axis) !== 1).join('');
    const dims = (axes: string): Dim[] => [...axes].map((axis) => length.get(axis) ?? 1);
    const [left, right] = [real(at(operands, 0)), real(at(operands, 1))];
    const inner = [...left].filter((axis) => right.includes(axis) && !output.includes(axis)).join('');
    const batch = [...real(output)].filter((axis) => left.includes(axis) && right.includes(axis)).join('');
    const rowAxes = [...real(output)].filter((axis) => left.includes(axis) && !batch.includes(axis)).join('');
    const cols = [...right].filter((axis) => axis !== inner && !batch.includes(axis)).join('');
    const [matrices, rows] = [productOfDims(dims(batch)), productOfDims(dims(rowAxes))];
    const fits = inner.length === 1 && cols.length === 1 && typeof rows === 'number' && typeof matrices === 'number' && left.length === batch.length + rowAxes.length + 1;
    if (!fits) return host.einsum(equation, a, decode(stored, bits));

    const ordered = (value: Value, from: string, to: string): Value => transpose(value, [...to].map((axis) => from.indexOf(axis)));
    const [lead, summed] = [dims(batch), at(dims(inner), 0)];
    const flat = reshape(ordered(reshape(a, dims(left)), left, batch + rowAxes + inner), [matrices * rows, summed]);
    const top = one('ReduceMax', [rounding.zero === 0 ? flat : one('Abs', [flat], flat.shape), integers([-1])], [matrices * rows, 1], { keepdims: int(1) });
    const step = one('Add', [one('Mul', [top, number(1 / rounding.steps, 'float32')], top.shape), number(1e-30, 'float32')], top.shape);
    const rounded = reshape(quantise(flat, step, 8, rounding.zero), [...lead, rows, summed]);
    const steps = unit === 1 ? step : one('Mul', [step, number(unit, 'float32')], step.shape);
    const tokensFirst = right.endsWith(inner); // the codes' own two axes in their order: nothing but a batch is moved
    const table = ordered(reshape(codes, dims(right)), right, batch + (tokensFirst ? cols + inner : inner + cols));
    const [zeroA, zeroB] = [bytes([rounding.zero], []), bytes([zero], [])];
    const swapped = (value: Value): Value => transpose(value, value.shape.map((_, i) => (i < lead.length ? i : 2 * lead.length + 1 - i)));
    // The long side is the left operand, so that the short one is what the engine packs.
    const sums = tokensFirst
      ? swapped(scaled(one, one('MatMulInteger', [table, swapped(rounded), zeroB, zeroA], [...lead, at(dims(cols), 0), rows], {}, 'int32'), reshape(steps, [...lead, 1, rows])))
      : scaled(one, one('MatMulInteger', [rounded, table, zeroA, zeroB], [...lead, rows, at(dims(cols), 0)], {}, 'int32'), reshape(steps, [...lead, rows, 1]));
    const axes = batch + rowAxes + cols;
    return reshape(ordered(reshape(sums, dims(axes)), axes, real(output)), dims(output));
  };

  return {
    encode(a, step, bits) {
      const codes = quantise(a, step, bits);
      if (bits === 8) return codes;
      const n = at(a.shape, a.shape.length - 1);
      if (typeof n !== 'number' || n % 2 !== 0) throw new RangeError(`encode: rows of 4-bit codes must have an even known length, got ${n}`);
      const halfShape: Dim[] = [...a.shape.slice(0, -1), n / 2];
      const part = (start: number): Value => one('Slice', [codes, integers([start]), integers([start + n / 2]), integers([-1])], halfShape);
      const high = one('BitShift', [part(n / 2), bytes([4], [])], halfShape, { direction: text('LEFT') });
      return one('BitwiseOr', [part(0), high], halfShape);
    },
    decode,
    einsumCodes: (equation, a, stored, bits) => product(equation, a, stored, bits, EITHER_SIGN),
    weighCodes: (equation, weights, stored, bits) => product(equation, weights, stored, bits, NOT_NEGATIVE),
  };
}

/** float32 of whole sums, times one step per row or column. */
const scaled = (one: Tape['one'], sums: Value, step: Value): Value => one('Mul', [one('Cast', [sums], sums.shape, { to: int(1) }, 'float32'), step], sums.shape);
