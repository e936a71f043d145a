import { rmsNorm, rmsNormGrad } from '../../lib/kernels';
import { expectClose, expectGradient, random, refuses } from './support';

const EPS = 1e-6;
function reference(x: ArrayLike<number>, weight: ArrayLike<number>): number[] {
  const width = weight.length;
  const rows = Array.from({ length: x.length / width }, (_, t) => Array.from(x).slice(t * width, (t + 1) * width));
  return rows.flatMap((row) => {
    const inverse = 1 / Math.sqrt(row.reduce((sum, v) => sum + v * v, 0) / width + EPS);
    return row.map((v, c) => v * inverse * weight[c]!);
  });
}

test.each([[0, 8], [3, 31], [2, 32], [5, 33], [2, 127], [1, 1000]])('%i rows of %i channels', async (rows, width) => {
  const [x, weight, dout] = [random(rows * width, 1), random(width, 2), random(rows * width, 3)];
  expectClose(await rmsNorm(x, weight), reference(x, weight));
  const { dx, dweight } = await rmsNormGrad(x, weight, dout);
  expectGradient(dx, (at) => reference(at, weight), x, dout);
  expectGradient(dweight, (at) => reference(x, at), weight, dout);
});

test('one channel: the gradient is what cancellation leaves', async () => {
  const [x, weight, dout] = [Float32Array.of(1.25), Float32Array.of(1.5), Float32Array.of(-0.75)];
  expectClose(await rmsNorm(x, weight), reference(x, weight));
  const { dx } = await rmsNormGrad(x, weight, dout);
  // Two terms of size weight * dout / x, each rounded a few times, nearly cancel.
  const term = (1.5 * 0.75) / 1.25;
  expect(Math.abs(dx[0]! + (term * EPS) / (1.25 ** 2 + EPS))).toBeLessThan(8 * term * 2 ** -24);
});

test('the example of the documentation', async () => {
  expectClose(await rmsNorm(Float32Array.of(3, 4), Float32Array.of(1, 1)), [3 / Math.sqrt(12.5), 4 / Math.sqrt(12.5)]);
});

test('NaN stays in its row', async () => {
  const out = await rmsNorm(Float32Array.of(NaN, 1, 3, 4), Float32Array.of(1, 1));
  expect([...out].map(Number.isNaN)).toEqual([true, true, false, false]);
});

test('misuse', async () => {
  const [x, weight] = [random(6, 1), random(3, 2)];
  await refuses(rmsNorm([1] as never, weight), 'ERR_DTYPE', '[rmsNorm] Expected x to be a Float32Array but received Array(1)');
  await refuses(rmsNorm(x, new Float64Array(3) as never), 'ERR_DTYPE', '[rmsNorm] Expected weight to be a Float32Array but received Float64Array(3)');
  await refuses(rmsNorm(x, new Float32Array(0)), 'ERR_SHAPE', '[rmsNorm] Expected weight to have at least 1 element but received 0');
  await refuses(rmsNorm(random(5, 1), weight), 'ERR_SHAPE', '[rmsNorm] Expected x to have a multiple of channels = 3 elements but received 5');
  await refuses(rmsNorm(x, weight, { eps: -1 }), 'ERR_RANGE', '[rmsNorm] Expected eps to be a number of at least 0 but received -1');
  await refuses(rmsNorm(x, weight, { epz: 1 } as never), 'ERR_ARGUMENT', "[rmsNorm] Expected options among eps, signal, device but received 'epz'; did you mean 'eps'?");
  await refuses(rmsNormGrad(x, weight, weight), 'ERR_SHAPE', '[rmsNormGrad] Expected dout to have as many as x = 6 elements but received 3');
});

test('inputs are copied: changing them at once changes nothing', async () => {
  const [x, weight] = [random(64, 1), random(32, 2)];
  const want = reference(x, weight);
  const result = rmsNorm(x, weight);
  x.fill(NaN);
  weight.fill(NaN);
  expectClose(await result, want);
});

test('an aborted signal rejects with its reason', async () => {
  const reason = new Error('enough');
  await expect(rmsNorm(random(4, 1), random(2, 2), { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
});
