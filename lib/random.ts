/**
 * Seeded random numbers: xoshiro128** 1.1 (Blackman and Vigna, "Scrambled linear pseudorandom number generators",
 * 2021; public-domain reference xoshiro128starstar.c), its four words filled from the seed by splitmix32.
 * The same seed gives the same numbers on every machine. Not for secrets.
 */

/** Everything a generator remembers, as plain JSON. */
export interface RandomState {
  readonly algorithm: 'xoshiro128**';
  /** Four unsigned 32-bit words, not all zero. */
  readonly words: readonly [number, number, number, number];
  /** The second number of the last normal pair, when it is still unused. */
  readonly spareNormal: number | null;
}

export interface Random {
  /** Uniform in [0, 1), 53 random bits. */
  uniform(): number;
  /** Standard normal: mean 0, variance 1 (Marsaglia's polar method). */
  normal(): number;
  /** Uniform integer in 0..below-1, without bias. `below` is 1..2^32. */
  integer(below: number): number;
  /** A snapshot that `resumeRandom` continues from. */
  state(): RandomState;
}

/** A generator started from an integer seed, 0..2^32-1. */
export function seededRandom(seed: number): Random {
  if (!Number.isInteger(seed) || seed < 0 || seed >= 2 ** 32) {
    throw new RangeError(`seededRandom: seed must be an integer in 0..4294967295, got ${seed}`);
  }
  let counter = seed;
  const splitmix32 = (): number => {
    counter = (counter + 0x9e3779b9) | 0;
    let word = counter ^ (counter >>> 16);
    word = Math.imul(word, 0x21f0aaad);
    word = Math.imul(word ^ (word >>> 15), 0x735a2d97);
    return (word ^ (word >>> 15)) >>> 0;
  };
  return generator([splitmix32(), splitmix32(), splitmix32(), splitmix32()], null);
}

/** A generator that continues where `state` was taken. */
export function resumeRandom(state: RandomState): Random {
  if (state.algorithm !== 'xoshiro128**') {
    throw new RangeError(`resumeRandom: algorithm must be xoshiro128**, got ${String(state.algorithm)}`);
  }
  const valid = state.words.every((word) => Number.isInteger(word) && word >= 0 && word < 2 ** 32);
  if (!valid || state.words.length !== 4 || state.words.every((word) => word === 0)) {
    throw new RangeError(`resumeRandom: state needs four unsigned 32-bit words, not all zero, got [${state.words.join(', ')}]`);
  }
  if (state.spareNormal !== null && !Number.isFinite(state.spareNormal)) {
    throw new RangeError(`resumeRandom: spareNormal must be a finite number or null, got ${state.spareNormal}`);
  }
  return generator(state.words, state.spareNormal);
}

/** `count` independent standard normals. */
export function normals(random: Random, count: number): Float64Array {
  const out = new Float64Array(count);
  for (let i = 0; i < count; i++) out[i] = random.normal();
  return out;
}

function generator(words: RandomState['words'], spareNormal: number | null): Random {
  let [s0, s1, s2, s3] = words;
  let spare = spareNormal;
  const rotateLeft = (word: number, bits: number): number => (word << bits) | (word >>> (32 - bits));
  const next = (): number => {
    const result = Math.imul(rotateLeft(Math.imul(s1, 5), 7), 9) >>> 0;
    const shifted = s1 << 9;
    s2 ^= s0;
    s3 ^= s1;
    s1 ^= s2;
    s0 ^= s3;
    s2 ^= shifted;
    s3 = rotateLeft(s3, 11);
    return result;
  };
  const uniform = (): number => {
    const high = next() >>> 5; // 27 bits
    const low = next() >>> 6; // 26 bits
    return (high * 2 ** 26 + low) / 2 ** 53;
  };
  return {
    uniform,
    normal() {
      if (spare !== null) {
        const value = spare;
        spare = null;
        return value;
      }
      for (;;) {
        const x = 2 * uniform() - 1;
        const y = 2 * uniform() - 1;
        const radius = x * x + y * y;
        if (radius >= 1 || radius === 0) continue;
        const stretch = Math.sqrt((-2 * Math.log(radius)) / radius);
        spare = y * stretch;
        return x * stretch;
      }
    },
    integer(below) {
      if (!Number.isInteger(below) || below < 1 || below > 2 ** 32) {
        throw new RangeError(`integer: below must be an integer in 1..4294967296, got ${below}`);
      }
      // The incomplete last block of the 2^32 words would favour small results: draw again.
      const limit = 2 ** 32 - (2 ** 32 % below);
      let word = next();
      while (word >= limit) word = next();
      return word % below;
    },
    state: () => ({ algorithm: 'xoshiro128**', words: [s0 >>> 0, s1 >>> 0, s2 >>> 0, s3 >>> 0], spareNormal: spare }),
  };
}
