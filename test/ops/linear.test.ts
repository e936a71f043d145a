import { linear, linearGrad } from '../../lib/kernels';
import { expectClose, random, refuses } from './support';

function reference(x: ArrayLike<number>, w: ArrayLike<number>, bias: ArrayLike<number> | null, [rows, outputs, inputs]: readonly [number, number, number]): number[] {
  return Array.from({ length: rows * outputs }, (_, i) => {
    const [m, n] = [Math.floor(i / outputs), i % outputs];
    let sum = bias === null ? 0 : bias[n]!;
    for (let c = 0; c < inputs; c++) sum += x[m * inputs + c]! * w[n * inputs + c]!;
    return sum;
  });
}

const transposed = (x: ArrayLike<number>, rows: number): number[] => Array.from({ length: x.length }, (_, i) => x[(i % rows) * (x.length / rows) + Math.floor(i / rows)]!);
/** The float nearest below whose lower 16 bits are zero, and its bits. */
const bits = (x: Float32Array): Uint16Array => Uint16Array.from(new Uint32Array(x.buffer), (word) => word >>> 16);
const widened = (x: Uint16Array): Float32Array => new Float32Array(Uint32Array.from(x, (word) => word << 16).buffer);

describe.each([[0, 3, 5], [1, 1, 1], [1, 33, 64], [7, 5, 31], [32, 17, 128], [33, 40, 127]] as const)('%i x %i x %i', (rows, outputs, inputs) => {
  const shape = [rows, outputs, inputs] as const;
  const [x, dout, bias] = [random(rows * inputs, 1), random(rows * outputs, 3), random(outputs, 4)];
  const weights = { f32: random(outputs * inputs, 2), bf16: bits(random(outputs * inputs, 2)) };

  test.each(['f32', 'bf16'] as const)('%s', async (kind) => {
    const w = weights[kind];
    const wide = w instanceof Uint16Array ? widened(w) : w;
    expectClose(await linear(x, w, bias, { inputs, outputs }), reference(x, wide, bias, shape));
    expectClose(await linear(x, w, null, { inputs, outputs }), reference(x, wide, null, shape));
    const { dx, dw, dbias } = await linearGrad(x, w, dout, { inputs, outputs });
    expectClose(dx, reference(dout, transposed(wide, outputs), null, [rows, inputs, outputs]));
    expectClose(dw, rows === 0 ? new Float32Array(outputs * inputs) : reference(transposed(dout, rows), transposed(x, rows), null, [outputs, inputs, rows]));
    expectClose(dbias, reference(rows === 0 ? [] : transposed(dout, rows), new Float32Array(rows).fill(1), null, [outputs, 1, rows]));
  });
});

test('the example of the documentation', async () => {
  expect([...(await linear(Float32Array.of(1, 2), Float32Array.of(3, 4), Float32Array.of(10), { inputs: 2, outputs: 1 }))]).toEqual([21]);
});

test('misuse', async () => {
  const w = random(6, 1);
  await refuses(linear(random(4, 1), w, null, undefined as never), 'ERR_ARGUMENT', '[linear] Expected inputs to be an integer from 1 to 2147483647 but received undefined');
  await refuses(linear(random(5, 1), w, null, { inputs: 2, outputs: 3 }), 'ERR_SHAPE', '[linear] Expected x to have a multiple of inputs = 2 elements but received 5');
  await refuses(linear(random(4, 1), w, null, { inputs: 2, outputs: 4 }), 'ERR_SHAPE', '[linear] Expected weight to have outputs*inputs = 8 elements but received 6');
  await refuses(linear(random(4, 1), new Int16Array(6) as never, null, { inputs: 2, outputs: 3 }), 'ERR_DTYPE', '[linear] Expected weight to be a Float32Array but received Int16Array(6)');
  await refuses(linear(random(4, 1), w, random(2, 1), { inputs: 2, outputs: 3 }), 'ERR_SHAPE', '[linear] Expected bias to have outputs = 3 elements but received 2');
  await refuses(linear(random(4, 1), w, null, { inputs: 2 ** 31 - 1, outputs: 2 ** 31 - 1 }), 'ERR_RANGE', '[linear] Expected weight to have at most 8589934592 elements but received sizes 2147483647 x 2147483647');
  await refuses(linearGrad(random(4, 1), w, random(5, 1), { inputs: 2, outputs: 3 }), 'ERR_SHAPE', '[linearGrad] Expected dout to have rows*outputs = 6 elements but received 5');
});
