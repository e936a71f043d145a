/** The order of the data: a function of (seed, position), so that a resumed run needs no generator state. */
import { mix } from '../random';

/**
 * Place `index` of a permutation of 0 .. size-1 that depends on `key`, without storing it: a four-round Feistel network on the
 * next even number of bits, walked until the result falls inside (fewer than four tries on average).
 */
function permuted(key: number, index: number, size: number): number {
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
