import { join } from 'node:path';
import { cropPatches, patchRows, type CropPatchesOptions } from '../../lib/kernels';
import { readTensors } from '../parity/goldens';
import { expectClose, refuses } from './support';

const golden = readTensors(join(__dirname, '../fixtures/ops/resize.safetensors'));
/** Height and width of the goldens' pictures as golden_ops.py draws them; `out` is Pillow's resize of the cut box. */
const SIZES: Record<string, [number, number]> = { crop0: [97, 131], crop2: [50, 40], crop4: [1, 7], crop5: [84, 84], crop6: [84, 61] };

test.each(Object.entries(SIZES))('%s: pixels bit-equal to Pillow, rows those of patchRows', async (name, [height, width]) => {
  const [toHeight, toWidth] = golden.get(`in.${name}.size`)! as unknown as [number, number];
  const { rows, pixels } = await cropPatches(golden.get(`in.${name}.image`) as Uint8Array, { height, width, box: [...golden.get(`in.${name}.box`)!], toHeight, toWidth });
  expect(Buffer.compare(pixels, golden.get(`out.${name}.out`) as Uint8Array)).toBe(0);
  expect(rows).toEqual(await patchRows(pixels, { frames: 1, height: toHeight, width: toWidth }));
});

test.each([[1, 1, 1], [3, 2, 1], [4, 1, 3], [14, 2, 2]])('the same size: a copy of the box; patch %i, merge %i, temporal %i', async (patch, merge, temporal) => {
  const [height, width, side] = [50, 61, patch * merge];
  const image = Uint8Array.from({ length: height * width * 3 }, (_, i) => (i * 7919 + (i >> 3)) % 256);
  const { rows, pixels } = await cropPatches(image, { height, width, box: [11, 5, 11 + side, 5 + side], toHeight: side, toWidth: side, patch, merge, temporal });
  const cut = Array.from({ length: side }, (_, y) => [...image.subarray(((5 + y) * width + 11) * 3, ((5 + y) * width + 11 + side) * 3)]).flat();
  expect([...pixels]).toEqual(cut);
  expect(rows).toEqual(await patchRows(Uint8Array.from(cut), { frames: 1, height: side, width: side, patch, merge, temporal }));
});

test('no pixel outside the box takes part', async () => {
  const [height, width] = [20, 30];
  const options = { height, width, box: [7, 4, 19, 15], toHeight: 28, toWidth: 56 };
  const inside = (i: number): boolean => i % width >= 7 && i % width < 19 && Math.floor(i / width) >= 4 && Math.floor(i / width) < 15;
  const [one, other] = [0, 255].map((around) => Uint8Array.from({ length: height * width * 3 }, (_, i) => (inside(Math.floor(i / 3)) ? (i * 31) % 256 : around)));
  expect((await cropPatches(one!, options)).pixels).toEqual((await cropPatches(other!, options)).pixels);
});

test('the example of the documentation', async () => {
  const options = { height: 1, width: 2, box: [1, 0, 2, 1], toHeight: 1, toWidth: 1, patch: 1, merge: 1, temporal: 1, mean: [0, 0, 0], std: [1, 1, 1] };
  const { rows, pixels } = await cropPatches(Uint8Array.of(9, 9, 9, 0, 51, 255), options);
  expectClose(rows, [0, 0.2, 1]);
  expect([...pixels]).toEqual([0, 51, 255]);
});

test('misuse', async () => {
  const image = new Uint8Array(10 * 20 * 3);
  const good: CropPatchesOptions<'array'> = { height: 10, width: 20, box: [0, 0, 20, 10], toHeight: 28, toWidth: 28 };
  const call = (change: object): Promise<unknown> => cropPatches(image, { ...good, ...change });
  await refuses(cropPatches(image, undefined as never), 'ERR_ARGUMENT', '[cropPatches] Expected height to be an integer from 1 to 65536 but received undefined');
  await refuses(call({ width: 21 }), 'ERR_SHAPE', '[cropPatches] Expected image to have height*width*3 = 630 elements but received 600');
  await refuses(call({ toWidth: 30 }), 'ERR_SHAPE', '[cropPatches] Expected toWidth to be a multiple of patch*merge = 28 but received 30');
  await refuses(call({ box: [0, 0, 1] }), 'ERR_ARGUMENT', '[cropPatches] Expected box to be an array of 4 integers but received Array(3)');
  await refuses(call({ box: [0, 0, 1.5, 1] }), 'ERR_RANGE', '[cropPatches] Expected an entry of box to be an integer from 0 to 65536 but received 1.5');
  await refuses(call({ box: [-1, 0, 1, 1] }), 'ERR_RANGE', '[cropPatches] Expected an entry of box to be an integer from 0 to 65536 but received -1');
  for (const box of [[0, 0, 21, 10], [0, 0, 20, 11], [5, 0, 5, 10], [0, 7, 20, 6]]) {
    await refuses(call({ box }), 'ERR_RANGE', `[cropPatches] Expected box to hold at least 1 pixel of the picture of width 20 and height 10 but received ${box.join(', ')}`);
  }
  await refuses(call({ std: [1, 0, 1] }), 'ERR_RANGE', '[cropPatches] Expected std to be above 0 but received 1, 0, 1');
  await refuses(call({ mean: [1] }), 'ERR_ARGUMENT', '[cropPatches] Expected mean to be an array of 3 numbers but received Array(1)');
  await refuses(call({ toHeight: 65520, toWidth: 65520 }), 'ERR_RANGE', '[cropPatches] Expected the result to have at most 8589934592 elements but received sizes 65520 x 65520 x 3 x 2');
  await refuses(cropPatches(new Uint8ClampedArray(600) as never, good), 'ERR_DTYPE', '[cropPatches] Expected image to be a Uint8Array but received Uint8ClampedArray(600)');
  await refuses(call({ fill: 1 }), 'ERR_ARGUMENT', "[cropPatches] Expected options among height, width, box, toHeight, toWidth, patch, merge, temporal, mean, std, output, signal, device but received 'fill'");
});
