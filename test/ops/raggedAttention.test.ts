import { raggedAttention, raggedAttentionGrad, type RaggedAttentionOptions } from '../../lib/kernels';
import { attentionReference, type AttentionCase } from '../reference/attention';
import { bf16Bits, bf16Value, f16Bits, f16Value } from '../reference/halves';
import { expectClose, expectGradient, offsets, random, refuses } from './support';

const total = (lengths: readonly number[]): number => lengths.reduce((a, n) => a + n, 0);

const shapes: AttentionCase[] = [
  { queries: [5, 0, 7], keys: [5, 2, 19], heads: 7, kvHeads: 1, headDim: 16, causal: true },
  { queries: [1, 33], keys: [40, 33], heads: 4, kvHeads: 2, headDim: 5, causal: true },
  { queries: [4, 2], keys: [3, 5], heads: 3, kvHeads: 3, headDim: 24, causal: false },
];
const HALVES = { f16: { bits: f16Bits, value: f16Value, unit: 2 ** -11 }, bf16: { bits: bf16Bits, value: bf16Value, unit: 2 ** -8 } } as const;

function inputs(shape: AttentionCase): { options: RaggedAttentionOptions; q: Float32Array; k: Float32Array; v: Float32Array; dout: Float32Array } {
  const { queries, keys, heads, kvHeads, headDim, causal } = shape;
  const [rows, width] = [total(queries) * heads * headDim, total(keys) * kvHeads * headDim];
  return { options: { heads, kvHeads, headDim, causal, cuQ: offsets(queries), cuK: offsets(keys) }, q: random(rows, 1), k: random(width, 2), v: random(width, 3), dout: random(rows, 4) };
}

test.each(shapes)('f32 %j', async (shape) => {
  const { options, q, k, v, dout } = inputs(shape);
  const want = attentionReference(q, k, v, shape);
  const got = await raggedAttention(q, k, v, options);
  expectClose(got.out, want.out);
  expectClose(got.lse, want.lse);
  const { dq, dk, dv } = await raggedAttentionGrad(q, k, v, dout, options);
  expectGradient(dq, (at) => attentionReference(at, k, v, shape).out, q, dout);
  expectGradient(dk, (at) => attentionReference(q, at, v, shape).out, k, dout);
  expectGradient(dv, (at) => attentionReference(q, k, at, shape).out, v, dout);
});

describe.each(['f16', 'bf16'] as const)('%s', (dtype) => {
  const { bits, value, unit } = HALVES[dtype];
  const rounded = (values: Float32Array): Uint16Array => Uint16Array.from(values, bits);
  const widened = (values: Uint16Array): number[] => Array.from(values, value);

  test.each(shapes)('%j: the f32 result of the same numbers, rounded once', async (shape) => {
    const { options, q, k, v, dout } = inputs(shape);
    const [q16, k16, v16, dout16] = [q, k, v, dout].map(rounded) as [Uint16Array, Uint16Array, Uint16Array, Uint16Array];
    const wide = [q16, k16, v16, dout16].map((x) => Float32Array.from(widened(x))) as [Float32Array, Float32Array, Float32Array, Float32Array];
    const want = attentionReference(wide[0], wide[1], wide[2], shape);
    const got = await raggedAttention(q16, k16, v16, { ...options, dtype, device: 'cpu' });
    expect(Object.prototype.toString.call(got.out)).toBe('[object Uint16Array]');
    expectClose(got.lse, want.lse);
    widened(got.out).forEach((x, i) => { expect(Math.abs(x - want.out[i]!)).toBeLessThanOrEqual(unit * Math.abs(want.out[i]!) + 1e-5); });
    // Gradients against those of f32, which central differences check above; the rounded output enters them: two half units of the largest.
    const exact = await raggedAttentionGrad(...wide, options);
    const grad = await raggedAttentionGrad(q16, k16, v16, dout16, { ...options, dtype, device: 'cpu' });
    for (const name of ['dq', 'dk', 'dv'] as const) {
      const largest = exact[name].reduce((most, x) => Math.max(most, Math.abs(x)), 0);
      widened(grad[name]).forEach((x, i) => { expect(Math.abs(x - exact[name][i]!)).toBeLessThanOrEqual(2 * unit * largest); });
    }
  });
});

test('the example of the documentation', async () => {
  const one = Int32Array.of(0, 1);
  const seven = Uint16Array.of(0x40e0);
  const { out, lse } = await raggedAttention(seven, seven, seven, { heads: 1, headDim: 1, cuQ: one, cuK: one, dtype: 'bf16' });
  expect([...out, ...lse]).toEqual([0x40e0, 49]);
});

test('misuse', async () => {
  const cu = Int32Array.of(0, 2);
  const x = random(8, 1);
  const halves = new Uint16Array(8);
  const good = { heads: 1, headDim: 4, cuQ: cu, cuK: cu };
  const call = (change: object, q: unknown = x): Promise<unknown> => raggedAttention(q as Float32Array, x, x, { ...good, ...change });
  await refuses(call({}, halves), 'ERR_DTYPE', "[raggedAttention] Expected dtype to be 'f16' or 'bf16' for q, a Uint16Array, but received undefined");
  await refuses(call({ dtype: 'bf16' }), 'ERR_DTYPE', "[raggedAttention] Expected q to be a Uint16Array with dtype 'bf16' but received f32 values");
  await refuses(call({ dtype: 'bf16' }, halves), 'ERR_DTYPE', "[raggedAttention] Expected k to be a Uint16Array with dtype 'bf16' but received f32 values");
  await refuses(call({ dtype: 'double' }), 'ERR_ARGUMENT', "[raggedAttention] Expected dtype to be one of 'f32', 'f16', 'bf16' but received \"double\"");
  await refuses(call({ headDim: 257 }), 'ERR_RANGE', '[raggedAttention] Expected headDim to be an integer from 1 to 256 but received 257');
  await refuses(call({ cuK: Int32Array.of(0, 1) }), 'ERR_RANGE', '[raggedAttention] Expected sequence 0 to have at least 2 keys for its 2 query rows but received 1');
  await refuses(call({ head: 1 }), 'ERR_ARGUMENT',
    "[raggedAttention] Expected options among heads, kvHeads, headDim, cuQ, cuK, causal, dtype, signal, device but received 'head'; did you mean 'heads'?");
  await refuses(raggedAttentionGrad(x, x, x, random(4, 1), good), 'ERR_SHAPE', '[raggedAttentionGrad] Expected dout to have as many as q = 8 elements but received 4');
});
