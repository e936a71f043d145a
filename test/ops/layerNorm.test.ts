import { layerNorm, layerNormGrad } from '../../lib/kernels';
import { expectClose, expectGradient, random, refuses } from './support';

const EPS = 1e-6;
function reference(x: ArrayLike<number>, weight: ArrayLike<number>, bias: ArrayLike<number>): number[] {
  const width = weight.length;
  const rows = Array.from({ length: x.length / width }, (_, t) => Array.from(x).slice(t * width, (t + 1) * width));
  return rows.flatMap((row) => {
    const mean = row.reduce((sum, v) => sum + v, 0) / width;
    const inverse = 1 / Math.sqrt(row.reduce((sum, v) => sum + (v - mean) ** 2, 0) / width + EPS);
    return row.map((v, c) => (v - mean) * inverse * weight[c]! + bias[c]!);
  });
}

test.each([[0, 8], [3, 31], [2, 32], [5, 33], [2, 128], [1, 1000]])('%i rows of %i channels', async (rows, width) => {
  const [x, weight, bias, dout] = [random(rows * width, 1), random(width, 2), random(width, 3), random(rows * width, 4)];
  expectClose(await layerNorm(x, weight, bias), reference(x, weight, bias));
  const { dx, dweight, dbias } = await layerNormGrad(x, weight, bias, dout);
  expectGradient(dx, (at) => reference(at, weight, bias), x, dout);
  expectGradient(dweight, (at) => reference(x, at, bias), weight, dout);
  expectGradient(dbias, (at) => reference(x, weight, at), bias, dout);
});

test('the example of the documentation; one channel is its own mean', async () => {
  expectClose(await layerNorm(Float32Array.of(1, 3), Float32Array.of(1, 1), Float32Array.of(0, 5)), [-1 / Math.sqrt(1 + EPS), 5 + 1 / Math.sqrt(1 + EPS)]);
  expect([...(await layerNorm(Float32Array.of(7), Float32Array.of(3), Float32Array.of(5)))]).toEqual([5]);
});

test('misuse', async () => {
  const [x, weight] = [random(6, 1), random(3, 2)];
  await refuses(layerNorm(x, weight, random(2, 1)), 'ERR_SHAPE', '[layerNorm] Expected bias to have channels = 3 elements but received 2');
  await refuses(layerNorm(x, weight, weight, { eps: '1' } as never), 'ERR_ARGUMENT', '[layerNorm] Expected eps to be a number of at least 0 but received "1"');
  await refuses(layerNormGrad(x, weight, weight, new Float32Array(0)), 'ERR_SHAPE', '[layerNormGrad] Expected dout to have as many as x = 6 elements but received 0');
});
