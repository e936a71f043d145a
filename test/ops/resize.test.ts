import { join } from 'node:path';
import { resize } from '../../lib/kernels';
import { readTensors } from '../parity/goldens';
import { refuses } from './support';

/** Sizes of the goldens as golden_ops.py draws them; `out` is Pillow's own result. */
const SIZES: Record<string, [number, number]> = { bicubic0: [97, 131], bicubic2: [50, 40], bicubic4: [1, 7], bicubic5: [84, 84], bicubic6: [84, 61] };
const golden = readTensors(join(__dirname, '../fixtures/ops/resize.safetensors'));

test.each(Object.entries(SIZES))('%s is bit-equal to Pillow', async (name, [height, width]) => {
  const [toHeight, toWidth] = golden.get(`in.${name}.size`)! as unknown as [number, number];
  const out = await resize(golden.get(`in.${name}.image`) as Uint8Array, { height, width, toHeight, toWidth });
  expect(Buffer.compare(out, golden.get(`out.${name}.out`) as Uint8Array)).toBe(0);
});

test('bilinear of two pixels, and the example of the documentation', async () => {
  const two = Uint8Array.of(0, 0, 0, 100, 200, 40);
  expect([...(await resize(two, { height: 1, width: 2, toHeight: 1, toWidth: 4, filter: 'bilinear' }))]).toEqual([0, 0, 0, 25, 50, 10, 75, 150, 30, 100, 200, 40]);
  expect([...(await resize(Uint8Array.of(10, 20, 30), { height: 1, width: 1, toHeight: 1, toWidth: 2 }))]).toEqual([10, 20, 30, 10, 20, 30]);
});

test('misuse', async () => {
  const good = { height: 1, width: 1, toHeight: 2, toWidth: 2 };
  await refuses(resize(new Uint8Array(2), good), 'ERR_SHAPE', '[resize] Expected image to have height*width*3 = 3 elements but received 2');
  await refuses(resize(new Uint8Array(3), { ...good, toWidth: 0 }), 'ERR_RANGE', '[resize] Expected toWidth to be an integer from 1 to 65536 but received 0');
  await refuses(resize(new Uint8Array(3), { ...good, toHeight: 65536, toWidth: 65536 }), 'ERR_RANGE', '[resize] Expected the result to have at most 8589934592 elements but received sizes 65536 x 65536 x 3');
  await refuses(resize(new Uint8Array(3), { ...good, filter: 'lanczos' } as never), 'ERR_ARGUMENT', "[resize] Expected filter to be one of 'bilinear', 'bicubic' but received \"lanczos\"");
  await refuses(resize(new Float32Array(3) as never, good), 'ERR_DTYPE', '[resize] Expected image to be a Uint8Array but received Float32Array(3)');
});
