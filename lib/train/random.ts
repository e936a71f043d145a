/**
 * Randomness without state: every number is a hash of (seed, place), so that a resumed run needs no generator state and a
 * request's draws do not depend on its batch-mates.
 */

/** Finaliser of a 32-bit avalanche hash (constants: murmur3). */
function avalanche(value: number): number {
  let h = value | 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** Hash of safe integers to 32 bits; the order counts. */
export function mix(...parts: readonly number[]): number {
  let h = 0x9e3779b9;
  for (const part of parts) {
    h = avalanche(h ^ avalanche(part >>> 0));
    h = avalanche((h + 0x6d2b79f5) ^ avalanche(Math.floor(part / 0x1_0000_0000) | 0));
  }
  return h;
}

/** Uniform number in [0, 1) with 53 bits, the `draw`-th of this key. */
export function uniform(key: number, draw: number): number {
  const high = mix(key, draw, 0) >>> 5;
  const low = mix(key, draw, 1) >>> 6;
  return (high * 0x400_0000 + low) / 0x20_0000_0000_0000;
}

/**
 * Place `index` of a permutation of 0 .. size-1 that depends on `key`, without storing it: a four-round Feistel network on the
 * next even number of bits, walked until the result falls inside (fewer than four tries on average).
 */
export function permuted(key: number, index: number, size: number): number {
  const half = Math.max(1, Math.ceil(Math.log2(Math.max(2, size)) / 2));
  const radix = 2 ** half;
  let place = index;
  do {
    let left = Math.floor(place / radix);
    let right = place % radix;
    for (let round = 0; round < 4; round++) [left, right] = [right, (left ^ mix(key, round, right)) & (radix - 1)];
    place = left * radix + right;
  } while (place >= size);
  return place;
}

/** The index of the sample at `position` of the data order: shuffled afresh each epoch; an endless source is read in order. */
export function sampleIndex(seed: number, position: number, size?: number): number {
  if (size === undefined) return position;
  return permuted(mix(seed, Math.floor(position / size), 2), position % size, size);
}
