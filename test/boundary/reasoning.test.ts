/** Misuse of replay and routing that reaches the addon past lib: a typed error with its full message, and the process lives. */
import { native, type NativeModel, type NativePass, type NativeSessionOptions } from '../../lib/native';
import { closeAll, expectRejection, i32, lookedAt, made, open, OPTIONS, PICTURES, promptPass, u8 } from './tinyReasoner';
import { EXTRAS, REPLAY, ROUTING, tokenPass } from './tinyModel';


let model: NativeModel;
beforeAll(async () => { model = await made(); });
afterEach(closeAll);
afterAll(() => model.dispose());
const ready = (options: Partial<NativeSessionOptions> = {}, pictures = PICTURES): ReturnType<typeof lookedAt> => lookedAt(model, options, pictures);

describe('opening', () => {
  const wrong = (change: object): unknown => new (native().Session)(model, { ...OPTIONS, ...change } as unknown as NativeSessionOptions);
  const replay = (change: object): object => ({ replay: { ...REPLAY, ...change } });
  const routing = (change: object): object => ({ routing: { ...ROUTING, ...change } });
  test.each<[object, string, string]>([
    [{ training: 1 }, 'ERR_ARGUMENT', 'options.training to be a boolean but received 1'],
    [{ replay: 5 }, 'ERR_ARGUMENT', 'options.replay to be an object but received 5'],
    [replay({ patches: 0 }), 'ERR_RANGE', 'options.replay.patches to be an integer from 1 to 1048576 but received 0'],
    [replay({ patches: 2 ** 31 }), 'ERR_RANGE', 'options.replay.patches to be an integer from 1 to 1048576 but received 2147483648'],
    [replay({ window: NaN }), 'ERR_RANGE', 'options.replay.window to be an integer from 1 to 1048576 but received NaN'],
    [replay({ grid: 4097 }), 'ERR_RANGE', 'options.replay.grid to be an integer from 0 to 4096 but received 4097'],
    [replay({ weights: 'raw' }), 'ERR_ARGUMENT', "options.replay.weights to be one of 'mean-preserving', 'softmax' but received \"raw\""],
    [replay({ srInput: 1 }), 'ERR_ARGUMENT', "options.replay.srInput to be one of 'weighted', 'unweighted' but received 1"],
    ...['mix', 'reselectUsed', 'topkOrder', 'saliencyGradient', 'tokenSr', 'srAdded', 'targetGradient', 'officialCrop'].map((key): [object, string, string] =>
      [replay({ [key]: undefined }), 'ERR_ARGUMENT', `options.replay.${key} to be a boolean but received undefined`]),
    [{ routing: 'all' }, 'ERR_ARGUMENT', 'options.routing to be an object but received "all"'],
    [routing({ layers: 'odd' }), 'ERR_ARGUMENT', 'options.routing.layers to be an Array but received "odd"'],
    [routing({ layers: i32(1) }), 'ERR_ARGUMENT', 'options.routing.layers to be an Array but received an Int32Array'],
    [routing({ layers: [1, 1] }), 'ERR_RANGE', 'routing.layers to rise'],
    [routing({ layers: [-1] }), 'ERR_RANGE', 'options.routing.layers[0] to be an integer from 0 to 4095 but received -1'],
    [routing({ layers: [0, 2] }), 'ERR_RANGE', 'routed layers in 0..1 but received 2'],
    [routing({ layers: new Array(5000).fill(0) }), 'ERR_SHAPE', 'options.routing.layers to have at most 4096 elements but received 5000'],
    [routing({ rule: 'best' }), 'ERR_ARGUMENT', "options.routing.rule to be one of 'threshold', 'prefix-topk', 'topk' but received \"best\""],
    [routing({ router: 'gru' }), 'ERR_ARGUMENT', "options.routing.router to be one of 'linear', 'mlp' but received \"gru\""],
    [routing({ alpha: 0 }), 'ERR_RANGE', 'options.routing.alpha to be an integer from 1 to 1048576 but received 0'],
    [routing({ maxDepth: 5 }), 'ERR_RANGE', 'options.routing.maxDepth to be an integer from 2 to 4 but received 5'],
    [routing({ maxDepth: 1 }), 'ERR_RANGE', 'options.routing.maxDepth to be an integer from 2 to 4 but received 1'],
    [routing({ gate: null }), 'ERR_ARGUMENT', "options.routing.gate to be one of 'sigmoid', 'raw', 'softmax-sequence' but received null"],
    [routing({ fusion: 'add' }), 'ERR_ARGUMENT', "options.routing.fusion to be one of 'interpolate', 'scaled', 'plain' but received \"add\""],
    [routing({ misordered: 0 }), 'ERR_ARGUMENT', 'options.routing.misordered to be a boolean but received 0'],
    [routing({ misordered: true }), 'ERR_ARGUMENT', "routing.misordered only with rule 'topk' and fusion 'plain' or 'scaled', as the released code has it"],
    [routing({ router: 'mlp' }), 'ERR_ARGUMENT', "a model with parameter 'router.0.0.weight' of shape [4, 16] but received one without"],
  ])('%j', (change, code, message) => {
    expect(() => wrong(change)).toThrow(expect.objectContaining({ code, message: `[Session] Expected ${message}` }));
  });
  test('a getter that throws or disposes', () => {
    expect(() => wrong({ get replay() { throw new Error('mine'); } })).toThrow('mine');
    expect(() => wrong({ routing: { get layers() { throw new RangeError('yours'); } } })).toThrow('yours');
  });
  test.each<[string, number[], string, string, object]>([
    ['router.0.weight', [1, 4], '[1, 16]', '[1, 4]', {}], ['router.1.weight', [2, 16], '[1, 16]', '[2, 16]', {}], ['router.0.weight', [16], '[1, 16]', '[16]', {}],
    ['router.1.bias', [1, 1], '[1]', '[1, 1]', {}], ['router.0.threshold', [9], '[1]', '[9]', { routing: { ...ROUTING, rule: 'threshold' } }],
    ['step.3', [15], '[16]', '[15]', {}], ['token_sr.0.weight', [16, 17], '[16, 16]', '[16, 17]', {}], ['token_sr.2.bias', [1], '[16]', '[1]', {}],
  ])('%s of shape %j, which would be read past its end', async (name, shape, expected, received, change) => {
    const other = await made(EXTRAS.map((extra) => (extra.name === name ? { name, shape } : extra)));
    expect(() => open(other, change)).toThrow(expect.objectContaining({ code: 'ERR_SHAPE', message: `[Session] Expected a model with parameter '${name}' of shape ${expected} but received ${received}` }));
    other.dispose();
  });
  test('without token super-resolution its parameters are not needed, nor step vectors for plain fusion', async () => {
    const other = await made(EXTRAS.filter(({ name }) => name.startsWith('router')));
    const plain = { ...ROUTING, fusion: 'plain' as const };
    expect(() => open(other, { routing: plain })).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT', message: "[Session] Expected a model with parameter 'token_sr.0.weight' of shape [16, 16] but received one without" }));
    expect(() => open(other, { replay: { ...REPLAY, tokenSr: false, srAdded: false } })).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT', message: "[Session] Expected a model with parameter 'step.2' of shape [16] but received one without" }));
    const session = open(other, { routing: plain, replay: { ...REPLAY, tokenSr: false, srAdded: false } });
    expect((await session.extend({ ...tokenPass(session.add(), [1, 2]), traceRouting: true })).routing).toHaveLength(4);
    other.dispose();
  });
});

describe('setPictures', () => {
  test.each<[object, string, string]>([
    [{ columns: [1, 2, 3, 4] }, 'ERR_DTYPE', 'pictures.columns to be an Int32Array but received an Array'],
    [{ columns: i32(1, 2, 3) }, 'ERR_SHAPE', 'pictures.visualRows to have 3 elements but received 4'],
    [{ columns: i32(1, 2, 3, -4) }, 'ERR_RANGE', 'columns in 0..1073741823 but received -4 at 3'],
    [{ visualRows: i32(0, 1, 2) }, 'ERR_SHAPE', 'pictures.visualRows to have 4 elements but received 3'],
    [{ visualRows: i32(0, 1, 2, 4) }, 'ERR_RANGE', 'visual rows in 0..3 but received 4'],
    [{ visualRows: i32(0, 1, 2, -1) }, 'ERR_RANGE', 'visual rows in 0..3 but received -1'],
    [{ grids: i32(2, 2, 1), sizes: i32(8, 8, 4) }, 'ERR_SHAPE', 'grids to be pairs of rows and columns but received 3 elements'],
    [{ grids: i32(2, 3), sizes: i32(8, 12) }, 'ERR_SHAPE', 'as many columns and visual rows as the grids have tokens, 6, but received 4 and 4'],
    [{ sizes: i32(8, 9) }, 'ERR_SHAPE', 'sizes to be the grids times patch * merge = 4 but received 9 for 2'],
    [{ sizes: i32(8) }, 'ERR_SHAPE', 'pictures.sizes to have 2 elements but received 1'],
    [{ grids: i32(-2, -2), sizes: i32(-8, -8) }, 'ERR_RANGE', 'sizes with sides of 1 to 1048576 but received -8 x -8'],
    [{ grids: i32(2 ** 29, 4), sizes: i32(2 ** 31 - 1, 16) }, 'ERR_RANGE', 'sizes with sides of 1 to 1048576 but received 2147483647 x 16'],
    [{ grids: i32(262144, 262144), sizes: i32(1048576, 1048576) }, 'ERR_RANGE', 'sizes of at most 2^40 bytes of pixels in all but received more'],
    [{ originalSizes: i32(5, 6, 7) }, 'ERR_SHAPE', 'pictures.originalSizes to have 2 elements but received 3'],
    [{ originalSizes: i32(0, 6) }, 'ERR_RANGE', 'originalSizes with sides of 1 to 1048576 but received 0 x 6'],
    [{ originals: new Uint8Array(89) }, 'ERR_SHAPE', 'originals to have 90 bytes but received 89'],
    [{ originals: new Uint8ClampedArray(90) }, 'ERR_DTYPE', 'pictures.originals to be a Uint8Array but received a Uint8ClampedArray'],
    [{ originalSizes: undefined }, 'ERR_ARGUMENT', 'originalSizes together with originals'],
  ])('%#', async (change, code, message) => {
    const { loose, id } = await ready();
    await expectRejection(loose.setPictures!(id, { ...PICTURES, ...change }), code, `[setPictures] Expected ${message}`);
    await loose.replay!(i32(id), { targets: true, saliency: true });   // what was set before still holds
  });
  test('other arguments', async () => {
    const { loose, session } = await ready();
    await expectRejection(loose.setPictures!(0), 'ERR_ARGUMENT', '[setPictures] Expected pictures to be an object but received undefined');
    await expectRejection(loose.setPictures!('0', PICTURES), 'ERR_ARGUMENT', '[setPictures] Expected sequence to be an integer from 0 to 2147483647 but received "0"');
    await expectRejection(loose.setPictures!(9, PICTURES), 'ERR_ARGUMENT', '[setPictures] Expected a live sequence of this session but received id 9');
    const empty = open(model);
    await expectRejection(empty.setPictures(empty.add(), PICTURES), 'ERR_RANGE', '[setPictures] Expected visual rows in 0..-1 but received 0');
    const columns = i32(1, 2, 3, 4);
    structuredClone(columns.buffer, { transfer: [columns.buffer as ArrayBuffer] });
    await expectRejection(loose.setPictures!(0, { ...PICTURES, columns }), 'ERR_SHAPE', '[setPictures] Expected pictures.visualRows to have 0 elements but received 4');
    await expectRejection(loose.setPictures!(0, { ...PICTURES, get grids() { session.dispose(); return i32(2, 2); } }), 'ERR_DISPOSED', '[setPictures] Expected a living Session but received one that is disposed');
  });
  test('no picture at all: nothing is replayed', async () => {
    const { session, id } = await ready({}, { columns: i32(), visualRows: i32(), grids: i32(), sizes: i32() });
    expect(await session.replay(i32(id), { targets: true, saliency: true })).toMatchObject({ rows: i32(0), firstRow: i32(0), cuSelected: i32(0, 0), selected: i32(), srLosses: Float32Array.of(NaN), saliency: new Float32Array(0) });
  });
});

describe('extend', () => {
  test.each<[Partial<Record<keyof NativePass, unknown>>, string, string]>([
    [{ saliency: i32(1) }, 'ERR_DTYPE', 'pass.saliency to be a Uint8Array but received an Int32Array'],
    [{ saliency: u8(1, 1) }, 'ERR_SHAPE', 'pass.saliency to have 1 elements but received 2'],
    [{ saliency: u8() }, 'ERR_SHAPE', 'pass.saliency to have 1 elements but received 0'],
    [{ traceRouting: 'yes' }, 'ERR_ARGUMENT', 'pass.traceRouting to be a boolean but received "yes"'],
    [{ kind: u8(4, 0), index: i32(0, 1) }, 'ERR_RANGE', 'stored rows in 0..-1 but received 0 at row 0'],
    [{ forcedRoutes: 'all' }, 'ERR_ARGUMENT', 'pass.forcedRoutes to be an Array but received "all"'],
    [{ forcedRoutes: [5] }, 'ERR_ARGUMENT', 'pass.forcedRoutes[0] to be an object but received 5'],
    [{ forcedRoutes: [{ layer: -1, depth: 2, rows: i32() }] }, 'ERR_RANGE', 'pass.forcedRoutes[0].layer to be an integer from 0 to 4095 but received -1'],
    [{ forcedRoutes: [{ layer: 0, depth: 1, rows: i32() }] }, 'ERR_RANGE', 'pass.forcedRoutes[0].depth to be an integer from 2 to 4 but received 1'],
    [{ forcedRoutes: [{ layer: 0, depth: 2, rows: [0] }] }, 'ERR_DTYPE', 'pass.forcedRoutes[0].rows to be an Int32Array but received an Array'],
    [{ forcedRoutes: [{ layer: 2, depth: 2, rows: i32() }] }, 'ERR_ARGUMENT', 'forcedRoutes of layers that the session routes, at depths 2..3, but received layer 2 at depth 2'],
    [{ forcedRoutes: [{ layer: 1, depth: 4, rows: i32() }] }, 'ERR_ARGUMENT', 'forcedRoutes of layers that the session routes, at depths 2..3, but received layer 1 at depth 4'],
    [{ forcedRoutes: [{ layer: 1, depth: 2, rows: i32() }, { layer: 0, depth: 2, rows: i32() }, { layer: 1, depth: 2, rows: i32(0) }] }, 'ERR_ARGUMENT', 'each layer and depth once in forcedRoutes but received layer 1 at depth 2 twice'],
    [{ forcedRoutes: [{ layer: 0, depth: 2, rows: i32(0, 2) }] }, 'ERR_RANGE', 'rows of forcedRoutes to rise within 0..1 but received 2 at 1'],
    [{ forcedRoutes: [{ layer: 0, depth: 2, rows: i32(-1) }] }, 'ERR_RANGE', 'rows of forcedRoutes to rise within 0..1 but received -1 at 0'],
    [{ forcedRoutes: [{ layer: 0, depth: 2, rows: i32(1, 1) }] }, 'ERR_RANGE', 'rows of forcedRoutes to rise within 0..1 but received 1 at 1'],
    [{ saliency: u8(1) }, 'ERR_ARGUMENT', 'saliency of a sequence with pictures and with rows in this pass but received id 0'],
  ])('%j', async (change, code, message) => {
    const session = open(model);
    await expectRejection(session.extend({ ...tokenPass(session.add(), [1, 2]), ...change } as NativePass), code, `[extend] Expected ${message}`);
  });
  test('forced routes need a session that routes, and are no more than can be', async () => {
    const session = new (native().Session)(model, { training: false, recompute: false, detachLatents: false, visionGradient: false });
    await expectRejection(session.extend({ ...tokenPass(session.add(), [1, 2]), forcedRoutes: [{ layer: 0, depth: 2, rows: i32(0) }] }), 'ERR_ARGUMENT',
      '[extend] Expected forcedRoutes of layers that the session routes, at depths 2..2, but received layer 0 at depth 2');
    await expectRejection(session.extend({ ...tokenPass(session.add(), [1]), forcedRoutes: new Array(16385) }), 'ERR_SHAPE', '[extend] Expected pass.forcedRoutes to have at most 16384 elements but received 16385');
    session.dispose();
  });
  test('stored rows end where the last block ends', async () => {
    const { session, id } = await ready();
    const { rows, firstRow } = await session.replay(i32(id), { targets: false, saliency: false });
    expect([...rows, ...firstRow]).toEqual([2, 0]);
    expect(await session.keepLatents(i32(id, id))).toBe(2);
    await expectRejection(session.extend({ ...tokenPass(id, [3, 4]), kind: u8(4, 4) }), 'ERR_RANGE', '[extend] Expected stored rows in 0..3 but received 4 at row 1');
    await session.extend({ ...tokenPass(id, [0, 1, 2, 3]), kind: u8(4, 4, 4, 4) });
  });
  test('image tokens that are not there yet', async () => {
    const session = open(model);
    const id = session.add();
    await session.encode(new Uint8Array(3 * 64), i32(1, 8, 8));
    await session.setPictures(id, PICTURES);
    await expectRejection(session.extend({ ...tokenPass(id, [1, 2, 3, 4]), saliency: u8(1) }), 'ERR_RANGE', '[extend] Expected the image tokens of sequence 0 to be among its 4 rows but received row 4');
    await session.setPictures(id, { ...PICTURES, columns: i32(2 ** 30 - 1, 0, 0, 0) });
    await expectRejection(session.extend(promptPass(id)), 'ERR_RANGE', '[extend] Expected the image tokens of sequence 0 to be among its 6 rows but received row 1073741823');
  });
  test.each<Partial<typeof ROUTING>>([{ rule: 'topk' }, { gate: 'softmax-sequence' }])('%j cannot be cached: a whole sequence or none', async (change) => {
    const session = open(model, { routing: { ...ROUTING, ...change } });
    const [id, other] = [session.add(), session.add()];
    await session.extend(tokenPass(id, [1, 2]));
    await expectRejection(session.extend(tokenPass(id, [3])), 'ERR_UNSUPPORTED',
      `[extend] Expected a sequence without earlier rows, because rule 'topk' and gate 'softmax-sequence' look ahead and cannot be cached, but received id ${id} with 2 rows; restart it and run the whole sequence`);
    await session.extend({ ...tokenPass(other, [3]), sequences: i32(id, other), cuSeqlens: i32(0, 0, 1) });   // no rows of the first
    await session.restart(i32(id));
    await session.extend(tokenPass(id, [1, 2, 3]));
  });
});
