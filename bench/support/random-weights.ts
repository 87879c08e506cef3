/** Weights and feeds that cost no time to make: one block of normal numbers, repeated. Timings do not depend on values. */
import { normals, seededRandom, tensor, toDType, type HostTensor, type Port } from '../../lib/index.ts';

/** A prime, so that rows of no usual length repeat each other. */
const BLOCK = 65521;

/** Normal numbers of the given spread, the same for the same shape. */
export function randomTensor(shape: readonly number[], spread = 1): HostTensor<'float32'> {
  const block = Float32Array.from(normals(seededRandom(0), BLOCK), (x) => x * spread);
  const data = new Float32Array(shape.reduce((product, length) => product * length, 1));
  for (let at = 0; at < data.length; at += BLOCK) data.set(block.subarray(0, Math.min(BLOCK, data.length - at)), at);
  return tensor('float32', shape, data);
}

/** A projection [out, in] that keeps the size of what it is given. */
export const randomProjection = (out: number, input: number): HostTensor<'float32'> => randomTensor([out, input], 1 / Math.sqrt(input));

/** A feed for a port whose lengths are numbers: normal numbers, or for bytes and positions whole ones from 0 on. */
export function randomFeed({ name, dtype, shape }: Port): HostTensor {
  const lengths = shape.map((length) => {
    if (typeof length !== 'number') throw new RangeError(`randomFeed: every axis of ${name} needs a length, got ${length}`);
    return length;
  });
  const count = lengths.reduce((product, length) => product * length, 1);
  switch (dtype) {
    case 'float32': return randomTensor(lengths);
    case 'float16': return toDType(randomTensor(lengths), 'float16');
    case 'uint8': return tensor('uint8', lengths, Uint8Array.from({ length: count }, (_, i) => (i * 151) % 256));
    case 'int64': return tensor('int64', lengths, BigInt64Array.from({ length: count }, (_, i) => BigInt(i)));
    default: throw new RangeError(`randomFeed: ${name} must be float32, float16, uint8 or int64, got ${dtype}`);
  }
}
