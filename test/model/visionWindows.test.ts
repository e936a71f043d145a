/** Windows of the Qwen2.5-VL tower on odd grids: the order of its rows and who attends to whom. Values are checked by test/parity. */
import { native, type NativeModel, type NativeModelSpec, type NativeSession } from '../../lib/native';
import { tinySpec } from '../boundary/tinyModel';

const PATCH = 2;
const MERGE = 2;
const WIDTH = 8;
type Units = readonly [frames: number, rows: number, columns: number];

/** One block with windows of `side` merged units (4 x 4 pixels each), or with full attention. */
function spec(side: number, fullAttentionBlocks: readonly number[]): NativeModelSpec {
  const tiny = tinySpec();
  return {
    ...tiny, vision: { ...tiny.vision, depth: 1, width: WIDTH, heads: 2, mlpWidth: 12, activation: 'silu', temporal: 1, patch: PATCH, merge: MERGE, windows: { side, fullAttentionBlocks } },
  };
}

async function made(side: number, fullAttentionBlocks: readonly number[]): Promise<NativeModel> {
  const model = new (native().Model)(spec(side, fullAttentionBlocks));
  for (const { name, shape } of model.parameters()) await model.initialize(name, shape.length > 1 ? 'normal' : 'constant', /norm|ln_q/.test(name) ? 1 : shape.length > 1 ? 0.4 : 0.1, 3);
  await model.enableTraining();
  return model;
}

/** As the reference finds it: the grid padded to whole windows (one more where they fit), cut, and the padding dropped again. */
function windowsOf([frames, rows, columns]: Units, side: number): number[][] {
  const [high, wide] = [rows, columns].map((n) => n + side - (n % side)) as [number, number];
  const windows: number[][] = [];
  for (let frame = 0; frame < frames; frame++) {
    const padded = Array.from({ length: high * wide }, (_, i) => {
      const [y, x] = [Math.floor(i / wide), i % wide];
      return y < rows && x < columns ? frame * rows * columns + y * columns + x : -100;
    });
    for (let window = 0; window < (high * wide) / side ** 2; window++) {
      const [top, left] = [Math.floor(window / (wide / side)) * side, (window % (wide / side)) * side];
      const own = Array.from({ length: side ** 2 }, (_, i) => padded[(top + Math.floor(i / side)) * wide + left + (i % side)]!).filter((unit) => unit >= 0);
      if (own.length > 0) windows.push(own);
    }
  }
  return windows;
}

function pixelsOf(pictures: readonly Units[]): { frames: Uint8Array; sizes: Int32Array } {
  const count = pictures.reduce((sum, [t, h, w]) => sum + t * h * w, 0) * (PATCH * MERGE) ** 2 * 3;
  return {
    frames: Uint8Array.from({ length: count }, (_, i) => (Math.imul(i + 1, 2654435761) >>> 11) % 256),
    sizes: Int32Array.from(pictures.flatMap(([t, h, w]) => [t, h * PATCH * MERGE, w * PATCH * MERGE])),
  };
}

async function withSession<T>(model: NativeModel, use: (session: NativeSession) => Promise<T>): Promise<T> {
  const session = new (native().Session)(model, { training: true, recompute: false, detachLatents: false, visionGradient: true });
  try {
    return await use(session);
  } finally {
    session.dispose();
  }
}

const CALLS: readonly (readonly [number, readonly Units[]])[] = [
  [4, [[1, 1, 1]]], [4, [[1, 4, 4]]], [4, [[1, 8, 4]]], [4, [[1, 5, 3]]], [4, [[1, 3, 9]]], [4, [[1, 1, 13]]], [3, [[2, 4, 7]]], [2, [[3, 5, 5]]], [1, [[1, 3, 4]]],
  [9, [[1, 4, 4]]], [4, [[1, 5, 6], [2, 4, 1], [1, 9, 2]]],
];

test.each(CALLS)('windows of %i: the rows of %j run window after window', async (side, pictures) => {
  const model = await made(side, []);
  const { frames, sizes } = pixelsOf(pictures);
  const patchWidth = 3 * PATCH ** 2;
  const weight = await model.readParameter('visual.patch_embed.proj.weight', 'value');
  const expected: number[] = [];
  let first = 0;
  for (const [t, h, w] of pictures) {
    const bytes = t * h * w * (PATCH * MERGE) ** 2 * 3;
    const rows = await native().ops.patchRows(frames.subarray(first, first + bytes), t, h * PATCH * MERGE, w * PATCH * MERGE, PATCH, MERGE, 1, Float32Array.of(0.5, 0.5, 0.5), Float32Array.of(0.25, 0.25, 0.25));
    first += bytes;
    for (const unit of windowsOf([t, h, w], side).flat()) {
      for (let patch = unit * MERGE ** 2; patch < (unit + 1) * MERGE ** 2; patch++) {
        for (let c = 0; c < WIDTH; c++) expected.push(Array.from({ length: patchWidth }, (_, k) => rows[patch * patchWidth + k]! * weight[c * patchWidth + k]!).reduce((a, b) => a + b, 0));
      }
    }
  }
  const got = await withSession(model, async (session) => {
    await session.encode(frames, sizes);
    return (await session.read('visual_state', 0, 0)).data;
  });
  expect(got).toHaveLength(expected.length);
  // 12 products of numbers below 10, summed in f32
  expect(Math.max(...expected.map((value, i) => Math.abs(value - got[i]!)))).toBeLessThan(2e-5);
  model.dispose();
});

/** The merged units whose token changes when the pixels of one unit do. */
async function reached(model: NativeModel, pictures: readonly Units[], unit: number): Promise<number[]> {
  const { frames, sizes } = pixelsOf(pictures);
  const changed = frames.slice();
  let start = 0;
  let left = unit;
  for (const [t, h, w] of pictures) {
    if (left < t * h * w) {
      const [frame, y, x] = [Math.floor(left / (h * w)), Math.floor((left % (h * w)) / w), left % w];
      const row = w * PATCH * MERGE * 3;
      const corner = start + frame * h * PATCH * MERGE * row + y * PATCH * MERGE * row + x * PATCH * MERGE * 3;
      for (let line = 0; line < PATCH * MERGE; line++) for (let i = 0; i < PATCH * MERGE * 3; i++) changed[corner + line * row + i]! ^= 255;
      break;
    }
    left -= t * h * w;
    start += t * h * w * (PATCH * MERGE) ** 2 * 3;
  }
  return withSession(model, async (session) => {
    await session.encode(frames, sizes);
    await session.encode(changed, sizes);
    const { data, width } = await session.read('visual', 0, 0);
    const units = data.length / width / 2;
    return Array.from({ length: units }, (_, n) => n).filter((n) => Array.from({ length: width }, (_, c) => c).some((c) => data[n * width + c] !== data[(units + n) * width + c]));
  });
}

test.each(CALLS)('windows of %i: a unit of %j is seen by its own window alone', async (side, pictures) => {
  const model = await made(side, []);
  let base = 0;
  const windows = pictures.flatMap((units) => {
    const own = windowsOf(units, side).map((window) => window.map((unit) => unit + base));
    base += units[0] * units[1] * units[2];
    return own;
  });
  expect(windows.flat().sort((a, b) => a - b)).toEqual(Array.from({ length: base }, (_, n) => n));
  for (const window of windows) expect(await reached(model, pictures, window[Math.floor(window.length / 2)]!)).toEqual([...window].sort((a, b) => a - b));
  model.dispose();
});

test('a block of full attention sees its whole frame', async () => {
  const model = await made(2, [0]);
  expect(await reached(model, [[2, 3, 5], [1, 2, 2]], 20)).toEqual(Array.from({ length: 15 }, (_, n) => 15 + n));
  model.dispose();
});

test('full attention in every block and windows that hold the picture are the same', async () => {
  const tokens = async (side: number, full: readonly number[]): Promise<Float32Array> => {
    const model = await made(side, full);
    const { frames, sizes } = pixelsOf([[1, 3, 4]]);
    const data = await withSession(model, async (session) => {
      await session.encode(frames, sizes);
      return (await session.read('visual', 0, 0)).data;
    });
    model.dispose();
    return data;
  };
  expect(await tokens(4, [])).toEqual(await tokens(4, [0]));
  expect(await tokens(2, [])).not.toEqual(await tokens(2, [0]));
});
