/**
 * Randomness without state: every number is a hash of (seed, place), so that a resumed run needs no generator state and a
 * request's draws do not depend on its batch-mates.
 */

/** Finaliser of MurmurHash3 (Appleby, public domain): every input bit flips every output bit with probability near 1/2. */
export function avalanche(value: number): number {
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
