import fc from 'fast-check';
import t from 'tap';
import {
  bfloat16At,
  bfloat16ToFloat32,
  float16At,
  float16Bits,
  float16ToFloat32,
  float32ToBfloat16,
  float32ToFloat16,
} from '../lib/float16.ts';
import {
  byteLength,
  bytesPerElement,
  elementCount,
  fromNdarray,
  reshapeTensor,
  tensor,
  tensorBytes,
  tensorFromBytes,
  toDType,
  toFloat32,
  toFloat64,
  toNdarray,
  zeros,
} from '../lib/tensor.ts';

const everyPattern = Uint16Array.from({ length: 65536 }, (_, bits) => bits);
const differing = (n: number, same: (i: number) => boolean): number[] => Array.from({ length: n }, (_, i) => i).filter((i) => !same(i));

t.test('float16: every pattern decodes as fp16 does, and encodes back', async (t) => {
  const values = float16ToFloat32(everyPattern);
  t.same(differing(65536, (i) => Object.is(values[i], float16At(i))), []);
  const back = float32ToFloat16(values);
  t.same(differing(65536, (i) => back[i] === i || Number.isNaN(values[i])), []);
  t.ok(back.every((bits, i) => !Number.isNaN(values[i]) || ((bits & 0x7c00) === 0x7c00 && (bits & 0x3ff) !== 0)), 'NaN stays NaN');
});

t.test('float16: rounding agrees with fp16 at and around every halfway point', async (t) => {
  const inputs: number[] = [];
  for (let bits = 0; bits < 0x7c00; bits++) {
    const here = float16At(bits);
    const next = bits === 0x7bff ? 65536 : float16At(bits + 1);
    const middle = (here + next) / 2;
    inputs.push(middle, middle * (1 + 2 ** -20), middle * (1 - 2 ** -20), -middle, -middle * (1 + 2 ** -20));
  }
  inputs.push(2 ** -25, 2 ** -26, -(2 ** -26), 2 ** -149, -0, 65519.99, 65520, 1e38, -Infinity);
  const encoded = float32ToFloat16(Float32Array.from(inputs));
  t.same(differing(inputs.length, (i) => encoded[i] === float16Bits(Math.fround(inputs[i]!))), []);
});

t.test('bfloat16: decoding is exact, encoding takes the nearer neighbour and the even one of two', async (t) => {
  const values = bfloat16ToFloat32(everyPattern);
  t.same(differing(65536, (i) => Object.is(values[i], bfloat16At(i))), []);
  const bits = fc.integer({ min: 0, max: 0x7f7fffff });
  const view = new DataView(new ArrayBuffer(4));
  fc.assert(
    fc.property(fc.oneof(bits, bits.map((b) => (b & 0x7fff0000) | 0x8000)), fc.boolean(), (pattern, negative) => {
      view.setUint32(0, pattern);
      const value = view.getFloat32(0) * (negative ? -1 : 1);
      const [got] = float32ToBfloat16(Float32Array.of(value));
      const low = pattern >>> 16;
      const toLow = Math.abs(value) - bfloat16At(low);
      const toHigh = (low === 0x7f7f ? 2 ** 128 : bfloat16At(low + 1)) - Math.abs(value);
      const wanted = toLow < toHigh || (toLow === toHigh && low % 2 === 0) ? low : low + 1;
      return got === (wanted | (negative ? 0x8000 : 0));
    }),
    { numRuns: 20000 },
  );
  t.ok(Number.isNaN(bfloat16At(float32ToBfloat16(Float32Array.of(NaN))[0]!)));
  t.throws(() => float32ToBfloat16(new Float32Array(3), new Uint16Array(2)), /output must have 3 elements, got 2/);
});

t.test('a tensor has the elements its shape needs, of the kind its dtype names', async (t) => {
  t.equal(elementCount([]), 1);
  t.equal(elementCount([3, 0, 5]), 0);
  t.equal(byteLength(zeros('float16', [3, 5])), 30);
  t.equal(bytesPerElement('int64'), 8);
  const data = Float32Array.of(1, 2, 3, 4, 5, 6);
  t.equal(tensor('float32', [2, 3], data).data, data, 'not copied');
  t.equal(reshapeTensor(tensor('float32', [2, 3], data), [6]).data, data);
  t.throws(() => tensor('float32', [2, 5], data), /tensor: shape \[2, 5\] needs 10 elements, got 6/);
  t.throws(() => tensor('float64', [6], data as unknown as Float64Array), /float64 data must be Float64Array, got Float32Array/);
  t.throws(() => zeros('float32', [2, -1]), /whole numbers >= 0, got \[2, -1\]/);
  t.throws(() => zeros('float32', [2, 1.5]), /whole numbers/);
});

t.test('bytes: a view where the offset allows, a copy where not', async (t) => {
  const bytes = new Uint8Array(24);
  bytes.set(tensorBytes(tensor('float32', [3], Float32Array.of(7, 11, 13))), 5);
  const unaligned = tensorFromBytes('float32', [3], bytes.subarray(5, 17));
  t.same([...unaligned.data], [7, 11, 13]);
  t.equal(tensorFromBytes('int16', [2], bytes.subarray(4, 8)).data.buffer, bytes.buffer);
  t.same([...tensorFromBytes('float32', [3], Buffer.from(bytes.buffer, 5, 12)).data], [7, 11, 13], 'of a Buffer too');
  t.throws(() => tensorFromBytes('int64', [2], bytes), /needs 16 bytes, got 24/);
});

t.test('conversion keeps what the target holds and refuses what a whole-number type does not', async (t) => {
  const f32 = tensor('float32', [5], Float32Array.of(0, -3, 7, 127, 2));
  t.equal(toFloat32(f32), f32);
  t.equal(toDType(f32, 'float32'), f32);
  for (const dtype of ['float16', 'bfloat16', 'float64', 'int8', 'int16', 'int32', 'int64'] as const) {
    const there = toDType(f32, dtype);
    t.equal(there.dtype, dtype);
    t.same([...toFloat32(there).data], [...f32.data], dtype);
    t.same([...toFloat64(there).data], [...f32.data], dtype);
  }
  t.same([...toDType(tensor('float64', [2], Float64Array.of(1 + 2 ** -9, 1 + 3 * 2 ** -9)), 'bfloat16').data], [0x3f80, 0x3f81]);
  t.throws(() => toDType(f32, 'uint8'), /uint8 holds whole numbers 0\.\.255, got -3 at 1/);
  t.throws(() => toDType(f32, 'bool'), /bool holds whole numbers 0\.\.1, got -3/);
  t.throws(() => toDType(tensor('float32', [1], Float32Array.of(0.5)), 'int32'), /got 0.5 at 0/);
  t.throws(() => toDType(tensor('float32', [1], Float32Array.of(NaN)), 'int64'), /got NaN/);
  t.same([...toDType(tensor('int64', [2], BigInt64Array.of(3n, -5n)), 'float64').data], [3, -5]);
});

t.test('ndarray: views share memory, strided ones come back contiguous with the dtype named', async (t) => {
  const source = tensor('float16', [2, 3, 5], Uint16Array.from({ length: 30 }, (_, i) => float16Bits(i)));
  const view = toNdarray(source);
  t.equal(view.get(1, 2, 3), float16Bits(28));
  const same = fromNdarray('float16', view);
  t.equal(same.data.buffer, source.data.buffer, 'no copy');
  t.same(same.shape, [2, 3, 5]);
  const head = fromNdarray('float16', view.pick(1, null, null));
  t.equal(head.data.buffer, source.data.buffer, 'the last rows are contiguous too');
  t.same([...toFloat32(head).data], Array.from({ length: 15 }, (_, i) => 15 + i));
  const turned = fromNdarray('float16', view.transpose(2, 0, 1));
  t.same(turned.shape, [5, 2, 3]);
  const values = toFloat32(turned).data;
  t.same([...values], Array.from({ length: 30 }, (_, i) => (i % 3) * 5 + (Math.floor(i / 3) % 2) * 15 + Math.floor(i / 6)));
  const reversed = fromNdarray('float16', view.step(1, 1, -2));
  t.same([...toFloat32(reversed).data.subarray(0, 3)], [4, 2, 0]);
  t.same([...fromNdarray('int64', toNdarray(tensor('int64', [2], BigInt64Array.of(2n, 3n)))).data], [2n, 3n]);
  t.same(fromNdarray('float32', toNdarray(zeros('float32', []))).shape, []);
  t.equal(fromNdarray('float32', toNdarray(zeros('float32', [3, 0]))).data.length, 0);
  t.throws(() => fromNdarray('float32', view as never), /float32 data must be Float32Array, got Uint16Array/);
});
