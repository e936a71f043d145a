import { globalNorm, Tensor } from '../../lib/kernels';
import { bf16Bits, bf16Value, f16Bits, f16Value } from '../reference/halves';
import { random, refuses } from './support';

const squares = (x: ArrayLike<number>): number => Array.from(x).reduce((sum, v) => sum + v * v, 0);

test('tensors of many lengths, empty ones too, arrays and device memory mixed', async () => {
  const arrays = [0, 1, 31, 32, 33, 1000, 70_000].map((length, i) => random(length, i + 1));
  const want = Math.sqrt(arrays.reduce((sum, x) => sum + squares(x), 0));
  using tensor = new Tensor([1000], { device: 'cpu' });
  await tensor.write(arrays[5]!);
  for (const tensors of [arrays, [...arrays.slice(0, 5), tensor, arrays[6]!]]) {
    const { norm } = await globalNorm(tensors, { device: 'cpu' });
    expect(Math.abs(norm / want - 1)).toBeLessThan(72_000 * 2 ** -53);  // what the plain sum of the reference may lose
  }
  expect(await globalNorm(arrays)).toEqual(await globalNorm(arrays));
});

test.each(['f16', 'bf16'] as const)('%s bits beside f32', async (dtype) => {
  const [bitsOf, valueFrom] = dtype === 'f16' ? [f16Bits, f16Value] : [bf16Bits, bf16Value];
  const [bits, plain] = [Uint16Array.from(random(333, 3), bitsOf), random(50, 4)];
  const { norm } = await globalNorm([plain, bits], { dtype });
  expect(Math.abs(norm / Math.sqrt(squares(plain) + squares(Array.from(bits, valueFrom))) - 1)).toBeLessThan(1e-14);
});

test('nothing is 0; squares beyond float32 are no trouble; NaN and infinity pass through', async () => {
  expect(await globalNorm([])).toEqual({ norm: 0 });
  expect(await globalNorm([new Float32Array(0)])).toEqual({ norm: 0 });
  const { norm } = await globalNorm([Float32Array.of(3e30), Float32Array.of(4e30, 1e-30)]);
  expect(norm / 5e30).toBeCloseTo(1, 6);
  expect(await globalNorm([Float32Array.of(1, -Infinity)])).toEqual({ norm: Infinity });
  expect(await globalNorm([Float32Array.of(NaN), Float32Array.of(1)])).toEqual({ norm: NaN });
});

test('the example of the documentation', async () => {
  expect(await globalNorm([Float32Array.of(3), Float32Array.of(0, 4)])).toEqual({ norm: 5 });
});

test('inputs are copied: changing them at once changes nothing', async () => {
  const x = Float32Array.of(3, 4);
  const result = globalNorm([x]);
  x.fill(NaN);
  expect(await result).toEqual({ norm: 5 });
});

test('misuse', async () => {
  await refuses(globalNorm(undefined as never), 'ERR_ARGUMENT', '[globalNorm] Expected tensors to be an array but received undefined');
  await refuses(globalNorm(random(3, 1) as never), 'ERR_ARGUMENT', '[globalNorm] Expected tensors to be an array but received Float32Array(3)');
  await refuses(globalNorm([random(3, 1), new Int32Array(2) as never]), 'ERR_DTYPE', '[globalNorm] Expected tensor 1 to be a Float32Array, a Uint16Array or a Tensor but received Int32Array(2)');
  await refuses(globalNorm([new Uint16Array(2)]), 'ERR_DTYPE', "[globalNorm] Expected dtype to be 'f16' or 'bf16' for tensor 0, a Uint16Array, but received undefined");
  await refuses(globalNorm(new Array<Float32Array>(2)), 'ERR_DTYPE', '[globalNorm] Expected tensor 0 to be a Float32Array, a Uint16Array or a Tensor but received undefined');
  await refuses(globalNorm([], { dtype: 'f8' } as never), 'ERR_ARGUMENT', "[globalNorm] Expected dtype to be one of 'f32', 'f16', 'bf16' but received \"f8\"");
  await refuses(globalNorm([], { dtyp: 'f16' } as never), 'ERR_ARGUMENT', "[globalNorm] Expected options among dtype, signal, device but received 'dtyp'; did you mean 'dtype'?");
  await refuses(globalNorm(Array<Float32Array>(2 ** 20 + 1).fill(new Float32Array(0))), 'ERR_RANGE', '[globalNorm] Expected the number of tensors to be an integer from 0 to 1048576 but received 1048577');
  using tensor = new Tensor([2], { device: 'cpu' });
  tensor.dispose();
  await refuses(globalNorm([tensor]), 'ERR_DISPOSED', '[globalNorm] Expected tensor 0 to be a living Tensor but received one that is disposed');
});

test('an aborted signal rejects with its reason', async () => {
  const reason = new Error('enough');
  await expect(globalNorm([random(4, 1)], { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
});
