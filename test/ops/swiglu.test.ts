import { swiglu, swigluGrad } from '../../lib/kernels';
import { expectClose, expectGradient, random, refuses } from './support';

const reference = (gate: ArrayLike<number>, up: ArrayLike<number>): number[] => Array.from(gate, (g, i) => (g / (1 + Math.exp(-g))) * up[i]!);

test.each([0, 1, 31, 32, 33, 1000])('%i elements', async (size) => {
  const [gate, up, dout] = [random(size, 1), random(size, 2), random(size, 3)];
  expectClose(await swiglu(gate, up), reference(gate, up));
  const { dgate, dup } = await swigluGrad(gate, up, dout);
  expectGradient(dgate, (at) => reference(at, up), gate, dout);
  expectGradient(dup, (at) => reference(gate, at), up, dout);
});

test('far from zero the gate is open or shut, without NaN', async () => {
  const big = Float32Array.of(-1e4, -200, 200, 1e4);
  expectClose(await swiglu(big, Float32Array.of(1, 1, 1, 1)), [0, 0, 200, 1e4]);
  expectClose((await swigluGrad(big, Float32Array.of(1, 1, 1, 1), Float32Array.of(1, 1, 1, 1))).dgate, [0, 0, 1, 1]);
});

test('misuse', async () => {
  await refuses(swiglu(random(2, 1), random(3, 1)), 'ERR_SHAPE', '[swiglu] Expected up to have as many as gate = 2 elements but received 3');
  await refuses(swigluGrad(random(2, 1), random(2, 1), random(1, 1)), 'ERR_SHAPE', '[swigluGrad] Expected dout to have as many as gate = 2 elements but received 1');
  await refuses(swiglu(random(2, 1), random(2, 1), { signal: 1 } as never), 'ERR_ARGUMENT', '[swiglu] Expected signal to be an AbortSignal but received 1');
});
