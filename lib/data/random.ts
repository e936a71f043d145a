import { avalanche } from '../random';

/** A seeded stream of pseudo-random numbers. */
export interface Random {
  /** Uniform integer in 0 .. 2^32 - 1. */
  next(): number;
  /** Uniform integer in 0 .. bound - 1, for 1 <= bound <= 2^21 (bias below 2^-11 of a count). */
  below(bound: number): number;
  /** Uniform number in [0, 1). */
  unit(): number;
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
  let a = avalanche(stream ^ 0x9e3779b9);
  let b = avalanche(stream ^ 0x243f6a88);
  for (const word of [seed, seed / 4294967296, index, index / 4294967296]) {
    a = avalanche(a ^ (word >>> 0)) + 0x9e3779b9;
    b = avalanche(b ^ (word >>> 0)) + 0xb7e15162;
  }
  let s0 = avalanche(a);
  let s1 = avalanche(b);
  let s2 = avalanche(a + 0x9e3779b9);
  let s3 = avalanche(b + 0xb7e15162) | 1; // never all zero, where the generator would stay

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
