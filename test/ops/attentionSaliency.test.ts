import { attention, attentionSaliency, attentionSaliencyGrad, type SaliencyOptions } from '../../lib/kernels';
import { native } from '../../lib/native';
import { lastRowLse, saliency, type SaliencyShape } from '../reference/saliency';
import { expectClose, expectGradient, offsets, random, refuses } from './support';

const total = (lengths: readonly number[]): number => lengths.reduce((sum, n) => sum + n, 0);
const every = (n: number, step: number): number[] => Array.from({ length: n }, (_, i) => i).filter((i) => i % step === 0);

const shapes: SaliencyShape[] = [
  { queries: [5, 1, 7], keys: [5, 1, 7], columns: [every(5, 2), [0], every(7, 1)], heads: 4, kvHeads: 2, headDim: 16 },
  { queries: [1, 0, 1, 1], keys: [129, 5, 1, 33], columns: [every(129, 3), [0, 4], [], [32, 0, 32]], heads: 7, kvHeads: 1, headDim: 10 },
  { queries: [2, 1], keys: [127, 0], columns: [every(127, 1), []], heads: 6, kvHeads: 2, headDim: 128 },
  { queries: [3], keys: [31], columns: [[]], heads: 2, kvHeads: 2, headDim: 1 },
  { queries: [], keys: [], columns: [], heads: 2, kvHeads: 1, headDim: 4 },
];

function optionsOf({ queries, keys, columns, heads, kvHeads, headDim }: SaliencyShape): SaliencyOptions<'array'> {
  return { heads, kvHeads, headDim, cuQ: offsets(queries), cuK: offsets(keys), columns: Int32Array.from(columns.flat()), cuColumns: offsets(columns.map((c) => c.length)) };
}

test.each(shapes)('$queries rows, $keys keys, $heads/$kvHeads heads of $headDim', async (shape) => {
  const q = random(total(shape.queries) * shape.heads * shape.headDim, 1);
  const k = random(total(shape.keys) * shape.kvHeads * shape.headDim, 2);
  const options = optionsOf(shape);
  const want = saliency(q, k, shape);
  expectClose(await attentionSaliency(q, k, options), want);
  // e^(score - lse) takes over the rounding of lse, half a unit of its size, as a relative error
  expectClose(await attentionSaliency(q, k, { ...options, lse: lastRowLse(q, k, shape) }), want);
  const dsaliency = random(want.length, 3);
  const { dq, dk } = await attentionSaliencyGrad(q, k, dsaliency, options);
  expectGradient(dq, (at) => saliency(at, k, shape), q, dsaliency);
  expectGradient(dk, (at) => saliency(q, at, shape), k, dsaliency);
});

test('all keys by default; they add up to 1; log-sum-exps of attention() give the same', async () => {
  const [q, k] = [random(9 * 6 * 8, 1), random(50 * 3 * 8, 2)];
  const options = { heads: 6, kvHeads: 3, headDim: 8, cuQ: offsets([4, 5]), cuK: offsets([20, 30]) };
  const got = await attentionSaliency(q, k, options);
  expectClose([got.subarray(0, 20), got.subarray(20)].map((own) => own.reduce((sum, a) => sum + a, 0)), [1, 1]);
  const { lse } = await attention(q, k, k, options);
  expectClose(await attentionSaliency(q, k, { ...options, lse }), got);
});

test('the example of the documentation', async () => {
  const options = { heads: 1, headDim: 1, cuQ: Int32Array.of(0, 1), cuK: Int32Array.of(0, 2) };
  expectClose(await attentionSaliency(Float32Array.of(1), Float32Array.of(0, Math.log(3)), options), [0.25, 0.75]);
});

test('scores of a thousand do not overflow; NaN stays in its sequence', async () => {
  const options = { heads: 1, headDim: 1, cuQ: offsets([1, 1]), cuK: offsets([2, 2]) };
  expect([...await attentionSaliency(Float32Array.of(1000, 1), Float32Array.of(1, -1, 0, NaN), options)]).toEqual([1, 0, NaN, NaN]);
});

test('same input, same bits, also on another number of threads and beside other sequences', async () => {
  const [q, k] = [random(2 * 4 * 64, 1), random(3000 * 2 * 64, 2)];
  const options = { heads: 4, kvHeads: 2, headDim: 64 };
  const both = await attentionSaliency(q, k, { ...options, cuQ: offsets([1, 1]), cuK: offsets([2000, 1000]) });
  const second = await attentionSaliency(q.slice(4 * 64), k.slice(2000 * 2 * 64), { ...options, cuQ: offsets([1]), cuK: offsets([1000]) });
  expect(second).toEqual(both.slice(2000));
  const { threads } = native().buildInfo();
  native().setThreads(threads === 1 ? 3 : 1);
  expect(await attentionSaliency(q, k, { ...options, cuQ: offsets([1, 1]), cuK: offsets([2000, 1000]) })).toEqual(both);
  native().setThreads(threads);
});

test('misuse', async () => {
  const cu = Int32Array.of(0, 2);
  const x = random(8, 1);
  const good = { heads: 1, headDim: 4, cuQ: cu, cuK: cu };
  const call = (change: object): Promise<unknown> => attentionSaliency(x, x, { ...good, ...change });
  await refuses(attentionSaliency(x, x, undefined as never), 'ERR_ARGUMENT', '[attentionSaliency] Expected heads to be an integer from 1 to 4096 but received undefined');
  await refuses(call({ heads: 3, kvHeads: 2 }), 'ERR_RANGE', '[attentionSaliency] Expected kvHeads to divide heads = 3 but received 2');
  await refuses(call({ cuQ: [0, 2] }), 'ERR_DTYPE', '[attentionSaliency] Expected cuQ to be a Int32Array but received Array(2)');
  await refuses(call({ cuK: Int32Array.of(0, 1, 2) }), 'ERR_SHAPE', '[attentionSaliency] Expected cuK to have as many as cuQ = 2 elements but received 3');
  await refuses(call({ cuK: Int32Array.of(1, 2) }), 'ERR_RANGE', '[attentionSaliency] Expected cuK to start at 0 but received 1');
  await refuses(call({ columns: Int32Array.of(0) }), 'ERR_DTYPE', '[attentionSaliency] Expected cuColumns to be a Int32Array but received undefined');
  await refuses(call({ cuColumns: cu }), 'ERR_DTYPE', '[attentionSaliency] Expected columns to be a Int32Array but received undefined');
  await refuses(call({ columns: Int32Array.of(0), cuColumns: Int32Array.of(0, 1, 1) }), 'ERR_SHAPE', '[attentionSaliency] Expected cuColumns to have as many as cuK = 2 elements but received 3');
  await refuses(call({ columns: Int32Array.of(0), cuColumns: cu }), 'ERR_RANGE', '[attentionSaliency] Expected cuColumns to end at 1 but received 2');
  await refuses(call({ columns: Int32Array.of(1, 2), cuColumns: cu }), 'ERR_RANGE', '[attentionSaliency] Expected column 1 to be one of the 2 keys of sequence 0 but received 2');
  await refuses(call({ columns: Int32Array.of(-1), cuColumns: Int32Array.of(0, 1) }), 'ERR_RANGE', '[attentionSaliency] Expected column 0 to be one of the 2 keys of sequence 0 but received -1');
  await refuses(call({ headDim: 5 }), 'ERR_SHAPE', '[attentionSaliency] Expected q to have rows*heads*headDim = 10 elements but received 8');
  await refuses(attentionSaliency(x, random(4, 1), good), 'ERR_SHAPE', '[attentionSaliency] Expected k to have rows*kvHeads*headDim = 8 elements but received 4');
  await refuses(call({ lse: random(3, 1) }), 'ERR_SHAPE', '[attentionSaliency] Expected lse to have rows*heads = 2 elements but received 3');
  await refuses(call({ lse: [1, 2] }), 'ERR_DTYPE', '[attentionSaliency] Expected lse to be a Float32Array or a Tensor but received Array(2)');
  await refuses(call({ colums: cu }), 'ERR_ARGUMENT', "[attentionSaliency] Expected options among heads, kvHeads, headDim, cuQ, cuK, columns, cuColumns, lse, output, signal, device but received 'colums'; did you mean 'columns'?");
  await refuses(call({ output: 'tensors' }), 'ERR_ARGUMENT', "[attentionSaliency] Expected output to be one of 'array', 'tensor' but received \"tensors\"; did you mean 'tensor'?");
  await refuses(attentionSaliencyGrad(x, x, x, good), 'ERR_SHAPE', '[attentionSaliencyGrad] Expected dsaliency to have as many as columns = 2 elements but received 8');
});
