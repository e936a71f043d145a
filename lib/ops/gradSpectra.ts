import * as check from '../check';
import { fail } from '../errors';
import { elements, run, type KernelOptions } from './call';
import { checkDtype, gradient, sameDtype, type Gradient } from './gradients';

export interface GradientMatrix {
  /** (rows, cols) row-major. Array: copied; tensor: shared. */
  data: Gradient;
  /** At least 1. */
  rows: number;
  cols: number;
}

export interface GradSpectraOptions extends KernelOptions {
  /** What Uint16Arrays hold: 'f16' or 'bf16'. Float32Array and Tensor: 'f32', which may be left out. All matrices are of one type. */
  dtype?: 'f32' | 'f16' | 'bf16';
}

export interface GradSpectrum {
  /** (min(rows, cols)) largest first. */
  singularValues: Float64Array;
  /** Their sum. */
  nuclear: number;
  /** The largest. */
  spectral: number;
  /** (sum s)^2 / sum s^2: r for r equal singular values, 1 for rank 1; 0 for a zero matrix. */
  effectiveRank: number;
  /** nuclear / spectral, from 1 to the rank; 0 for a zero matrix. */
  stableRatio: number;
}

const MAX_MATRICES = 2 ** 20;

/**
 * Singular values of a batch of matrices of different shapes, and what is made of them: nuclear and spectral norm and effective rank. They
 * are the roots of the eigenvalues of each matrix's smaller Gram matrix, which costs a few per cent of an SVD when one side is short.
 *
 * @param matrices any number of any shapes, each of at least one element.
 * @returns one {@link GradSpectrum} per matrix, float64, the same on every run of a device. Products and sums are float64: a singular value s is
 *   off by about 1e-15 * spectral^2 / s, so that those below 1e-7 * spectral are noise (0 where the eigenvalue came out negative).
 *   All NaN where a matrix is not finite.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`, `ERR_BACKEND_UNAVAILABLE`;
 *   `ERR_UNSUPPORTED` on CUDA for a matrix whose both sides are above 128 (the CPU takes any size).
 * @example
 * const [{ nuclear, spectral, effectiveRank }] = await gradSpectra([{ data: Float32Array.of(3, 0, 0, 4), rows: 2, cols: 2 }]);
 * // 7, 4, 49 / 25
 * @see Roy and Vetterli, 2007, for effective ranks; Visual Enhanced Depth Scaling, 2026 (2604.10500), section 3
 */
export async function gradSpectra(matrices: readonly GradientMatrix[], options: GradSpectraOptions = {}): Promise<GradSpectrum[]> {
  const op = 'gradSpectra';
  check.options(op, options, ['dtype', 'signal', 'device']);
  const list = check.array(op, 'matrices', matrices);
  check.integer(op, 'the number of matrices', list.length, 0, MAX_MATRICES);
  checkDtype(op, options.dtype);
  // Array.from: holes are undefined, not skipped.
  const given = Array.from(list, (matrix, i) => checkMatrix(op, i, matrix, options.dtype));
  const dtype = given[0]?.dtype ?? 'f32';
  given.forEach((matrix, i) => {
    if (matrix.dtype !== dtype) fail('ERR_DTYPE', op, `Expected all matrices to be of one type, ${dtype}, but received ${matrix.dtype} of matrix ${i}`);
  });
  const shapes = Int32Array.from(given.flatMap(({ rows, cols }) => [rows, cols]));
  const values = await run(op, options, (ops, token) => ops.gradSpectra(given.map(({ native }) => native), shapes, dtype, token));
  let start = 0;
  return given.map(({ rows, cols }) => {
    const end = start + Math.min(rows, cols);
    const spectrum = spectrumOf(values.subarray(start, end));
    start = end;
    return spectrum;
  });
}

function checkMatrix(op: string, index: number, value: unknown, dtype: unknown): ReturnType<typeof gradient> & { rows: number; cols: number } {
  const matrix = check.object(op, `matrix ${index}`, value) as Partial<GradientMatrix>;
  check.options(op, matrix, ['data', 'rows', 'cols']);
  const rows = check.integer(op, `rows of matrix ${index}`, matrix.rows, 1, 2 ** 31 - 1);
  const cols = check.integer(op, `cols of matrix ${index}`, matrix.cols, 1, 2 ** 31 - 1);
  const name = `data of matrix ${index}`;
  const given = gradient(op, name, matrix.data, dtype, elements(op, name, rows, cols), 'rows*cols');
  sameDtype(op, name, dtype, given.dtype);
  return { ...given, rows, cols };
}

/** From the eigenvalues of a Gram matrix, largest first. */
function spectrumOf(eigenvalues: Float64Array): GradSpectrum {
  const singularValues = eigenvalues.map((value) => Math.sqrt(Math.max(value, 0)));
  const nuclear = singularValues.reduce((sum, s) => sum + s, 0);
  const squares = singularValues.reduce((sum, s) => sum + s * s, 0);
  const spectral = singularValues[0]!;
  if (spectral === 0) return { singularValues, nuclear: 0, spectral: 0, effectiveRank: 0, stableRatio: 0 };
  return { singularValues, nuclear, spectral, effectiveRank: (nuclear * nuclear) / squares, stableRatio: nuclear / spectral };
}
