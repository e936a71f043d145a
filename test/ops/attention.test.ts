import { attention, attentionGrad, type AttentionOptions } from '../../lib/kernels';
import { attentionReference, type AttentionCase } from '../reference/attention';
import { expectClose, expectGradient, offsets, random, refuses } from './support';

const total = (lengths: readonly number[]): number => lengths.reduce((a, n) => a + n, 0);

const shapes: AttentionCase[] = [
  { queries: [5, 1, 7], keys: [5, 1, 7], heads: 4, kvHeads: 2, headDim: 16, causal: true },
  { queries: [1, 1, 0, 1], keys: [9, 1, 3, 40], heads: 6, kvHeads: 2, headDim: 10, causal: true },
  { queries: [3, 0, 17], keys: [20, 4, 33], heads: 7, kvHeads: 1, headDim: 6, causal: true },
  { queries: [4, 2], keys: [3, 5], heads: 3, kvHeads: 3, headDim: 8, causal: false },
  { queries: [2], keys: [3], heads: 5, kvHeads: 1, headDim: 1, causal: true },
  { queries: [], keys: [], heads: 2, kvHeads: 1, headDim: 4, causal: true },
];

test.each(shapes)('%j', async (shape) => {
  const { queries, keys, heads, kvHeads, headDim, causal } = shape;
  const options: AttentionOptions = { heads, kvHeads, headDim, causal, cuQ: offsets(queries), cuK: offsets(keys) };
  const q = random(total(queries) * heads * headDim, 1);
  const [k, v] = [random(total(keys) * kvHeads * headDim, 2), random(total(keys) * kvHeads * headDim, 3)];
  const want = attentionReference(q, k, v, shape);
  const got = await attention(q, k, v, options);
  expectClose(got.out, want.out);
  expectClose(got.lse, want.lse);
  const dout = random(q.length, 4);
  const { dq, dk, dv } = await attentionGrad(q, k, v, dout, options);
  expectGradient(dq, (at) => attentionReference(at, k, v, shape).out, q, dout);
  expectGradient(dk, (at) => attentionReference(q, at, v, shape).out, k, dout);
  expectGradient(dv, (at) => attentionReference(q, k, at, shape).out, v, dout);
});

test('the example of the documentation', async () => {
  const one = Int32Array.of(0, 1);
  const { out, lse } = await attention(Float32Array.of(1), Float32Array.of(2), Float32Array.of(7), { heads: 1, headDim: 1, cuQ: one, cuK: one });
  expect([...out, ...lse]).toEqual([7, 2]);
});

test('scores of a thousand do not overflow', async () => {
  const cu = Int32Array.of(0, 2);
  const { out, lse } = await attention(Float32Array.of(0, 1000), Float32Array.of(1, -1), Float32Array.of(3, 4), { heads: 1, headDim: 1, cuQ: cu, cuK: cu });
  expect([...out, ...lse]).toEqual([3, 3, 0, 1000]);
});

test('misuse', async () => {
  const cu = Int32Array.of(0, 2);
  const x = random(8, 1);
  const good = { heads: 1, headDim: 4, cuQ: cu, cuK: cu };
  const call = (change: object): Promise<unknown> => attention(x, x, x, { ...good, ...change });
  await refuses(call({ kvHeads: null }), 'ERR_ARGUMENT', '[attention] Expected kvHeads to be an integer from 1 to 1 but received null');
  await refuses(call({ causal: null }), 'ERR_ARGUMENT', '[attention] Expected causal to be a boolean but received null');
  await refuses(call({ heads: 3, kvHeads: 2 }), 'ERR_RANGE', '[attention] Expected kvHeads to divide heads = 3 but received 2');
  await refuses(call({ cuQ: [0, 2] }), 'ERR_DTYPE', '[attention] Expected cuQ to be a Int32Array but received Array(2)');
  await refuses(call({ cuQ: new Int32Array(0) }), 'ERR_SHAPE', '[attention] Expected cuQ to have at least 1 element but received 0');
  await refuses(call({ cuQ: Int32Array.of(1, 2) }), 'ERR_RANGE', '[attention] Expected cuQ to start at 0 but received 1');
  await refuses(call({ cuK: Int32Array.of(0, 3, 2) }), 'ERR_RANGE', '[attention] Expected cuK never to fall but received 3 then 2 at 2');
  await refuses(call({ cuK: Int32Array.of(0, 1, 2) }), 'ERR_SHAPE', '[attention] Expected cuK to have as many elements as cuQ = 2 but received 3');
  await refuses(call({ cuK: Int32Array.of(0, 1) }), 'ERR_RANGE', '[attention] Expected sequence 0 to have at least 2 keys for its 2 query rows but received 1');
  await refuses(call({ headDim: 5 }), 'ERR_SHAPE', '[attention] Expected q to have rows*heads*headDim = 10 elements but received 8');
  await refuses(attention(x, random(4, 1), x, good), 'ERR_SHAPE', '[attention] Expected k to have rows*kvHeads*headDim = 8 elements but received 4');
  await refuses(attention(x, x, random(4, 1), good), 'ERR_SHAPE', '[attention] Expected v to have rows*kvHeads*headDim = 8 elements but received 4');
  await refuses(attentionGrad(x, x, x, random(4, 1), good), 'ERR_SHAPE', '[attentionGrad] Expected dout to have as many as q = 8 elements but received 4');
});
