import { activation, activationGrad, type ActivationKind } from '../../lib/kernels';
import { expectClose, expectGradient, random, refuses } from './support';

/** Error function by its series, exact to float64 for |x| < 3. */
function erf(x: number): number {
  let term = x;
  let sum = x;
  for (let n = 1; n < 80; n++) {
    term *= (-x * x) / n;
    sum += term / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
}

const REFERENCE: Record<ActivationKind, (x: number) => number> = {
  quick_gelu: (x) => x / (1 + Math.exp(-1.702 * x)), gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)), silu: (x) => x / (1 + Math.exp(-x)),
};

describe.each(Object.keys(REFERENCE) as ActivationKind[])('%s', (kind) => {
  test.each([0, 1, 31, 33, 1000])('%i elements', async (size) => {
    const [x, dout] = [random(size, 1), random(size, 2)];
    expectClose(await activation(kind, x), Array.from(x, REFERENCE[kind]));
    expectGradient(await activationGrad(kind, x, dout), (at) => at.map(REFERENCE[kind]), x, dout);
  });

  test('far from zero it is 0 or x, without NaN', async () => {
    expectClose(await activation(kind, Float32Array.of(-1e4, -300, 300, 1e4)), [0, 0, 300, 1e4]);
    expectClose(await activationGrad(kind, Float32Array.of(-1e4, -300, 300, 1e4), Float32Array.of(1, 1, 1, 1)), [0, 0, 1, 1]);
  });
});

test('misuse', async () => {
  await refuses(activation('glu' as never, random(1, 1)), 'ERR_ARGUMENT', "[activation] Expected kind to be one of 'quick_gelu', 'gelu', 'silu' but received \"glu\"; did you mean 'gelu'?");
  await refuses(activation('silu', undefined as never), 'ERR_DTYPE', '[activation] Expected x to be a Float32Array but received undefined');
  await refuses(activationGrad('silu', random(2, 1), random(1, 1)), 'ERR_SHAPE', '[activationGrad] Expected dout to have as many as x = 2 elements but received 1');
});
