import { gatherRmsNorm, gatherRmsNormGrad } from '../../lib/kernels';
import * as reference from '../reference/routedRows';
import { expectClose, expectGradient, random, refuses } from './support';

const EPS = 1e-6;

test.each([[5, 8, 0], [4, 31, 3], [40, 32, 33], [7, 33, 1], [200, 127, 129], [3, 1000, 3], [2, 3584, 2]])('%i rows of %i channels, %i of them', async (count, width, routed) => {
  const [h, weight, step] = [random(count * width, 1), random(width, 2), random(width, 3)];
  const rows = Int32Array.from({ length: routed }, (_, i) => (i * 7 + 1) % count); // out of order; with repeats where there are more than rows
  for (const given of [undefined, step]) {
    const options = given === undefined ? {} : { step: given };
    const want = reference.gatherRmsNorm(h, rows, weight, given, EPS);
    const got = await gatherRmsNorm(h, rows, weight, options);
    expectClose(got.x, want.x);
    expectClose(got.y, want.y);
    expectClose(got.rstd, want.rstd);
    const dy = random(routed * width, 4);
    const grad = await gatherRmsNormGrad(h, rows, weight, dy, options);
    expectGradient(grad.dh, (at) => reference.gatherRmsNorm(at, rows, weight, given, EPS).y, h, dy);
    expectGradient(grad.dweight, (at) => reference.gatherRmsNorm(h, rows, at, given, EPS).y, weight, dy);
    expectGradient(grad.dstep, (at) => reference.gatherRmsNorm(h, rows, weight, at, EPS).y, given ?? new Float32Array(width), dy);
  }
});

test('the example of the documentation', async () => {
  const { x, y, rstd } = await gatherRmsNorm(Float32Array.of(9, 9, 3, 4), Int32Array.of(1), Float32Array.of(1, 1), { step: Float32Array.of(0, -1) });
  expect([...x]).toEqual([3, 3]);
  expectClose(y, [1, 1]);
  expectClose(rstd, [1 / 3]);
});

test('NaN and infinity stay in their row; rows that were not gathered get no gradient', async () => {
  const h = Float32Array.of(NaN, 1, 3, 4, Infinity, 1);
  const { y } = await gatherRmsNorm(h, Int32Array.of(2, 1, 0), Float32Array.of(1, 1));
  expect([...y].map(Number.isFinite)).toEqual([false, true, true, true, false, false]);
  const { dh } = await gatherRmsNormGrad(h, Int32Array.of(1), Float32Array.of(1, 1), Float32Array.of(1, 2));
  expect([...dh].map((value) => value === 0)).toEqual([true, true, false, false, true, true]);
});

test('a signal, and inputs changed at once', async () => {
  await expect(gatherRmsNorm(random(4, 1), Int32Array.of(1), random(2, 2), { signal: AbortSignal.abort('enough') })).rejects.toBe('enough');
  const [h, rows, weight] = [random(64, 1), Int32Array.of(1, 0), random(32, 2)];
  const want = reference.gatherRmsNorm(h, rows, weight, undefined, EPS).y;
  const result = gatherRmsNorm(h, rows, weight);
  for (const array of [h, rows, weight]) array.fill(1);
  expectClose((await result).y, want);
});

test('misuse', async () => {
  const [h, rows, weight] = [random(6, 1), Int32Array.of(0, 1), random(3, 2)];
  await refuses(gatherRmsNorm([1] as never, rows, weight), 'ERR_DTYPE', '[gatherRmsNorm] Expected h to be a Float32Array or a Tensor but received Array(1)');
  await refuses(gatherRmsNorm(h, [0] as never, weight), 'ERR_DTYPE', '[gatherRmsNorm] Expected rows to be a Int32Array but received Array(1)');
  await refuses(gatherRmsNorm(h, rows, new Float32Array(0)), 'ERR_SHAPE', '[gatherRmsNorm] Expected weight to have at least 1 element but received 0');
  await refuses(gatherRmsNorm(random(5, 1), rows, weight), 'ERR_SHAPE', '[gatherRmsNorm] Expected h to have a multiple of channels = 3 elements but received 5');
  await refuses(gatherRmsNorm(h, Int32Array.of(0, 2), weight), 'ERR_RANGE', '[gatherRmsNorm] Expected row 1 to be an integer from 0 to 1 but received 2');
  await refuses(gatherRmsNorm(h, Int32Array.of(-1), weight), 'ERR_RANGE', '[gatherRmsNorm] Expected row 0 to be an integer from 0 to 1 but received -1');
  await refuses(gatherRmsNorm(h, rows, weight, { step: random(2, 1) }), 'ERR_SHAPE', '[gatherRmsNorm] Expected step to have channels = 3 elements but received 2');
  await refuses(gatherRmsNorm(h, rows, weight, { eps: -1 }), 'ERR_RANGE', '[gatherRmsNorm] Expected eps to be a number from 0 to 1 but received -1');
  await refuses(gatherRmsNorm(h, rows, weight, { steps: weight } as never), 'ERR_ARGUMENT', "[gatherRmsNorm] Expected options among eps, step, output, signal, device but received 'steps'; did you mean 'step'?");
  await refuses(gatherRmsNorm(h, rows, weight, { output: 1 } as never), 'ERR_ARGUMENT', "[gatherRmsNorm] Expected output to be one of 'array', 'tensor' but received 1");
  await refuses(gatherRmsNormGrad(h, rows, weight, weight), 'ERR_SHAPE', '[gatherRmsNormGrad] Expected dy to have rows*channels = 6 elements but received 3');
});
