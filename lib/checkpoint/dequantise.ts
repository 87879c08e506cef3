/**
 * ggml's block formats to float32, a table row each. A block holds `elements` weights in `bytes` bytes: small integers
 * with one or two half-width scales (d, and m or dmin), in the K formats with a scale per 16 or 32 weights as well.
 * Products are rounded to float32 where ggml rounds them, so the values equal the reference's bit for bit.
 * Source: ggml-quants.c and gguf-py/gguf/quants.py of llama.cpp.
 */
import { bfloat16ToFloat32, float16Table, float16ToFloat32 } from '../float16.ts';

type DecodeBlock = (from: Uint8Array, at: number, out: Float32Array, to: number) => void;

export interface GgmlFormat {
  readonly name: string;
  /** Weights per block. */
  readonly elements: number;
  /** Bytes per block. */
  readonly bytes: number;
  /** Decodes all blocks of `from`. */
  readonly decode: (from: Uint8Array, out: Float32Array) => void;
}

const f = Math.fround;
const half = (from: Uint8Array, at: number): number => float16Table[from[at]! | (from[at + 1]! << 8)]!;
const signed = (byte: number): number => (byte << 24) >> 24;

function blocks(name: string, elements: number, bytes: number, block: DecodeBlock): GgmlFormat {
  return {
    name,
    elements,
    bytes,
    decode(from, out) {
      for (let at = 0, to = 0; at < from.length; at += bytes, to += elements) block(from, at, out, to);
    },
  };
}

/** Plain elements: `from` may start anywhere, a typed array may not. */
function elements(name: string, bytes: number, decode: (buffer: ArrayBufferLike, offset: number, out: Float32Array) => void): GgmlFormat {
  return {
    name,
    elements: 1,
    bytes,
    decode(from, out) {
      const aligned = from.byteOffset % bytes === 0 ? from : from.slice();
      decode(aligned.buffer, aligned.byteOffset, out);
    },
  };
}

/** The 5th bits of 32 weights, in the order of the weights. */
const word = (from: Uint8Array, at: number): number =>
  from[at]! | (from[at + 1]! << 8) | (from[at + 2]! << 16) | (from[at + 3]! << 24);

/** Stands for a missing m: unlike +0 it leaves -0 as it is. */
const NO_MINIMUM = -0;

const q4: (offset: number, codes: number) => DecodeBlock = (offset, codes) => (from, at, out, to) => {
  const d = half(from, at);
  const m = codes === 4 ? half(from, at + 2) : NO_MINIMUM;
  for (let j = 0; j < 16; j++) {
    const b = from[at + codes + j]!;
    out[to + j] = f(d * ((b & 15) - offset)) + m;
    out[to + 16 + j] = f(d * ((b >> 4) - offset)) + m;
  }
};

const q5: (offset: number, high: number) => DecodeBlock = (offset, high) => (from, at, out, to) => {
  const d = half(from, at);
  const m = high === 4 ? half(from, at + 2) : NO_MINIMUM;
  const bits = word(from, at + high);
  for (let j = 0; j < 16; j++) {
    const b = from[at + high + 4 + j]!;
    out[to + j] = f(d * (((b & 15) | (((bits >>> j) & 1) << 4)) - offset)) + m;
    out[to + 16 + j] = f(d * (((b >> 4) | (((bits >>> (j + 16)) & 1) << 4)) - offset)) + m;
  }
};

const q8: DecodeBlock = (from, at, out, to) => {
  const d = half(from, at);
  for (let j = 0; j < 32; j++) out[to + j] = d * signed(from[at + 2 + j]!);
};

/** 16 pairs of 4-bit scale and minimum | 64 bytes of 2-bit codes | d | dmin. */
const q2k: DecodeBlock = (from, at, out, to) => {
  const d = half(from, at + 80);
  const dmin = half(from, at + 82);
  for (let g = 0; g < 16; g++) {
    const scales = from[at + g]!;
    const scale = f(d * (scales & 15));
    const min = f(dmin * (scales >> 4));
    const codes = at + 16 + (g >> 3) * 32 + (g & 1) * 16;
    const shift = ((g >> 1) & 3) * 2;
    for (let j = 0; j < 16; j++) out[to + g * 16 + j] = f(scale * ((from[codes + j]! >> shift) & 3)) - min;
  }
};

/** 32 bytes of third bits (inverted) | 64 bytes of 2-bit codes | 12 bytes of 16 6-bit scales | d. */
const q3k: DecodeBlock = (from, at, out, to) => {
  const d = half(from, at + 108);
  const scales = at + 96;
  for (let g = 0; g < 16; g++) {
    const low = (from[scales + (g & 7)]! >> (g < 8 ? 0 : 4)) & 15;
    const high = (from[scales + 8 + (g & 3)]! >> ((g >> 2) * 2)) & 3;
    const scale = f(d * ((low | (high << 4)) - 32));
    const lane = (g & 1) * 16;
    const codes = at + 32 + (g >> 3) * 32 + lane;
    const shift = ((g >> 1) & 3) * 2;
    for (let j = 0; j < 16; j++) {
      const set = (from[at + lane + j]! >> (g >> 1)) & 1;
      out[to + g * 16 + j] = scale * (((from[codes + j]! >> shift) & 3) - (set === 1 ? 0 : 4));
    }
  }
};

/** 6-bit scale of group g (0..7) in the 12 bytes that Q4_K and Q5_K pack; `by` 0 gives the scale, 4 the minimum. */
const packed6 = (from: Uint8Array, scales: number, g: number, by: 0 | 4): number =>
  g < 4
    ? from[scales + by + g]! & 63
    : ((from[scales + 4 + g]! >> by) & 15) | ((from[scales + by + g - 4]! >> 6) << 4);

/** d | dmin | 12 bytes of scales | (Q5_K: 32 bytes of fifth bits) | 128 bytes of 4-bit codes. */
const q45k: (fifthBits: boolean) => DecodeBlock = (fifthBits) => (from, at, out, to) => {
  const d = half(from, at);
  const dmin = half(from, at + 2);
  const codes = at + (fifthBits ? 48 : 16);
  for (let g = 0; g < 8; g++) {
    const scale = f(d * packed6(from, at + 4, g, 0));
    const min = f(dmin * packed6(from, at + 4, g, 4));
    const shift = (g & 1) * 4;
    for (let j = 0; j < 32; j++) {
      const low = (from[codes + (g >> 1) * 32 + j]! >> shift) & 15;
      const fifth = fifthBits ? ((from[at + 16 + j]! >> g) & 1) << 4 : 0;
      out[to + g * 32 + j] = f(scale * (low | fifth)) - min;
    }
  }
};

/** 128 bytes of low 4 bits | 64 bytes of high 2 bits | 16 signed scales | d. */
const q6k: DecodeBlock = (from, at, out, to) => {
  const d = half(from, at + 208);
  for (let g = 0; g < 16; g++) {
    const scale = f(d * signed(from[at + 192 + g]!));
    const lane = (g & 1) * 16;
    const lows = at + (g >> 3) * 64 + ((g >> 1) & 1) * 32 + lane;
    const lowShift = ((g >> 2) & 1) * 4;
    const highs = at + 128 + (g >> 3) * 32 + lane;
    const highShift = ((g >> 1) & 3) * 2;
    for (let j = 0; j < 16; j++) {
      const q = ((from[lows + j]! >> lowShift) & 15) | (((from[highs + j]! >> highShift) & 3) << 4);
      out[to + g * 16 + j] = scale * (q - 32);
    }
  }
};

/** Formats by ggml's type number. */
export const ggmlFormats: ReadonlyMap<number, GgmlFormat> = new Map([
  [0, elements('F32', 4, (buffer, offset, out) => out.set(new Float32Array(buffer, offset, out.length)))],
  [1, elements('F16', 2, (buffer, offset, out) => float16ToFloat32(new Uint16Array(buffer, offset, out.length), out))],
  [2, blocks('Q4_0', 32, 18, q4(8, 2))],
  [3, blocks('Q4_1', 32, 20, q4(0, 4))],
  [6, blocks('Q5_0', 32, 22, q5(16, 2))],
  [7, blocks('Q5_1', 32, 24, q5(0, 4))],
  [8, blocks('Q8_0', 32, 34, q8)],
  [10, blocks('Q2_K', 256, 84, q2k)],
  [11, blocks('Q3_K', 256, 110, q3k)],
  [12, blocks('Q4_K', 256, 144, q45k(false))],
  [13, blocks('Q5_K', 256, 176, q45k(true))],
  [14, blocks('Q6_K', 256, 210, q6k)],
  [30, elements('BF16', 2, (buffer, offset, out) => bfloat16ToFloat32(new Uint16Array(buffer, offset, out.length), out))],
]);

/** Names of types that exist but are not decoded here, for error messages. */
const otherNames: Readonly<Record<number, string>> = {
  9: 'Q8_1', 15: 'Q8_K', 16: 'IQ2_XXS', 17: 'IQ2_XS', 18: 'IQ3_XXS', 19: 'IQ1_S', 20: 'IQ4_NL', 21: 'IQ3_S', 22: 'IQ2_S',
  23: 'IQ4_XS', 24: 'I8', 25: 'I16', 26: 'I32', 27: 'I64', 28: 'F64', 29: 'IQ1_M', 34: 'TQ1_0', 35: 'TQ2_0', 39: 'MXFP4',
};

/** ggml's name of a type number. */
export const ggmlTypeName = (type: number): string => ggmlFormats.get(type)?.name ?? otherNames[type] ?? `number ${type}`;

/** Decodes whole blocks. Errors: `out` has not one element per weight. */
export function dequantise(format: GgmlFormat, from: Uint8Array, out: Float32Array): Float32Array {
  const weights = (from.length / format.bytes) * format.elements;
  if (weights !== out.length) {
    throw new RangeError(`dequantise: output for ${from.length} bytes of ${format.name} must have ${weights} elements, got ${out.length}`);
  }
  format.decode(from, out);
  return out;
}
