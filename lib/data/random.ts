/** A seeded stream of pseudo-random numbers. */
export interface Random {
  /** Uniform integer in 0 .. 2^32 - 1. */
  next(): number;
  /** Uniform integer in 0 .. bound - 1, for 1 <= bound <= 2^21 (bias below 2^-11 of a count). */
  below(bound: number): number;
  /** Uniform number in [0, 1). */
  unit(): number;
}

/** Finaliser of MurmurHash3 (Appleby, public domain): every input bit flips every output bit with probability near 1/2. */
function mix(value: number): number {
  let h = value | 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return h ^ (h >>> 16);
}

/**
 * The random stream of one item: xoshiro128** (Blackman and Vigna, 2018), its state hashed from the key.
 * Any item is reached directly, so a trainer that resumes needs to keep only the index.
 *
 * @param seed non-negative safe integer.
 * @param stream small integer that keeps streams of one seed apart (train and test).
 * @param index non-negative safe integer.
 */
export function randomAt(seed: number, stream: number, index: number): Random {
  // Two 32-bit lanes: with one, two of a million indices would share a stream about 100 times.
  let a = mix(stream ^ 0x9e3779b9);
  let b = mix(stream ^ 0x243f6a88);
  for (const word of [seed, seed / 4294967296, index, index / 4294967296]) {
    a = mix(a ^ (word >>> 0)) + 0x9e3779b9;
    b = mix(b ^ (word >>> 0)) + 0xb7e15162;
  }
  let s0 = mix(a);
  let s1 = mix(b);
  let s2 = mix(a + 0x9e3779b9);
  let s3 = mix(b + 0xb7e15162) | 1; // never all zero, where the generator would stay

  const next = (): number => {
    const scaled = Math.imul(s1, 5);
    const result = Math.imul((scaled << 7) | (scaled >>> 25), 9);
    const shifted = s1 << 9;
    s2 ^= s0;
    s3 ^= s1;
    s1 ^= s2;
    s0 ^= s3;
    s2 ^= shifted;
    s3 = (s3 << 11) | (s3 >>> 21);
    return result >>> 0;
  };
  return {
    next,
    below: (bound) => Math.floor((next() * bound) / 4294967296),
    unit: () => next() / 4294967296,
  };
}
