import { mrope } from '../../lib/kernels';
import { expectClose, random, refuses } from './support';

interface Layout { rows: number; heads: number; headDim: number; section: number[] }

function reference(x: ArrayLike<number>, positions: ArrayLike<number>, { rows, heads, headDim, section }: Layout, theta: number): number[] {
  const half = headDim / 2;
  const axis = section.flatMap((count, row) => Array<number>(count).fill(row));
  const out = Array.from(x);
  for (let t = 0; t < rows; t++) for (let h = 0; h < heads; h++) for (let j = 0; j < half; j++) {
    const angle = positions[axis[j]! * rows + t]! * theta ** ((-2 * j) / headDim);
    const at = (t * heads + h) * headDim + j;
    out[at] = x[at]! * Math.cos(angle) - x[at + half]! * Math.sin(angle);
    out[at + half] = x[at + half]! * Math.cos(angle) + x[at]! * Math.sin(angle);
  }
  return out;
}

const layouts: Layout[] = [
  { rows: 0, heads: 2, headDim: 8, section: [2, 1, 1] }, { rows: 9, heads: 3, headDim: 16, section: [2, 3, 3] },
  { rows: 33, heads: 1, headDim: 10, section: [0, 0, 5] }, { rows: 5, heads: 12, headDim: 128, section: [16, 24, 24] },
];

test.each(layouts)('%j', async (layout) => {
  const { rows, heads, headDim, section } = layout;
  const x = random(rows * heads * headDim, 1);
  const positions = Int32Array.from({ length: 3 * rows }, (_, i) => (i * 7) % 41);
  const turned = await mrope(x, positions, { heads, headDim, section, theta: 1e4 });
  expectClose(turned, reference(x, positions, layout, 1e4));
  expectClose(await mrope(turned, positions, { heads, headDim, section, theta: 1e4, inverse: true }), x);
});

test('the example of the documentation', async () => {
  expectClose(await mrope(Float32Array.of(1, 0), Int32Array.of(1, 1, 1), { heads: 1, headDim: 2, section: [1, 0, 0] }), [Math.cos(1), Math.sin(1)]);
});

test('misuse', async () => {
  const good = { heads: 1, headDim: 4, section: [1, 1, 0] };
  const positions = Int32Array.of(0, 0, 0);
  await refuses(mrope(random(4, 1), positions, undefined as never), 'ERR_ARGUMENT', '[mrope] Expected heads to be an integer from 1 to 65536 but received undefined');
  await refuses(mrope(random(4, 1), positions, { ...good, section: [1, 1] }), 'ERR_ARGUMENT', '[mrope] Expected section to be an array of 3 integers but received Array(2)');
  await refuses(mrope(random(4, 1), positions, { ...good, section: [1, 1, 1] }), 'ERR_RANGE', '[mrope] Expected section to sum to headDim/2 = 2 but received 3');
  await refuses(mrope(random(4, 1), positions, { ...good, headDim: 3 }), 'ERR_RANGE', '[mrope] Expected section to sum to headDim/2 = 1.5 but received 2');
  await refuses(mrope(random(5, 1), positions, good), 'ERR_SHAPE', '[mrope] Expected x to have a multiple of heads*headDim = 4 elements but received 5');
  await refuses(mrope(random(8, 1), positions, good), 'ERR_SHAPE', '[mrope] Expected positions to have 3*rows = 6 elements but received 3');
  await refuses(mrope(random(4, 1), positions, { ...good, theta: NaN }), 'ERR_RANGE', '[mrope] Expected theta to be a number of at least 5e-324 but received NaN');
});
