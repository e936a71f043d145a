import { join } from 'node:path';
import { mropePositions, type Grid } from '../../lib/model/positions';
import { readTensors } from '../parity/goldens';

const GEOMETRY = { imageToken: 303, videoToken: 304, merge: 2 };
const golden = readTensors(join(__dirname, '../fixtures/tiny-qwen2/positions.safetensors'));
const layouts = ['text', 'image', 'wide', 'images', 'video', 'slow_video', 'fast_video'];

/** Grids in the order of their tokens: images and videos come in separate lists. */
function gridsInOrder(name: string, ids: ArrayLike<number>): Grid[] {
  const lists = new Map([[303, [...(golden.get(`in.${name}.image_grids`) ?? [])]], [304, [...(golden.get(`in.${name}.video_grids`) ?? [])]]]);
  const grids: Grid[] = [];
  for (let i = 0; i < ids.length; ) {
    const list = lists.get(ids[i]!);
    if (list === undefined) {
      i++;
      continue;
    }
    const grid = list.splice(0, 3) as unknown as Grid;
    grids.push(grid);
    i += (grid[0] * grid[1] * grid[2]) / 4;
  }
  return grids;
}

test.each(layouts)('position ids of %s equal the oracle\'s', (name) => {
  const ids = golden.get(`in.${name}.ids`)!;
  const { positions, delta } = mropePositions(ids, gridsInOrder(name, ids), GEOMETRY);
  expect([...positions]).toEqual([...golden.get(`out.${name}.positions`)!]);
  expect(delta).toBe(golden.get(`out.${name}.delta`)![0]);
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
