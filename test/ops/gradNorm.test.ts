import { gradNorm, normQuantile, NORM_BINS, Tensor, type GradNormOptions, type NormStatistics } from '../../lib/kernels';
import { bf16Bits, bf16Value, f16Bits, f16Value } from '../reference/halves';
import { expectClose, random, refuses } from './support';

function normsOf(x: ArrayLike<number>, channels: number): number[] {
  return Array.from({ length: x.length / channels }, (_, t) => Math.sqrt(Array.from(x).slice(t * channels, (t + 1) * channels).reduce((sum, v) => sum + v * v, 0)));
}

/** Bin of a norm from its own definition: four to an octave from 2^-40. */
function binOf(norm: number): number {
  if (norm < 2 ** -40) return 0;
  const octave = Math.floor(Math.log2(norm));
  return Math.min(NORM_BINS - 1, (octave + 40) * 4 + Math.floor(4 * (norm / 2 ** octave - 1)));
}

function expectStatistics(got: NormStatistics, norms: readonly number[]): void {
  const finite = norms.filter(Number.isFinite);
  const mean = finite.reduce((sum, v) => sum + v, 0) / finite.length;
  const histogram = new Int32Array(NORM_BINS);
  for (const norm of finite) histogram[binOf(norm)]! += 1;
  expect([got.count, got.notFinite, got.histogram]).toEqual([finite.length, norms.length - finite.length, histogram]);
  const variance = finite.reduce((sum, v) => sum + (v - mean) ** 2, 0) / finite.length;
  if (finite.length > 0) expectClose([got.mean, got.variance, got.min, got.max], [mean, variance, Math.min(...finite), Math.max(...finite)]);
  else expect([got.mean, got.variance, got.min, got.max]).toEqual([NaN, NaN, NaN, NaN]);
}

test.each([[0, 4], [1, 1], [3, 31], [2, 33], [5, 1536], [2, 4100], [300, 8]])('%i rows of %i channels: norms and statistics of four classes, one of them empty', async (tokens, channels) => {
  const grad = random(tokens * channels, 7);
  const classes = Uint8Array.from({ length: tokens }, (_, t) => t % 3);
  const { norms, statistics } = await gradNorm(grad, { tokens, channels, classes, numClasses: 4, scale: 3 });
  expectClose(norms, normsOf(grad, channels));
  expect(statistics.length).toBe(4);
  statistics.forEach((got, k) => expectStatistics(got, [...norms].filter((_, t) => classes[t] === k).map((norm) => Math.fround(3 * norm))));
});

test.each(['f16', 'bf16'] as const)('%s bits', async (dtype) => {
  const [bitsOf, valueFrom] = dtype === 'f16' ? [f16Bits, f16Value] : [bf16Bits, bf16Value];
  const grad = Uint16Array.from(random(7 * 129, 8), bitsOf);
  const { norms } = await gradNorm(grad, { tokens: 7, channels: 129, dtype });
  expectClose(norms, normsOf(Array.from(grad, valueFrom), 129));
});

test('tiny and huge rows lose nothing; a row with NaN or infinity is only counted', async () => {
  const rows = [[3e-30, 4e-30], [3e30, 4e30], [0, 0], [NaN, 1], [-Infinity, 1]];
  const { norms, statistics } = await gradNorm(Float32Array.from(rows.flat()), { tokens: 5, channels: 2 });
  expect(norms[0]! / 5e-30).toBeCloseTo(1, 6);
  expect(norms[1]! / 5e30).toBeCloseTo(1, 6);
  expect([...norms.subarray(2)]).toEqual([0, NaN, Infinity]);
  expect(statistics[0]).toMatchObject({ count: 3, notFinite: 2, min: 0 });
});

test('the example of the documentation', async () => {
  const { norms, statistics } = await gradNorm(Float32Array.of(3, 4, 0, 1), { tokens: 2, channels: 2 });
  expect([...norms]).toEqual([5, 1]);
  expect(statistics).toEqual([expect.objectContaining({ count: 2, mean: 3, variance: 4, min: 1, max: 5, notFinite: 0 })]);
});

test('classes alone say how many there are; a tensor is read as an array is; two runs give the same bits', async () => {
  const grad = random(60, 9);
  const options: GradNormOptions = { tokens: 20, channels: 3, classes: Uint8Array.from({ length: 20 }, (_, t) => t % 5) };
  const first = await gradNorm(grad, options);
  expect(first.statistics.length).toBe(5);
  expect(await gradNorm(grad, options)).toEqual(first);
  using tensor = new Tensor([20, 3], { device: 'cpu' });
  await tensor.write(grad);
  expect(await gradNorm(tensor, { ...options, device: 'cpu' })).toEqual(await gradNorm(grad, { ...options, device: 'cpu' }));
});

test('quantiles lie in the bin of the true ones', async () => {
  const grad = Float32Array.from({ length: 1000 }, (_, t) => 1.01 ** (t - 300));
  const { statistics: [s] } = await gradNorm(grad, { tokens: 1000, channels: 1 });
  for (const p of [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]) {
    const want = 1.01 ** (Math.max(1, Math.ceil(p * 1000)) - 301);
    expect(normQuantile(s!, p) / want).toBeGreaterThan(1 / 1.2501);
    expect(normQuantile(s!, p) / want).toBeLessThan(1.2501);
  }
  expect([normQuantile(s!, 0), normQuantile(s!, 1)]).toEqual([s!.min, s!.max]);
  const { statistics: [none] } = await gradNorm(new Float32Array(0), { tokens: 0, channels: 1 });
  expect(normQuantile(none!, 0.5)).toBeNaN();
});

test('quantiles below the first bin and above the last lie between min and max', async () => {
  const quantiles = async (values: number[], shares: number[]): Promise<number[]> => {
    const { statistics: [s] } = await gradNorm(Float32Array.from(values), { tokens: values.length, channels: 1 });
    return shares.map((p) => normQuantile(s!, p));
  };
  const exact = (value: number): number => expect.closeTo(value, 6) as number;
  expect(await quantiles([2 ** 25, 2 ** 30], [0, 0.5, 1])).toEqual([2 ** 25, exact((2 ** 25 + 2 ** 30) / 2), 2 ** 30]);
  const tiny = await quantiles([2 ** -60, 3 * 2 ** -60], [0, 0.5, 1]);
  expect(tiny.map((value) => value * 2 ** 60)).toEqual([1, exact(2), 3]);
  const mixed = await quantiles([2 ** -60, 5, 7], [0, 1]);
  expect(mixed).toEqual([2 ** -60, 7]);
});

test('inputs are copied: changing them at once changes nothing', async () => {
  const [grad, classes] = [Float32Array.of(3, 4), Uint8Array.of(1)];
  const result = gradNorm(grad, { tokens: 1, channels: 2, classes });
  grad.fill(NaN);
  classes.fill(200);
  expect((await result).norms[0]).toBe(5);
});

test('misuse', async () => {
  const grad = random(6, 1);
  const call = (options: object, x: unknown = grad): Promise<unknown> => gradNorm(x as never, { tokens: 2, channels: 3, ...options });
  await refuses(gradNorm(grad, undefined as never), 'ERR_ARGUMENT', '[gradNorm] Expected tokens to be an integer of at least 0 but received undefined');
  await refuses(call({ tokens: -1 }), 'ERR_RANGE', '[gradNorm] Expected tokens to be an integer of at least 0 but received -1');
  await refuses(call({ channels: 0 }), 'ERR_RANGE', '[gradNorm] Expected channels to be an integer from 1 to 2147483647 but received 0');
  await refuses(call({ tokens: 2 ** 32 }), 'ERR_RANGE', '[gradNorm] Expected grad to have at most 8589934592 elements but received sizes 4294967296 x 3');
  await refuses(call({}, random(5, 1)), 'ERR_SHAPE', '[gradNorm] Expected grad to have tokens*channels = 6 elements but received 5');
  await refuses(call({}, new Float64Array(6)), 'ERR_DTYPE', '[gradNorm] Expected grad to be a Float32Array, a Uint16Array or a Tensor but received Float64Array(6)');
  await refuses(call({}, new Uint16Array(6)), 'ERR_DTYPE', "[gradNorm] Expected dtype to be 'f16' or 'bf16' for grad, a Uint16Array, but received undefined");
  await refuses(call({ dtype: 'f32' }, new Uint16Array(6)), 'ERR_DTYPE', "[gradNorm] Expected dtype to be 'f16' or 'bf16' for grad, a Uint16Array, but received \"f32\"");
  await refuses(call({ dtype: 'bf16' }), 'ERR_DTYPE', "[gradNorm] Expected grad to be a Uint16Array with dtype 'bf16' but received f32 values");
  await refuses(call({ dtype: 'bfloat16' }), 'ERR_ARGUMENT', "[gradNorm] Expected dtype to be one of 'f32', 'f16', 'bf16' but received \"bfloat16\"");
  await refuses(call({ classes: [0, 1] }), 'ERR_DTYPE', '[gradNorm] Expected classes to be a Uint8Array but received Array(2)');
  await refuses(call({ classes: Uint8Array.of(1) }), 'ERR_SHAPE', '[gradNorm] Expected classes to have tokens = 2 elements but received 1');
  await refuses(call({ classes: Uint8Array.of(0, 2), numClasses: 2 }), 'ERR_RANGE', '[gradNorm] Expected classes to be below numClasses = 2 but received 2 at 1');
  await refuses(call({ numClasses: 257 }), 'ERR_RANGE', '[gradNorm] Expected numClasses to be an integer from 1 to 256 but received 257');
  await refuses(call({ scale: -1 }), 'ERR_RANGE', `[gradNorm] Expected scale to be a number from 0 to ${3e38} but received -1`);
  await refuses(call({ scale: null }), 'ERR_ARGUMENT', `[gradNorm] Expected scale to be a number from 0 to ${3e38} but received null`);
  await refuses(call({ clases: 1 }), 'ERR_ARGUMENT', "[gradNorm] Expected options among tokens, channels, dtype, classes, numClasses, scale, signal, device but received 'clases'; did you mean 'classes'?");
  using tensor = new Tensor([6], { device: 'cpu' });
  tensor.dispose();
  await refuses(call({}, tensor), 'ERR_DISPOSED', '[gradNorm] Expected grad to be a living Tensor but received one that is disposed');
});

test('misuse of normQuantile', async () => {
  const { statistics: [s] } = await gradNorm(Float32Array.of(1), { tokens: 1, channels: 1 });
  const refused = (call: () => unknown, code: string, message: string): void => expect(call).toThrow(expect.objectContaining({ name: 'LibError', code, message }) as Error);
  refused(() => normQuantile(null as never, 0.5), 'ERR_ARGUMENT', '[normQuantile] Expected statistics to be an object but received null');
  refused(() => normQuantile(s!, 2), 'ERR_RANGE', '[normQuantile] Expected p to be a number from 0 to 1 but received 2');
  refused(() => normQuantile({ ...s!, histogram: new Int32Array(3) }, 0.5), 'ERR_SHAPE', '[normQuantile] Expected statistics.histogram to have 256 elements but received 3');
  refused(() => normQuantile({ ...s!, count: 1.5 }, 0.5), 'ERR_RANGE', '[normQuantile] Expected statistics.count to be an integer of at least 0 but received 1.5');
  refused(() => normQuantile({ ...s!, count: 2 }, 0.5), 'ERR_RANGE', '[normQuantile] Expected statistics.count to be the sum of statistics.histogram = 1 but received 2');
  refused(() => normQuantile({ ...s!, histogram: s!.histogram.map((inside, bin) => (bin === 0 ? -1 : inside)) }, 0.5), 'ERR_RANGE', '[normQuantile] Expected bin 0 of statistics.histogram to be an integer of at least 0 but received -1');
  refused(() => normQuantile({ ...s!, min: NaN }, 0.5), 'ERR_RANGE', '[normQuantile] Expected statistics.min to be a finite number but received NaN');
  refused(() => normQuantile({ ...s!, max: 0.5 }, 0.5), 'ERR_RANGE', '[normQuantile] Expected statistics.max to be a number of at least 1 but received 0.5');
});

test('an aborted signal rejects with its reason', async () => {
  const reason = new Error('enough');
  await expect(gradNorm(random(4, 1), { tokens: 2, channels: 2, signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
});
