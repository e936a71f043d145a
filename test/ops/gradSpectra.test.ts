import { gradSpectra, Tensor, type GradientMatrix, type GradSpectrum } from '../../lib/kernels';
import { bf16Bits, bf16Value } from '../reference/halves';
import { random, refuses } from './support';

/** Column k of an n-point cosine transform: orthonormal. */
function cosines(n: number, k: number): Float64Array {
  return Float64Array.from({ length: n }, (_, i) => Math.sqrt((k === 0 ? 1 : 2) / n) * Math.cos((Math.PI * k * (i + 0.5)) / n));
}

/** sum of s_k u_k v_k^T with orthonormal u and v. */
function matrixOf(rows: number, cols: number, singular: readonly number[]): GradientMatrix {
  const sum = new Float64Array(rows * cols);
  singular.forEach((s, k) => {
    const [u, v] = [cosines(rows, k), cosines(cols, k)];
    for (let i = 0; i < rows; i++) for (let j = 0; j < cols; j++) sum[i * cols + j]! += s * u[i]! * v[j]!;
  });
  return { data: Float32Array.from(sum), rows, cols };
}

/** Storing the matrix in float32 moves a singular value by up to the norm of what is lost. */
function expectValues(got: GradSpectrum, want: readonly number[]): void {
  const largest = Math.max(...want);
  const allowed = largest * Math.sqrt(want.length) * 2 ** -22;
  expect(got.singularValues.length).toBe(want.length);
  want.forEach((value, k) => expect(Math.abs(got.singularValues[k]! - value)).toBeLessThan(allowed));
  const [sum, squares] = [want.reduce((total, s) => total + s, 0), want.reduce((total, s) => total + s * s, 0)];
  expect(got.spectral / largest).toBeCloseTo(1, 5);
  expect(got.nuclear / sum).toBeCloseTo(1, 4);
  expect(got.effectiveRank / (sum ** 2 / squares)).toBeCloseTo(1, 4);
  expect(got.stableRatio / (sum / largest)).toBeCloseTo(1, 4);
}

test('known singular values, wide and tall, in one ragged batch', async () => {
  const cases: readonly (readonly [number, number, readonly number[]])[] = [
    [1, 1, [3]], [1, 40, [2]], [40, 1, [2]], [8, 300, [8, 7, 6, 5, 4, 3, 2, 1]], [64, 5, [1, 1, 1, 1, 1]],
    [16, 64, [1, 0.5, 0.25, ...Array<number>(13).fill(0)]], [33, 33, Array.from({ length: 33 }, (_, k) => 33 - k)], [130, 129, Array.from({ length: 129 }, (_, k) => 0.9 ** k)],
  ];
  const spectra = await gradSpectra(cases.map(([rows, cols, values]) => matrixOf(rows, cols, values)), { device: 'cpu' });
  spectra.forEach((spectrum, i) => expectValues(spectrum, cases[i]![2]));
});

test('bf16 bits and tensors; two runs give the same bits', async () => {
  const bits = Uint16Array.from(random(12 * 50, 2), bf16Bits);
  const [rounded] = await gradSpectra([{ data: Float32Array.from(bits, bf16Value), rows: 12, cols: 50 }], { device: 'cpu' });
  expect(await gradSpectra([{ data: bits, rows: 12, cols: 50 }], { dtype: 'bf16', device: 'cpu' })).toEqual([rounded]);
  using tensor = new Tensor([12, 50], { device: 'cpu' });
  await tensor.write(Float32Array.from(bits, bf16Value));
  expect(await gradSpectra([{ data: tensor, rows: 12, cols: 50 }], { device: 'cpu' })).toEqual([rounded]);
});

test('zero and not finite matrices beside others; none at all', async () => {
  const [zero, bad, plain] = await gradSpectra([
    { data: new Float32Array(6), rows: 2, cols: 3 }, { data: Float32Array.of(1, NaN, 2, 3), rows: 2, cols: 2 }, { data: Float32Array.of(5), rows: 1, cols: 1 },
  ]);
  expect(zero).toEqual({ singularValues: Float64Array.of(0, 0), nuclear: 0, spectral: 0, effectiveRank: 0, stableRatio: 0 });
  expect(bad).toEqual({ singularValues: Float64Array.of(NaN, NaN), nuclear: NaN, spectral: NaN, effectiveRank: NaN, stableRatio: NaN });
  expect(plain).toMatchObject({ nuclear: 5, spectral: 5, effectiveRank: 1, stableRatio: 1 });
  expect(await gradSpectra([])).toEqual([]);
});

test('the example of the documentation', async () => {
  const [spectrum] = await gradSpectra([{ data: Float32Array.of(3, 0, 0, 4), rows: 2, cols: 2 }]);
  expect([spectrum!.nuclear, spectrum!.spectral, spectrum!.effectiveRank]).toEqual([7, 4, 49 / 25]);
});

test('misuse', async () => {
  const data = random(6, 1);
  const call = (change: object, options: object = {}): Promise<unknown> => gradSpectra([{ data, rows: 2, cols: 3, ...change }], options);
  await refuses(gradSpectra(undefined as never), 'ERR_ARGUMENT', '[gradSpectra] Expected matrices to be an array but received undefined');
  await refuses(gradSpectra([null as never]), 'ERR_ARGUMENT', '[gradSpectra] Expected matrix 0 to be an object but received null');
  await refuses(gradSpectra(new Array<GradientMatrix>(3)), 'ERR_ARGUMENT', '[gradSpectra] Expected matrix 0 to be an object but received undefined');
  await refuses(gradSpectra([], { dtype: 'f64' } as never), 'ERR_ARGUMENT', "[gradSpectra] Expected dtype to be one of 'f32', 'f16', 'bf16' but received \"f64\"");
  await refuses(call({ columns: 3 }), 'ERR_ARGUMENT', "[gradSpectra] Expected options among data, rows, cols but received 'columns'");
  await refuses(call({ rows: 0 }), 'ERR_RANGE', '[gradSpectra] Expected rows of matrix 0 to be an integer from 1 to 2147483647 but received 0');
  await refuses(call({ cols: 'x' }), 'ERR_ARGUMENT', '[gradSpectra] Expected cols of matrix 0 to be an integer from 1 to 2147483647 but received "x"');
  await refuses(call({ rows: 2 ** 30, cols: 16 }), 'ERR_RANGE', '[gradSpectra] Expected data of matrix 0 to have at most 8589934592 elements but received sizes 1073741824 x 16');
  await refuses(call({ cols: 4 }), 'ERR_SHAPE', '[gradSpectra] Expected data of matrix 0 to have rows*cols = 8 elements but received 6');
  await refuses(call({ data: [1] }), 'ERR_DTYPE', '[gradSpectra] Expected data of matrix 0 to be a Float32Array, a Uint16Array or a Tensor but received Array(1)');
  await refuses(call({}, { dtype: 'f16' }), 'ERR_DTYPE', "[gradSpectra] Expected data of matrix 0 to be a Uint16Array with dtype 'f16' but received f32 values");
  await refuses(call({ data: new Uint16Array(6) }), 'ERR_DTYPE', "[gradSpectra] Expected dtype to be 'f16' or 'bf16' for data of matrix 0, a Uint16Array, but received undefined");
  await refuses(call({}, { device: 'gpu' }), 'ERR_ARGUMENT', "[gradSpectra] Expected device to be one of 'auto', 'cpu', 'cuda' but received \"gpu\"; did you mean 'cpu'?");
  await refuses(call({}, { dtypes: 'f16' }), 'ERR_ARGUMENT', "[gradSpectra] Expected options among dtype, signal, device but received 'dtypes'; did you mean 'dtype'?");
  await refuses(gradSpectra(Array<GradientMatrix>(2 ** 20 + 1).fill({ data, rows: 2, cols: 3 })), 'ERR_RANGE', '[gradSpectra] Expected the number of matrices to be an integer from 0 to 1048576 but received 1048577');
  using tensor = new Tensor([6], { device: 'cpu' });
  tensor.dispose();
  await refuses(call({ data: tensor }), 'ERR_DISPOSED', '[gradSpectra] Expected data of matrix 0 to be a living Tensor but received one that is disposed');
});

test('an aborted signal rejects with its reason', async () => {
  const reason = new Error('enough');
  await expect(gradSpectra([], { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
});
