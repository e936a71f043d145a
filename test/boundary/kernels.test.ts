/** The operations of replay and routing, and tensors, called past lib with hostile values. */
import { native, type NativeTensor } from '../../lib/native';

type Loose = Record<string, (...values: unknown[]) => Promise<unknown>>;

const f32 = (...values: number[]) => Float32Array.from(values);
const i32 = (...values: number[]) => Int32Array.from(values);
const u8 = (...values: number[]) => Uint8Array.from(values);
const ops = () => native().ops as unknown as Loose;

async function expectRejection(promise: unknown, code: string, message: string): Promise<void> {
  expect(Object.prototype.toString.call(promise)).toBe('[object Promise]');
  const error = await (promise as Promise<unknown>).then(() => 'it resolved', (reason: unknown) => reason as { code: string; message: string });
  expect(error).toMatchObject({ code, message });
}

const saliency = (change: object = {}) => ({
  q: new Float32Array(8), k: new Float32Array(8), cuQ: i32(0, 2), cuK: i32(0, 2), columns: i32(0, 1), cuColumns: i32(0, 2), heads: 1, kvHeads: 1, headDim: 4, ...change,
});
const replay = (change: object = {}) => ({ cuTokens: i32(0, 4), cuPictures: i32(0, 1), grids: i32(2, 2), patches: 2, window: 1, weights: 'softmax', used: new Uint8Array(4), ...change });
const crop = (change: object = {}) => ({ height: 4, width: 4, box: i32(0, 0, 4, 4), toHeight: 4, toWidth: 4, patch: 2, merge: 2, temporal: 1, mean: f32(0, 0, 0), std: f32(1, 1, 1), ...change });
const route = (change: object = {}) => ({ rule: 'prefix-topk', cuSeqlens: i32(0, 4), alpha: 2, cuBest: i32(0, 0), best: new Float32Array(0), ...change });
const norms = (change: object = {}) => ({ tokens: 2, channels: 2, dtype: 'f32', numClasses: 2, scale: 1, ...change });
const x = f32(1, 2, 3, 4);
const image = new Uint8Array(48);

describe('ops', () => {
  const cases: readonly (readonly [string, unknown[], string, string])[] = [
    ['attentionSaliency', [undefined], 'ERR_ARGUMENT', 'Expected input to be an object but received undefined'],
    ['attentionSaliency', [saliency({ heads: 3, kvHeads: 2 })], 'ERR_SHAPE', 'Expected heads to be a multiple of kvHeads = 2 but received 3'],
    ['attentionSaliency', [saliency({ heads: 2 ** 40 })], 'ERR_RANGE', 'Expected input.heads to be an integer from 1 to 4096 but received 1099511627776'],
    ['attentionSaliency', [saliency({ q: i32(1) })], 'ERR_DTYPE', 'Expected input.q to be a Float32Array or a Tensor but received an Int32Array'],
    ['attentionSaliency', [saliency({ q: f32(1) })], 'ERR_SHAPE', 'Expected q to be rows of 4 but received 1 elements'],
    ['attentionSaliency', [saliency({ cuK: i32(0, 1, 2) })], 'ERR_SHAPE', 'Expected input.cuK to have 2 elements but received 3'],
    ['attentionSaliency', [saliency({ cuQ: i32(0, 3) })], 'ERR_RANGE', 'Expected cuQ to end at 2 but received 3'],
    ['attentionSaliency', [saliency({ cuColumns: i32(0, 1) })], 'ERR_RANGE', 'Expected cuColumns to end at 2 but received 1'],
    ['attentionSaliency', [saliency({ columns: i32(0, 2) })], 'ERR_RANGE', 'Expected columns of sequence 0 in 0..1 but received 2 at 1'],
    ['attentionSaliency', [saliency({ columns: i32(-1, 0) })], 'ERR_RANGE', 'Expected columns of sequence 0 in 0..1 but received -1 at 0'],
    ['attentionSaliency', [saliency({ cuK: i32(0, 0, 2), cuQ: i32(0, 1, 2), cuColumns: i32(0, 1, 2) })], 'ERR_RANGE', 'Expected columns of sequence 0 in 0..-1 but received 0 at 0'],
    ['attentionSaliency', [saliency({ lse: f32(1) })], 'ERR_SHAPE', 'Expected input.lse to have 2 elements but received 1'],
    ['attentionSaliencyGrad', [saliency(), f32(1)], 'ERR_SHAPE', 'Expected dsaliency to have 2 elements but received 1'],
    ['attentionSaliencyGrad', [saliency(), null], 'ERR_DTYPE', 'Expected dsaliency to be a Float32Array or a Tensor but received null'],
    ['coherentWindow', [x, undefined], 'ERR_ARGUMENT', 'Expected options to be an object but received undefined'],
    ['coherentWindow', [f32(1), replay()], 'ERR_RANGE', 'Expected cuTokens to end at 1 but received 4'],
    ['coherentWindow', [x, replay({ grids: i32(2, 2, 1) })], 'ERR_SHAPE', 'Expected grids to be rows of 2 but received 3 elements'],
    ['coherentWindow', [x, replay({ cuPictures: i32(0, 2) })], 'ERR_RANGE', 'Expected cuPictures to end at 1 but received 2'],
    ['coherentWindow', [x, replay({ grids: i32(-2, -2) })], 'ERR_RANGE', 'Expected grids of at least 1 x 1 but received -2 x -2 of picture 0'],
    ['coherentWindow', [x, replay({ grids: i32(2, 3) })], 'ERR_SHAPE', 'Expected the grids of sequence 0 to have 4 places in all but received 6'],
    ['coherentWindow', [x, replay({ cuPictures: i32(0, 3), grids: i32(...Array<number>(6).fill(2 ** 31 - 1)) })], 'ERR_SHAPE', 'Expected the grids of sequence 0 to have 4 places in all but received 9007199254740991'],
    ['coherentWindow', [x, replay({ patches: 0 })], 'ERR_RANGE', 'Expected options.patches to be an integer from 1 to 2147483647 but received 0'],
    ['coherentWindow', [x, replay({ window: 2 ** 31 })], 'ERR_RANGE', 'Expected options.window to be an integer from 1 to 2147483647 but received 2147483648'],
    ['coherentWindow', [x, replay({ weights: 'mean' })], 'ERR_ARGUMENT', "Expected options.weights to be one of 'mean-preserving', 'softmax' but received \"mean\""],
    ['coherentWindow', [x, replay({ used: u8(0, 0, 0) })], 'ERR_SHAPE', 'Expected options.used to have 4 elements but received 3'],
    ['coherentWindow', [x, replay({ used: u8(0, 255, 0, 0) })], 'ERR_RANGE', 'Expected used to hold 0 and 1 but received 255 at 1'],
    ['cropPatches', [image, undefined], 'ERR_ARGUMENT', 'Expected options to be an object but received undefined'],
    ['cropPatches', [u8(1), crop()], 'ERR_SHAPE', 'Expected image to have 48 elements but received 1'],
    ['cropPatches', [image, crop({ box: [0, 0, 4, 4] })], 'ERR_DTYPE', 'Expected options.box to be an Int32Array but received an Array'],
    ['cropPatches', [image, crop({ box: i32(0, 0, 5, 4) })], 'ERR_RANGE', 'Expected box to lie inside the 4 x 4 picture but received 0, 0, 5, 4'],
    ['cropPatches', [image, crop({ box: i32(2, 0, 2, 4) })], 'ERR_RANGE', 'Expected box to lie inside the 4 x 4 picture but received 2, 0, 2, 4'],
    ['cropPatches', [image, crop({ box: i32(0, -1, 4, 4) })], 'ERR_RANGE', 'Expected box to lie inside the 4 x 4 picture but received 0, -1, 4, 4'],
    ['cropPatches', [image, crop({ box: i32(0, 2 ** 31 - 1, 4, -(2 ** 31)) })], 'ERR_RANGE', 'Expected box to lie inside the 4 x 4 picture but received 0, 2147483647, 4, -2147483648'],
    ['cropPatches', [image, crop({ toHeight: 6 })], 'ERR_SHAPE', 'Expected toHeight and toWidth to be multiples of patch * merge = 4 but received 6 x 4'],
    ['cropPatches', [image, crop({ mean: f32(1) })], 'ERR_SHAPE', 'Expected options.mean to have 3 elements but received 1'],
    ['routeTokens', [x, route({ rule: 'all' })], 'ERR_ARGUMENT', "Expected options.rule to be one of 'threshold', 'prefix-topk', 'topk' but received \"all\""],
    ['routeTokens', [x, route({ cuSeqlens: i32(0, 5) })], 'ERR_RANGE', 'Expected cuSeqlens to end at 4 but received 5'],
    ['routeTokens', [x, route({ rule: 'threshold' })], 'ERR_ARGUMENT', 'Expected options.threshold to be a number but received undefined'],
    ['routeTokens', [x, route({ alpha: 0 })], 'ERR_RANGE', 'Expected options.alpha to be an integer from 1 to 2147483647 but received 0'],
    ['routeTokens', [x, route({ cuBest: i32(0) })], 'ERR_SHAPE', 'Expected options.cuBest to have 2 elements but received 1'],
    ['routeTokens', [x, route({ cuBest: i32(0, 1) })], 'ERR_RANGE', 'Expected cuBest to end at 0 but received 1'],
    ['routeTokens', [x, route({ cuBest: i32(0, 3), best: f32(3, 2, 1) })], 'ERR_RANGE', 'Expected at most alpha = 2 best scores of sequence 0 but received 3'],
    ['gatherRmsNorm', [x, i32(0, 2), f32(1, 1), null, 0], 'ERR_RANGE', 'Expected rows in 0..1 but received 2 at 1'],
    ['gatherRmsNorm', [x, i32(-1), f32(1, 1), null, 0], 'ERR_RANGE', 'Expected rows in 0..1 but received -1 at 0'],
    ['gatherRmsNorm', [x, i32(0), new Float32Array(0), null, 0], 'ERR_SHAPE', 'Expected h to be rows of 0 but received 4 elements'],
    ['gatherRmsNorm', [x, i32(0), f32(1, 1), f32(1), 0], 'ERR_SHAPE', 'Expected step to have 2 elements but received 1'],
    ['gatherRmsNorm', [x, i32(0), f32(1, 1), 5, 0], 'ERR_DTYPE', 'Expected step to be a Float32Array or a Tensor but received 5'],
    ['gatherRmsNorm', [x, i32(0), f32(1, 1), null, Number.NaN], 'ERR_RANGE', 'Expected eps to be a finite number from 0 to 1 but received NaN'],
    ['gatherRmsNormGrad', [x, i32(0), f32(1, 1), null, 0, f32(1)], 'ERR_SHAPE', 'Expected dy to have 2 elements but received 1'],
    ['gatedScatter', [x, f32(1, 1), f32(1), i32(2), null, 'plain', 2], 'ERR_RANGE', 'Expected rows in 0..1 but received 2 at 0'],
    ['gatedScatter', [x, x, f32(1, 1), i32(1, 1), null, 'plain', 2], 'ERR_RANGE', 'Expected rows to be distinct but received 1 at 1 again'],
    ['gatedScatter', [x, f32(1), f32(1), i32(0), null, 'plain', 2], 'ERR_SHAPE', 'Expected y to have 2 elements but received 1'],
    ['gatedScatter', [x, f32(1, 1), f32(1, 1), i32(0), null, 'plain', 2], 'ERR_SHAPE', 'Expected gate to have 1 elements but received 2'],
    ['gatedScatter', [x, f32(1, 1), f32(1), i32(0), f32(1), 'scaled', 2], 'ERR_SHAPE', 'Expected step to have 2 elements but received 1'],
    ['gatedScatter', [x, f32(1, 1), f32(1), i32(0), null, 'sum', 2], 'ERR_ARGUMENT', "Expected fusion to be one of 'interpolate', 'plain', 'scaled' but received \"sum\""],
    ['gatedScatter', [x, f32(1, 1), f32(1), i32(0), null, 'plain', 0], 'ERR_RANGE', 'Expected width to be an integer from 1 to 2147483647 but received 0'],
    ['gatedScatter', [x, f32(1, 1), f32(1), i32(0), null, 'plain', 3], 'ERR_SHAPE', 'Expected h to be rows of 3 but received 4 elements'],
    ['gatedScatterGrad', [x, f32(1, 1), f32(1), i32(0), null, 'plain', 2, f32(1)], 'ERR_SHAPE', 'Expected dout to have 4 elements but received 1'],
    ['packRagged', [x, i32(), 1], 'ERR_SHAPE', 'Expected no padded elements without lengths but received 4'],
    ['packRagged', [x, i32(1, 3), 1], 'ERR_RANGE', 'Expected lengths in 0..2 but received 3 at 1'],
    ['packRagged', [x, i32(-1), 1], 'ERR_RANGE', 'Expected lengths in 0..4 but received -1 at 0'],
    ['packRagged', [x, i32(1, 1, 1), 1], 'ERR_SHAPE', 'Expected padded to be rows of 3 but received 4 elements'],
    ['packRagged', [x, i32(1), 2 ** 31], 'ERR_RANGE', 'Expected width to be an integer from 1 to 2147483647 but received 2147483648'],
    ['unpackRagged', [x, i32(0, 4), 1, 3, 0], 'ERR_RANGE', 'Expected length to be at least the 4 rows of sequence 0 but received 3'],
    ['unpackRagged', [x, i32(0, 3), 1, 4, 0], 'ERR_RANGE', 'Expected cuSeqlens to end at 4 but received 3'],
    ['unpackRagged', [x, i32(0, 2, 4), 1, 2 ** 31 - 1, 0], 'ERR_RANGE', 'Expected at most 2147483647 padded rows but received 2 x 2147483647'],
    ['unpackRagged', [x, i32(0, 4), 1, 4, '0'], 'ERR_ARGUMENT', 'Expected fill to be a number but received "0"'],
    ['gradNorm', [x, undefined], 'ERR_ARGUMENT', 'Expected options to be an object but received undefined'],
    ['gradNorm', [x, norms({ tokens: 3 })], 'ERR_SHAPE', 'Expected grad to have 6 elements but received 4'],
    ['gradNorm', [x, norms({ tokens: 2 ** 53 - 1, channels: 2 ** 31 - 1 })], 'ERR_RANGE', 'Expected tokens * channels to be a safe integer but received more'],
    ['gradNorm', [x, norms({ channels: 0 })], 'ERR_RANGE', 'Expected options.channels to be an integer from 1 to 2147483647 but received 0'],
    ['gradNorm', [i32(1, 2, 3, 4), norms()], 'ERR_DTYPE', 'Expected grad to be a Float32Array or a Tensor but received an Int32Array'],
    ['gradNorm', [x, norms({ dtype: 'f16' })], 'ERR_DTYPE', 'Expected grad to be a Uint16Array but received a Float32Array'],
    ['gradNorm', [x, norms({ dtype: 'f64' })], 'ERR_ARGUMENT', "Expected options.dtype to be one of 'f32', 'f16', 'bf16' but received \"f64\""],
    ['gradNorm', [x, norms({ classes: u8(0) })], 'ERR_SHAPE', 'Expected options.classes to have 2 elements but received 1'],
    ['gradNorm', [x, norms({ classes: u8(0, 2) })], 'ERR_RANGE', 'Expected classes below numClasses = 2 but received 2 at 1'],
    ['gradNorm', [x, norms({ numClasses: 257 })], 'ERR_RANGE', 'Expected options.numClasses to be an integer from 1 to 256 but received 257'],
    ['gradNorm', [x, norms({ scale: Number.NaN })], 'ERR_RANGE', 'Expected options.scale to be a finite number from 0 to 3e+38 but received NaN'],
    ['globalNorm', [x, 'f32'], 'ERR_ARGUMENT', 'Expected tensors to be an Array but received a Float32Array'],
    ['globalNorm', [[i32(1)], 'f32'], 'ERR_DTYPE', 'Expected tensors[0] to be a Float32Array or a Tensor but received an Int32Array'],
    ['globalNorm', [[], 'f8'], 'ERR_ARGUMENT', "Expected dtype to be one of 'f32', 'f16', 'bf16' but received \"f8\""],
    ['globalNorm', [[new Uint16Array(1)], 'f32'], 'ERR_DTYPE', 'Expected tensors[0] to be a Float32Array or a Tensor but received a Uint16Array'],
    ['gradSpectra', [[x], i32(2), 'f32'], 'ERR_SHAPE', 'Expected shapes to have 2 elements but received 1'],
    ['gradSpectra', [[x], i32(2, 0), 'f32'], 'ERR_RANGE', 'Expected matrices of at least 1 x 1 but received 2 x 0 of matrix 0'],
    ['gradSpectra', [[x], i32(2, 3), 'f32'], 'ERR_SHAPE', 'Expected matrices[0] to have 6 elements but received 4'],
    ['gradSpectra', [[x], i32(2 ** 31 - 1, 2 ** 31 - 1), 'f32'], 'ERR_SHAPE', 'Expected matrices[0] to have 4611686014132420609 elements but received 4'],
    ['gradSpectra', [[x], i32(2, 2), 'bf16'], 'ERR_DTYPE', 'Expected matrices[0] to be a Uint16Array but received a Float32Array'],
  ];
  test.each(cases)('%s %#', (op, values, code, message) => expectRejection(ops()[op]!(...values), code, `[${op}] ${message}`));

  test('a result beyond the address space is an error', () =>
    expectRejection(ops().unpackRagged!(new Float32Array(0), i32(0, 0), 2 ** 31 - 1, 2 ** 31 - 1, 0), 'ERR_OUT_OF_MEMORY', '[native] Expected a size that memory can hold but received a larger one'));

  test('no rows at all are fine', async () => {
    const none = new Float32Array(0);
    expect(await native().ops.attentionSaliency({ ...saliency(), q: none, k: none, cuQ: i32(0), cuK: i32(0), columns: i32(), cuColumns: i32(0) })).toEqual({ saliency: none });
    expect(await native().ops.routeTokens(none, { rule: 'topk', cuSeqlens: i32(0), alpha: 5 })).toEqual({ rows: i32(), cuRouted: i32(0), order: i32() });
    expect(await native().ops.gatherRmsNorm(none, i32(), f32(1, 1), null, 0)).toEqual({ x: none, y: none, rstd: none });
    expect(await native().ops.gatherRmsNormGrad(none, i32(), f32(1, 1), null, 0, none)).toEqual({ dh: none, dstep: f32(0, 0), dweight: f32(0, 0) });
    expect(await native().ops.gatedScatterGrad(none, none, none, i32(), null, 'interpolate', 3, none)).toEqual({ dh: none, dy: none, dgate: none });
  });

  test('a threshold of NaN routes nothing, of -Infinity all but NaN', async () => {
    const scores = f32(1, Number.NaN, -Infinity, 2);
    expect((await native().ops.routeTokens(scores, { rule: 'threshold', cuSeqlens: i32(0, 4), threshold: Number.NaN })).rows).toEqual(i32());
    expect((await native().ops.routeTokens(scores, { rule: 'threshold', cuSeqlens: i32(0, 4), threshold: -Infinity })).rows).toEqual(i32(0, 3));
  });
});

describe('Tensor', () => {
  const make = (size: unknown) => new (native().Tensor as unknown as new (size: unknown) => NativeTensor)(size);
  let tensor: NativeTensor;
  beforeAll(() => { tensor = make(4); });
  afterAll(() => tensor.dispose());

  test.each([
    [undefined, 'ERR_ARGUMENT', '[Tensor] Expected size to be an integer from 0 to 9007199254740991 but received undefined'],
    [-1, 'ERR_RANGE', '[Tensor] Expected size to be an integer from 0 to 9007199254740991 but received -1'],
    [1.5, 'ERR_RANGE', '[Tensor] Expected size to be an integer from 0 to 9007199254740991 but received 1.5'],
    [2 ** 53, 'ERR_RANGE', '[Tensor] Expected size to be an integer from 0 to 9007199254740991 but received 9007199254740992'],
    [2 ** 53 - 1, 'ERR_OUT_OF_MEMORY', '[allocate] Expected 36028797018963964 bytes of memory but received none'],
  ])('size %p', (size, code, message) => {
    const before = native().liveObjects();
    expect(() => make(size)).toThrow(expect.objectContaining({ code, message }));
    expect(native().liveObjects()).toEqual(before);
  });

  test('read and write', async () => {
    const loose = tensor as unknown as Loose;
    await expectRejection(loose.read!(7), 'ERR_ARGUMENT', '[read] Expected token to be a CancelToken or undefined but received 7');
    await expectRejection(loose.write!(i32(1), 0), 'ERR_DTYPE', '[write] Expected data to be a Float32Array but received an Int32Array');
    await expectRejection(loose.write!(tensor, 0), 'ERR_DTYPE', '[write] Expected data to be a Float32Array but received an object');
    await expectRejection(loose.write!(f32(1), 5), 'ERR_RANGE', '[write] Expected offset to be an integer from 0 to 4 but received 5');
    await expectRejection(loose.write!(f32(1), undefined), 'ERR_ARGUMENT', '[write] Expected offset to be an integer from 0 to 4 but received undefined');
    await expectRejection(loose.write!(f32(1, 2), 3), 'ERR_SHAPE', '[write] Expected data to have at most 1 elements but received 2');
  });

  test('a foreign `this`, a call without new, an object that inherits from a tensor', async () => {
    expect(() => tensor.read.call({} as NativeTensor)).toThrow('Illegal invocation');
    expect(() => (native() as unknown as Loose).Tensor!(4)).toThrow();
    await expectRejection(ops().packRagged!(Object.create(tensor), i32(4), 1), 'ERR_DTYPE', '[packRagged] Expected padded to be a Float32Array or a Tensor but received an object');
    await expectRejection(ops().packRagged!(new (native().CancelToken)(), i32(4), 1), 'ERR_DTYPE', '[packRagged] Expected padded to be a Float32Array or a Tensor but received an object');
    await expectRejection(ops().packRagged!(new Proxy(tensor, {}), i32(4), 1), 'ERR_DTYPE', '[packRagged] Expected padded to be a Float32Array or a Tensor but received an object');
  });

  test('`into`: another object, of the wrong size, disposed, an input, the same one twice', async () => {
    const pack = (into: unknown) => ops().packRagged!(tensor, i32(4), 1, into);
    await expectRejection(pack(5), 'ERR_ARGUMENT', '[packRagged] Expected into to be an object but received 5');
    await expectRejection(pack({}), 'ERR_ARGUMENT', '[packRagged] Expected into.packed to be a Tensor but received undefined');
    await expectRejection(pack({ packed: x }), 'ERR_ARGUMENT', '[packRagged] Expected into.packed to be a Tensor but received a Float32Array');
    await expectRejection(pack({ packed: tensor }), 'ERR_ARGUMENT', '[packRagged] Expected into.packed to be a Tensor of its own but received one that the operation uses already');
    const other = make(5);
    await expectRejection(pack({ packed: other }), 'ERR_SHAPE', '[packRagged] Expected into.packed to have 4 elements but received 5');
    other.dispose();
    await expectRejection(pack({ packed: other }), 'ERR_DISPOSED', '[packRagged] Expected a living Tensor but received one that is disposed');
    await expectRejection(ops().packRagged!(other, i32(4), 1), 'ERR_DISPOSED', '[packRagged] Expected a living Tensor but received one that is disposed');
    const twice = make(2);
    await expectRejection(ops().gatherRmsNorm!(x, i32(0), f32(1, 1), null, 0, { x: twice, y: twice, rstd: make(1) }), 'ERR_ARGUMENT',
      '[gatherRmsNorm] Expected into.y to be a Tensor of its own but received one that the operation uses already');
  });

  test('a getter that disposes the tensor it has just given does no harm', async () => {
    const own = make(4);
    await own.write(f32(1, 2, 3, 4), 0);
    const out = make(4);
    const into = { get packed() { own.dispose(); return out; } };
    expect(await ops().packRagged!(own, i32(4), 1, into)).toEqual({});
    expect(await out.read()).toEqual(f32(1, 2, 3, 4));
    out.dispose();
  });
});
