/**
 * Half-width floats as raw 16-bit patterns. Bulk conversions are ours (a 65,536-entry table one way, integer rounding
 * the other); single values go through the `fp16` package, which is also the oracle of the tests.
 */
import { getFloat16, setFloat16 } from 'fp16';

const scratch = new DataView(new ArrayBuffer(4));

/** Value of the IEEE 754 binary16 pattern `bits` (0..65535). */
export function float16At(bits: number): number {
  scratch.setUint16(0, bits);
  return getFloat16(scratch, 0);
}

/** Nearest binary16 pattern of `value`, ties to even. */
export function float16Bits(value: number): number {
  // Big-endian on purpose: fp16 1.0.0 writes the sign of an underflow in that order whatever it is asked for.
  setFloat16(scratch, 0, value);
  return scratch.getUint16(0);
}

/** Value of the bfloat16 pattern `bits` (the upper half of a float32). */
export function bfloat16At(bits: number): number {
  scratch.setUint32(0, bits << 16, true);
  return scratch.getFloat32(0, true);
}

/** Every binary16 value by its pattern. */
export const float16Table: Float32Array = Float32Array.from({ length: 65536 }, (_, bits) => float16At(bits));
const float16TableBits = new Uint32Array(float16Table.buffer);

function sameLength(name: string, from: { readonly length: number }, into: { readonly length: number }): void {
  if (from.length !== into.length) throw new RangeError(`${name}: output must have ${from.length} elements, got ${into.length}`);
}

const bitsOf = (values: Float32Array): Uint32Array => new Uint32Array(values.buffer, values.byteOffset, values.length);

/** Widens binary16 patterns to float32, exactly. */
export function float16ToFloat32(from: Uint16Array, into: Float32Array = new Float32Array(from.length)): Float32Array {
  sameLength('float16ToFloat32', from, into);
  const out = bitsOf(into);
  for (let i = 0; i < from.length; i++) out[i] = float16TableBits[from[i]!]!;
  return into;
}

/** Rounds float32 to binary16 patterns, nearest with ties to even; overflow gives infinity, NaN stays NaN. */
export function float32ToFloat16(from: Float32Array, into: Uint16Array = new Uint16Array(from.length)): Uint16Array {
  sameLength('float32ToFloat16', from, into);
  const bits = bitsOf(from);
  for (let i = 0; i < bits.length; i++) {
    const b = bits[i]!;
    const magnitude = b & 0x7fffffff;
    let half: number;
    if (magnitude >= 0x47800000) {
      half = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00; // 65536 and above, or NaN
    } else if (magnitude >= 0x38800000) {
      // Rebias the exponent by 127 - 15; a carry out of the mantissa rightly raises the exponent.
      half = (magnitude + 0xfff + ((magnitude >>> 13) & 1) - 0x38000000) >>> 13;
    } else if (magnitude <= 0x33000000) {
      half = 0; // at most half of the smallest subnormal
    } else {
      const significand = (magnitude & 0x7fffff) | 0x800000;
      const shift = 126 - (magnitude >>> 23);
      const rest = significand & ((1 << shift) - 1);
      const tie = 1 << (shift - 1);
      half = significand >>> shift;
      if (rest > tie || (rest === tie && (half & 1) === 1)) half++;
    }
    into[i] = ((b >>> 16) & 0x8000) | half;
  }
  return into;
}

/** Widens bfloat16 patterns to float32, exactly. */
export function bfloat16ToFloat32(from: Uint16Array, into: Float32Array = new Float32Array(from.length)): Float32Array {
  sameLength('bfloat16ToFloat32', from, into);
  const out = bitsOf(into);
  for (let i = 0; i < from.length; i++) out[i] = from[i]! << 16;
  return into;
}

/** Rounds float32 to bfloat16 patterns, nearest with ties to even; NaN stays NaN. */
export function float32ToBfloat16(from: Float32Array, into: Uint16Array = new Uint16Array(from.length)): Uint16Array {
  sameLength('float32ToBfloat16', from, into);
  const bits = bitsOf(from);
  for (let i = 0; i < bits.length; i++) {
    const b = bits[i]!;
    into[i] = (b & 0x7fffffff) > 0x7f800000 ? (b >>> 16) | 0x40 : (b + 0x7fff + ((b >>> 16) & 1)) >>> 16;
  }
  return into;
}
