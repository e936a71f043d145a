/**
 * M-RoPE position ids: three numbers (temporal, height, width) per row of a sequence.
 *
 * Text advances the three together. A picture that starts at s takes (s + frame, s + row, s + column) on its merged grid, and what
 * follows it starts at the maximum over the three rows + 1, after a video too (transformers 4.5x; 5.x differs for long videos).
 *
 * Qwen2.5-VL: the frames of a video are as far apart as in time, trunc(float32(frame * seconds * tokensPerSecond)), and an image has no time.
 */
import * as check from '../check';
import { fail } from '../errors';

/** Patches of a picture before the merge: temporal patches, rows, columns. */
export type Grid = readonly [time: number, height: number, width: number];

export interface PositionGeometry {
  /** Token id that stands for a merged patch of an image. */
  imageToken: number;
  /** Token id that stands for a merged patch of a video. */
  videoToken: number;
  /** Side of the square of patches that becomes one row (2). */
  merge: number;
  /** Qwen2.5-VL: temporal ids of a second of video. Absent: Qwen2-VL, where each temporal patch advances by one. */
  tokensPerSecond?: number;
}

export interface Positions {
  /** [3*S]: all temporal ids, then all height ids, then all width ids. */
  positions: Int32Array;
  /** Largest id + 1 - S. A row that is appended at index i has id i + delta in all three rows. */
  delta: number;
}

/** Rows of a sequence: far above what any model takes, and what typed arrays hold. */
const MAX_ROWS = 2 ** 24;

/** Rows that a picture takes in the sequence. */
export function mergedTokens(grid: Grid, merge: number): number {
  return grid[0] * Math.floor(grid[1] / merge) * Math.floor(grid[2] / merge);
}

/**
 * Position ids of one sequence.
 *
 * @param ids token ids, with one picture token per merged patch.
 * @param grids grids of the pictures in the order of their tokens, images and videos together.
 * @param secondsPerGrid [grids] seconds between the temporal patches of a video: temporal patch / frames per second. Only Qwen2.5-VL has
 *   a use for it; missing or undefined: 1, the reference's own default.
 * @returns ids and delta; nothing of the input is kept.
 * @throws {LibError} ERR_SHAPE when tokens and grids do not agree; ERR_RANGE for a video that is longer than 2^24 position ids.
 * @example
 * // 7 is text, 3 a picture token of a 2x2 grid of merged patches
 * mropePositions([7, 3, 3, 3, 3, 7], [[1, 4, 4]], { imageToken: 3, videoToken: 4, merge: 2 });
 * // { positions: [0,1,1,1,1,3,  0,1,1,2,2,3,  0,1,2,1,2,3], delta: -2 }
 */
export function mropePositions(ids: ArrayLike<number>, grids: readonly Grid[], geometry: PositionGeometry, secondsPerGrid: readonly (number | undefined)[] = []): Positions {
  check.object('positions', 'ids', ids);
  check.object('positions', 'geometry', geometry);
  check.integer('positions', 'merge', geometry.merge, 1);
  checkGrids(grids);
  check.array('positions', 'secondsPerGrid', secondsPerGrid);
  const length = check.integer('positions', 'the number of ids', ids.length, 0, MAX_ROWS);
  const positions = new Int32Array(3 * length);
  let start = 0;
  let picture = 0;
  for (let i = 0; i < length; ) {
    const id = ids[i];
    if (id !== geometry.imageToken && id !== geometry.videoToken) {
      positions[i] = positions[length + i] = positions[2 * length + i] = start++;
      i++;
      continue;
    }
    const grid = grids[picture];
    if (grid === undefined) {
      fail('ERR_SHAPE', 'positions', `Expected one picture per run of picture tokens but received ${grids.length} picture(s) and further picture tokens at index ${i}`);
    }
    const rows = mergedTokens(grid, geometry.merge);
    for (let k = 0; k < rows; k++) {
      if (i + k >= length || ids[i + k] !== id) {
        fail('ERR_SHAPE', 'positions', `Expected ${rows} picture tokens from index ${i} for the grid ${grid.join('x')} but received ${k}`);
      }
    }
    const times = timesOf(grid[0], id === geometry.videoToken, geometry.tokensPerSecond, check.number('positions', `secondsPerGrid ${picture}`, secondsPerGrid[picture] ?? 1, 0));
    start += fillPicture(positions, length, i, start, grid, geometry.merge, times);
    if (start > MAX_ROWS) fail('ERR_RANGE', 'positions', `Expected position ids up to ${MAX_ROWS} but received ${start} after picture ${picture}; give fewer or shorter videos`);
    picture++;
    i += rows;
  }
  if (picture !== grids.length) {
    fail('ERR_SHAPE', 'positions', `Expected picture tokens for ${grids.length} picture(s) but received tokens for ${picture}`);
  }
  return { positions, delta: start - length };
}

function checkGrids(grids: readonly Grid[]): void {
  check.array('positions', 'grids', grids);
  for (const [n, grid] of grids.entries()) {
    if (check.array('positions', `grid ${n}`, grid).length !== 3) fail('ERR_SHAPE', 'positions', `Expected grid ${n} to be [time, height, width] but received ${grid.length} numbers`);
    for (const side of grid) check.integer('positions', `a side of grid ${n}`, side, 1, MAX_ROWS);
  }
}

/** Temporal ids of a picture's temporal patches, from 0. */
function timesOf(patches: number, isVideo: boolean, tokensPerSecond: number | undefined, seconds: number): Int32Array {
  if (tokensPerSecond === undefined) return Int32Array.from({ length: patches }, (_, patch) => patch);
  if (!isVideo) return new Int32Array(patches);
  // The reference multiplies in float32, one factor after the other, and truncates.
  const last = Math.fround(Math.fround((patches - 1) * Math.fround(seconds)) * tokensPerSecond);
  if (last > MAX_ROWS) fail('ERR_RANGE', 'positions', `Expected a video of at most ${MAX_ROWS} temporal position ids but received ${patches} temporal patches of ${seconds} s at ${tokensPerSecond} ids per second`);
  return Int32Array.from({ length: patches }, (_, patch) => Math.fround(Math.fround(patch * Math.fround(seconds)) * tokensPerSecond));
}

/** Writes the ids of a picture whose first row is `at`; returns how far the start of what follows moves. */
function fillPicture(positions: Int32Array, length: number, at: number, start: number, grid: Grid, merge: number, times: Int32Array): number {
  const high = Math.floor(grid[1] / merge);
  const wide = Math.floor(grid[2] / merge);
  for (const time of times) {
    for (let row = 0; row < high; row++) {
      for (let column = 0; column < wide; column++, at++) {
        positions[at] = start + time;
        positions[length + at] = start + row;
        positions[2 * length + at] = start + column;
      }
    }
  }
  return Math.max(times.at(-1)! + 1, high, wide);
}
