import { join } from 'node:path';
import { mropePositions, type Grid } from '../../lib/model/positions';
import { readTensors } from '../parity/goldens';

const GEOMETRY = { imageToken: 303, videoToken: 304, merge: 2 };
const QWEN25 = { ...GEOMETRY, tokensPerSecond: 2 };
const layouts = ['text', 'image', 'wide', 'images', 'video', 'slow_video', 'fast_video'];
type Tensors = ReturnType<typeof readTensors>;

/** Grids, and the seconds of videos, in the order of their tokens: images and videos come in separate lists. */
function picturesInOrder(golden: Tensors, name: string, ids: ArrayLike<number>): { grids: Grid[]; seconds: (number | undefined)[] } {
  const lists = new Map([[303, [...(golden.get(`in.${name}.image_grids`) ?? [])]], [304, [...(golden.get(`in.${name}.video_grids`) ?? [])]]]);
  const videoSeconds = [...golden.get(`in.${name}.seconds`)!];
  const grids: Grid[] = [];
  const seconds: (number | undefined)[] = [];
  for (let i = 0; i < ids.length; ) {
    const list = lists.get(ids[i]!);
    if (list === undefined) {
      i++;
      continue;
    }
    const grid = list.splice(0, 3) as unknown as Grid;
    grids.push(grid);
    seconds.push(ids[i] === 304 ? videoSeconds.shift() : undefined);
    i += (grid[0] * grid[1] * grid[2]) / 4;
  }
  return { grids, seconds };
}

describe.each([['tiny-qwen2', GEOMETRY], ['tiny-qwen2_5', QWEN25]])('%s', (variant, geometry) => {
  const golden = readTensors(join(__dirname, `../fixtures/${variant}/positions.safetensors`));

  test.each(layouts)('position ids of %s equal the oracle\'s', (name) => {
    const ids = golden.get(`in.${name}.ids`)!;
    const { grids, seconds } = picturesInOrder(golden, name, ids);
    const { positions, delta } = mropePositions(ids, grids, geometry, seconds);
    expect([...positions]).toEqual([...golden.get(`out.${name}.positions`)!]);
    expect(delta).toBe(golden.get(`out.${name}.delta`)![0]);
  });
});

describe('frames of Qwen2.5-VL are as far apart as in time', () => {
  /** Temporal ids of a video of `frames` rows, and the id of the text behind it. */
  const times = (frames: number, tokensPerSecond: number, seconds?: number): number[] => {
    const ids = [...Array<number>(frames).fill(304), 7];
    return [...mropePositions(ids, [[frames, 2, 2]], { ...GEOMETRY, tokensPerSecond }, seconds === undefined ? [] : [seconds]).positions.subarray(0, frames + 1)];
  };

  test('in whole ids, cut off, and 1 second when nothing is said', () => {
    expect(times(4, 2)).toEqual([0, 2, 4, 6, 7]);
    expect(times(4, 2, 1.25)).toEqual([0, 2, 5, 7, 8]);
    expect(times(3, 4, 0)).toEqual([0, 0, 0, 1]);
  });

  test('rounded to float32 after each factor, as the reference does', () => {
    // torch 2.13. In doubles, frames 3 and 6 of the first would be 20 and 41; unrounded float32 factors would give 6, 13, 20 ...;
    // rounding the whole product once, frame 15 of the second would be 105.
    expect(times(7, 10, 0.7)).toEqual([0, 7, 14, 21, 28, 35, 42, 43]);
    expect(times(16, 100, 0.07).slice(14)).toEqual([98, 104, 105]);
  });

  test('an image has no time, and seconds mean nothing to Qwen2-VL', () => {
    expect([...mropePositions([303, 303, 7], [[2, 2, 2]], QWEN25, [9]).positions]).toEqual([0, 0, 1, 0, 0, 1, 0, 0, 1]);
    expect([...mropePositions([304, 304, 7], [[2, 2, 2]], GEOMETRY, [9]).positions]).toEqual([0, 1, 2, 0, 0, 2, 0, 0, 2]);
  });

  test.each<[unknown, string, string]>([
    [[-1], 'ERR_RANGE', 'secondsPerGrid 0 to be a number of at least 0 but received -1'],
    [[NaN], 'ERR_RANGE', 'secondsPerGrid 0 to be a number of at least 0 but received NaN'],
    [['1'], 'ERR_ARGUMENT', 'secondsPerGrid 0 to be a number of at least 0 but received "1"'],
    [1, 'ERR_ARGUMENT', 'secondsPerGrid to be an array but received 1'],
    [[1e8], 'ERR_RANGE', 'a video of at most 16777216 temporal position ids but received 2 temporal patches of 100000000 s at 2 ids per second'],
  ])('%p is refused', (seconds, code, message) => {
    expect(() => mropePositions([304, 304], [[2, 2, 2]], QWEN25, seconds as never)).toThrow(expect.objectContaining({ name: 'LibError', code, message: `[positions] Expected ${message}` }));
  });
});

test('positions that would leave their range are refused', () => {
  const video = { ...GEOMETRY, tokensPerSecond: 4 };
  const ids = [1, 2].flatMap(() => [304, 304, 7]);
  expect(() => mropePositions(ids, [[2, 2, 2], [2, 2, 2]], video, [2_500_000, 2_500_000])).toThrow(expect.objectContaining({
    code: 'ERR_RANGE', message: '[positions] Expected position ids up to 16777216 but received 20000003 after picture 1; give fewer or shorter videos',
  }));
});

test('two pictures side by side, without text between them', () => {
  const { positions, delta } = mropePositions([303, 303, 303, 303, 7], [[1, 2, 4], [1, 4, 2]], GEOMETRY);
  expect([...positions]).toEqual([0, 0, 2, 2, 4, 0, 0, 2, 3, 4, 0, 1, 2, 2, 4]);
  expect(delta).toBe(0);
});

test('the example of the documentation', () => {
  expect(mropePositions([7, 3, 3, 3, 3, 7], [[1, 4, 4]], { imageToken: 3, videoToken: 4, merge: 2 }))
    .toEqual({ positions: Int32Array.of(0, 1, 1, 1, 1, 3, 0, 1, 1, 2, 2, 3, 0, 1, 2, 1, 2, 3), delta: -2 });
});

test('an empty sequence has no ids and delta 0', () => {
  expect(mropePositions([], [], GEOMETRY)).toEqual({ positions: new Int32Array(0), delta: 0 });
});

test.each<[string, number[], Grid[], string]>([
  ['no grid', [303], [], '[positions] Expected one picture per run of picture tokens but received 0 picture(s) and further picture tokens at index 0'],
  ['too few tokens', [303, 1], [[1, 2, 4]], '[positions] Expected 2 picture tokens from index 0 for the grid 1x2x4 but received 1'],
  ['tokens cut off', [303], [[1, 2, 4]], '[positions] Expected 2 picture tokens from index 0 for the grid 1x2x4 but received 1'],
  ['a grid too many', [1, 2], [[1, 2, 2]], '[positions] Expected picture tokens for 1 picture(s) but received tokens for 0'],
])('%s is ERR_SHAPE', (_, ids, grids, message) => {
  expect(() => mropePositions(ids, grids, GEOMETRY)).toThrow(expect.objectContaining({ code: 'ERR_SHAPE', message }));
});

test.each<[unknown, unknown, unknown]>([
  [null, [], GEOMETRY], [[1], null, GEOMETRY], [[1], [[1, 2]], GEOMETRY], [[1], [[1, -4, 4]], GEOMETRY], [[1], [], null], [{ length: 2 ** 40 }, [], GEOMETRY],
])('ids %p, grids %p, geometry %p are refused', (ids, grids, shape) => {
  expect(() => mropePositions(ids as never, grids as never, shape as never)).toThrow(expect.objectContaining({ name: 'LibError' }));
});
