import * as check from '../check';
import { fail } from '../errors';
import type { NativeReplayInput } from '../native';
import { floats, runFloats, type Floats, type FloatsOf, type OutputKind, type OutputOptions } from './floats';

export interface CoherentWindowOptions<O extends OutputKind = OutputKind> extends OutputOptions<O> {
  /** Scores of sequence b are cuTokens[b] .. cuTokens[b+1]. Copied. */
  cuTokens: Int32Array;
  /** Pictures of sequence b. Copied. */
  cuPictures: Int32Array;
  /** (P, 2) rows and columns of each picture's grid; the grids of a sequence fill its scores in order, row-major. Copied. */
  grids: Int32Array;
  /** Most scores that are selected per sequence. */
  patches: number;
  /** Side of the window; a grid that is smaller uses its whole side. */
  window: number;
  /** count * score / sum of the selected scores (default), equal weights where the sum is 0; or the softmax of the selected scores. */
  weights?: 'mean-preserving' | 'softmax';
  /** (N) 1 where a score was selected before and is out of the running, else 0. Default: none. Copied; the new state is returned. */
  used?: Uint8Array;
}

export interface CoherentWindowResult<O extends OutputKind = 'array'> {
  /** (B+1) selection of sequence b is cuSelected[b] .. cuSelected[b+1]. */
  cuSelected: Int32Array;
  /** Indices among the sequence's own scores, best first: score descending, index ascending, NaN last. */
  selected: Int32Array;
  /** Weight of each selected score, float32, never NaN. */
  weights: FloatsOf<O>;
  /** (B, 6) picture among the sequence's own, row, column, height, width, selected cells inside; all 0 where nothing was selected. */
  windows: Int32Array;
  /** (N) `used` with the selection added. */
  used: Uint8Array;
}

const FIELDS = ['cuTokens', 'cuPictures', 'grids', 'patches', 'window', 'weights', 'used', 'output', 'signal', 'device'];

/**
 * Selects the best scored cells of picture grids and finds the window that holds most of them: top-k, weights, and the first best
 * window over pictures, rows and columns by a summed-area table. One launch for all sequences.
 *
 * @param scores (N) scores of all sequences' cells, f32. Array: copied before this returns; tensor: shared.
 * @returns see {@link CoherentWindowResult}. Exact and the same on every run, ties and NaN included.
 * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
 * @example
 * const one = Int32Array.of(0, 1);
 * const options = { cuTokens: Int32Array.of(0, 4), cuPictures: one, grids: Int32Array.of(2, 2), patches: 2, window: 1 };
 * await coherentWindow(Float32Array.of(0, 1, 3, 0), options);
 * // { selected: [2, 1], weights: [1.5, 0.5], windows: [0, 0, 1, 1, 1, 1], used: [0, 1, 1, 0], cuSelected: [0, 2] }
 * @see Visual Enhanced Depth Scaling, 2026 (2604.10500), SCF-VR
 */
export async function coherentWindow<O extends OutputKind = 'array'>(scores: Floats, options: CoherentWindowOptions<O>): Promise<CoherentWindowResult<O>> {
  const op = 'coherentWindow';
  check.options(op, options, FIELDS);
  const cuTokens = check.typedArray(op, 'cuTokens', options?.cuTokens, 'Int32Array');
  const sequences = check.offsets(op, 'cuTokens', cuTokens, cuTokens.at(-1) ?? 0);
  const tokens = cuTokens.at(-1)!;
  const input: NativeReplayInput = {
    cuTokens, ...checkGrids(op, options, cuTokens, sequences),
    patches: check.integer(op, 'patches', options.patches, 1, 2 ** 31 - 1),
    window: check.integer(op, 'window', options.window, 1, 2 ** 31 - 1),
    weights: check.oneOf(op, 'weights', options.weights ?? 'mean-preserving', ['mean-preserving', 'softmax']),
    used: options.used === undefined ? new Uint8Array(tokens) : check.typedArray(op, 'used', options.used, 'Uint8Array', tokens, 'as many as scores'),
  };
  const given = floats(op, 'scores', scores, tokens, 'the end of cuTokens').native;
  const shapes = { weights: [countSelected(op, input)] };
  type Result = CoherentWindowResult<'array'>;
  return runFloats<O, 'weights', Result>(op, options, shapes, (ops, into, token) => ops.coherentWindow(given, input, into, token));
}

function checkGrids(op: string, options: CoherentWindowOptions, cuTokens: Int32Array, sequences: number): { cuPictures: Int32Array; grids: Int32Array } {
  const cuPictures = check.typedArray(op, 'cuPictures', options.cuPictures, 'Int32Array', sequences + 1, 'as many as cuTokens');
  const pictures = cuPictures.at(-1) ?? 0;
  check.offsets(op, 'cuPictures', cuPictures, pictures);
  const grids = check.typedArray(op, 'grids', options.grids, 'Int32Array', 2 * pictures, '2*pictures');
  for (let b = 0; b < sequences; b++) {
    let places = 0;
    for (let p = cuPictures[b]!; p < cuPictures[b + 1]!; p++) {
      const [rows, columns] = [grids[2 * p]!, grids[2 * p + 1]!];
      if (rows < 1 || columns < 1) fail('ERR_RANGE', op, `Expected the grid of picture ${p} to be at least 1 x 1 but received ${rows} x ${columns}`);
      places += rows * columns;
    }
    const tokens = cuTokens[b + 1]! - cuTokens[b]!;
    if (places !== tokens) fail('ERR_SHAPE', op, `Expected the grids of sequence ${b} to have as many cells as it has scores = ${tokens} but received ${places}`);
  }
  return { cuPictures, grids };
}

/** Scores that will be selected: `patches` of each sequence, or what is left. */
function countSelected(op: string, { cuTokens, patches, used }: NativeReplayInput): number {
  let selected = 0;
  for (let b = 0; b + 1 < cuTokens.length; b++) {
    let free = 0;
    for (let i = cuTokens[b]!; i < cuTokens[b + 1]!; i++) {
      if (used[i]! > 1) fail('ERR_RANGE', op, `Expected used to hold 0 and 1 but received ${used[i]} at ${i}`);
      free += 1 - used[i]!;
    }
    selected += Math.min(patches, free);
  }
  return selected;
}
