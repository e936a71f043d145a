/** Misuse of replays, kept latents, tapes and thresholds: a typed error with its full message, and what stays usable after it. */
import { native, type NativeModel, type NativePass, type NativeReplayResult, type NativeSession, type NativeSessionOptions } from '../../lib/native';
import { closeAll, expectRejection, i32, lookedAt, made, open, PICTURES, promptPass, u8, type Loose } from './tinyReasoner';
import { EXTRAS, REPLAY, ROUTING, tokenPass } from './tinyModel';

const BOTH = { targets: true, saliency: true };
const NEITHER = { targets: false, saliency: false };
let model: NativeModel;
beforeAll(async () => { model = await made(); });
afterEach(closeAll);
afterAll(() => model.dispose());
const ready = (options: Partial<NativeSessionOptions> = {}, pictures = PICTURES): ReturnType<typeof lookedAt> => lookedAt(model, options, pictures);
const f32 = (...values: number[]): Float32Array => Float32Array.from(values);

describe('replay', () => {
  test.each<[unknown[], string, string]>([
    [[[0], BOTH], 'ERR_DTYPE', 'sequences to be an Int32Array but received an Array'],
    [[u8(0), BOTH], 'ERR_DTYPE', 'sequences to be an Int32Array but received a Uint8Array'],
    [[i32(0)], 'ERR_ARGUMENT', 'options to be an object but received undefined'],
    [[i32(0), { targets: true }], 'ERR_ARGUMENT', 'options.saliency to be a boolean but received undefined'],
    [[i32(0), { targets: 1, saliency: true }], 'ERR_ARGUMENT', 'options.targets to be a boolean but received 1'],
    [[i32(0), BOTH, {}], 'ERR_ARGUMENT', 'token to be a CancelToken or undefined but received an object'],
    [[i32(9), BOTH], 'ERR_ARGUMENT', 'a live sequence of this session but received id 9'],
    [[i32(-1), BOTH], 'ERR_ARGUMENT', 'a live sequence of this session but received id -1'],
    [[i32(2 ** 31 - 1), BOTH], 'ERR_ARGUMENT', 'a live sequence of this session but received id 2147483647'],
    [[i32(0, 0), BOTH], 'ERR_ARGUMENT', 'each sequence once'],
  ])('%#', async ([...values], code, message) => {
    const { loose } = await ready();
    await expectRejection(loose.replay!(...values), code, `[replay] Expected ${message}`);
    await loose.replay!(i32(0), BOTH);
  });
  const without = (id: number): string => `[replay] Expected sequences whose last pass collected saliency, which one replay takes, but received id ${id} without`;
  test('once for one saliency; again after the next pass that looks', async () => {
    const { session, id } = await ready();
    await session.replay(i32(id), NEITHER);
    await expectRejection(session.replay(i32(id), NEITHER), 'ERR_ARGUMENT', without(id));
    await session.extend(tokenPass(id, [1]));
    await expectRejection(session.replay(i32(id), NEITHER), 'ERR_ARGUMENT', without(id));
    await session.extend({ ...tokenPass(id, [1]), saliency: u8(1) });
    expect([...(await session.replay(i32(id), NEITHER)).rows]).toEqual([2]);
  });
  test('not without pictures, not after a pass that did not look, not after new pictures, not of a new sequence', async () => {
    const { session, id } = await ready();
    await session.setPictures(id, PICTURES);
    await expectRejection(session.replay(i32(id), NEITHER), 'ERR_ARGUMENT', without(id));
    const other = session.add();
    await expectRejection(session.replay(i32(other), NEITHER), 'ERR_ARGUMENT', without(other));
    await session.extend(tokenPass(other, [1]));
    await expectRejection(session.replay(i32(other), NEITHER), 'ERR_ARGUMENT', without(other));
  });
  test('new pictures forget what was replayed', async () => {
    const { session, id } = await ready();
    const first = await session.replay(i32(id), BOTH);
    await session.extend({ ...tokenPass(id, [1]), saliency: u8(1) });
    const second = await session.replay(i32(id), BOTH);
    expect(new Set([...first.selected, ...second.selected]).size).toBe(4);
    await session.extend({ ...tokenPass(id, [1]), saliency: u8(1) });
    expect([...(await session.replay(i32(id), BOTH)).rows]).toEqual([0]);
    await session.setPictures(id, PICTURES);
    await session.extend({ ...tokenPass(id, [1]), saliency: u8(1) });
    expect([...(await session.replay(i32(id), BOTH)).rows]).toEqual([2]);
  });
  test('targets want originals and super-resolution, a session without replay has none', async () => {
    const { originals: _, ...rest } = PICTURES;
    const { session, id } = await ready({}, rest);
    await expectRejection(session.replay(i32(id), BOTH), 'ERR_ARGUMENT', `[replay] Expected the pictures of sequence ${id} with their originals, which targets are cut from, but received none`);
    expect((await session.replay(i32(id), NEITHER)).boxes.some((side) => side > 0)).toBe(true);   // sizes alone give boxes
    const bare = await ready({ replay: { ...REPLAY, tokenSr: false, srAdded: false } });
    await expectRejection(bare.session.replay(i32(bare.id), BOTH), 'ERR_ARGUMENT', '[replay] Expected token super-resolution to be on for targets but received a session without');
    const { replay: __, ...plain } = { training: false, recompute: false, detachLatents: false, visionGradient: false, replay: undefined };
    const off = new (native().Session)(model, plain);
    await expectRejection(off.replay(i32(off.add()), NEITHER), 'ERR_ARGUMENT', '[replay] Expected a session that was opened with replay but received one without');
    off.dispose();
    const early = new (native().Model)({ ...(await import('./tinyModel')).tinySpec(), extras: EXTRAS });
    const training = open(early, { training: true });
    await expectRejection(training.replay(i32(), NEITHER), 'ERR_ARGUMENT', "[Session] Expected the model's training to be enabled before a training session is used");
    early.dispose();
  });
  test('of no sequences', async () => {
    const { session } = await ready();
    expect(await session.replay(i32(), BOTH)).toMatchObject({ rows: i32(), cuSelected: i32(0), selected: i32(), srLosses: f32(), saliency: f32() });
    expect(await session.keepLatents(i32())).toBe(0);
    await session.restart(i32());
  });
  test('huge K and windows take what there is', async () => {
    const { session, id } = await ready({ replay: { ...REPLAY, patches: 2 ** 20, window: 2 ** 20, grid: 4096 }, routing: { ...ROUTING, alpha: 2 ** 20, maxDepth: 3 } });
    const { rows, windows } = await session.replay(i32(id), BOTH);
    expect([...rows, ...windows]).toEqual([4, 0, 0, 0, 4096, 4096, 4]);
  });
  test('saliency that is not finite: no NaN weights, no crash', async () => {
    const { session, id } = await ready();
    await session.extend({ ...tokenPass(id, [0]), kind: u8(3), embeddings: new Float32Array(16).fill(NaN), saliency: u8(1) });
    const { weights, selected } = await session.replay(i32(id), BOTH);
    expect([...weights]).toEqual([1, 1]);
    expect([...selected]).toEqual([0, 1]);
  });
});

describe('keepLatents, restart, readReplay', () => {
  test('ids', async () => {
    const { session, loose, id } = await ready({ training: true });
    const fresh = session.add();
    await expectRejection(session.keepLatents(i32(id, fresh)), 'ERR_ARGUMENT', `[keepLatents] Expected sequences with rows, whose last hidden state is kept, but received id ${fresh} without`);
    expect(await session.keepLatents(i32(id))).toBe(0);   // the refused call kept nothing
    for (const method of ['keepLatents', 'restart'] as const) {
      await expectRejection(session[method](i32(77)), 'ERR_ARGUMENT', `[${method}] Expected a live sequence of this session but received id 77`);
      await expectRejection(loose[method]!([0]), 'ERR_DTYPE', `[${method}] Expected sequences to be an Int32Array but received an Array`);
      await expectRejection(loose[method]!(), 'ERR_DTYPE', `[${method}] Expected sequences to be an Int32Array but received undefined`);
    }
    await session.restart(i32(fresh, id, id));
    expect((await session.extend({ ...promptPass(id), logitRows: i32(5) })).logits.every(Number.isFinite)).toBe(true);
  });
  test('only replays of a training session that had targets and saliency are read', async () => {
    const { session, loose, id } = await ready({ training: true });
    await session.replay(i32(id), NEITHER);
    await session.extend({ ...tokenPass(id, [1]), saliency: u8(1) });
    await session.replay(i32(id), BOTH);
    expect((await session.readReplay(1, 0)).u).toHaveLength(16);
    await expectRejection(session.readReplay(0, 0), 'ERR_RANGE', '[readReplay] Expected a sequence with a block, of a replay with targets and saliency, but received index 0');
    await expectRejection(session.readReplay(1, 1), 'ERR_RANGE', '[readReplay] Expected a sequence with a block, of a replay with targets and saliency, but received index 1');
    await expectRejection(session.readReplay(2, 0), 'ERR_RANGE', '[readReplay] Expected the number of a replay of a training session but received 2');
    await expectRejection(loose.readReplay!(-1, 0), 'ERR_RANGE', '[readReplay] Expected replay to be an integer from 0 to 2147483647 but received -1');
    await expectRejection(loose.readReplay!(1, '0'), 'ERR_ARGUMENT', '[readReplay] Expected index to be an integer from 0 to 2147483647 but received "0"');
    const inference = await ready();
    await inference.session.replay(i32(inference.id), BOTH);
    await expectRejection(inference.session.readReplay(0, 0), 'ERR_RANGE', '[readReplay] Expected the number of a replay of a training session but received 0');
  });
});

describe('tapes', () => {
  const LOSS = { pass: i32(0), row: i32(5), target: i32(3), scale: 1 };
  test.each<[object, string, string]>([
    [{ replay: i32(0), index: i32(0, 0), weight: f32(1) }, 'ERR_SHAPE', 'loss.index to have 1 elements but received 2'],
    [{ replay: i32(0), index: i32(0) }, 'ERR_DTYPE', 'loss.weight to be a Float32Array but received undefined'],
    [{ replay: i32(0), index: i32(0), weight: i32(1) }, 'ERR_DTYPE', 'loss.weight to be a Float32Array but received an Int32Array'],
    [{ replay: i32(1), index: i32(0), weight: f32(1) }, 'ERR_RANGE', 'replays in 0..0 but received 1'],
    [{ replay: i32(-1), index: i32(0), weight: f32(1) }, 'ERR_RANGE', 'replays in 0..0 but received -1'],
    [{ replay: i32(0), index: i32(1), weight: f32(1) }, 'ERR_RANGE', 'sequences that have a super-resolution loss in replay 0 but received index 1'],
    [{ pass: i32(1) }, 'ERR_RANGE', 'passes in 0..0 but received 1'],
    [{ row: i32(6) }, 'ERR_RANGE', "rows below the pass's 6 but received 6"],
    [{ target: i32(50) }, 'ERR_RANGE', 'targets in 0..49 but received 50'],
  ])('loss %#: refused, and the tape stays', async (change, code, message) => {
    const { session, id } = await ready({ training: true });
    await session.replay(i32(id), BOTH);
    await expectRejection(session.loss({ ...LOSS, ...change } as typeof LOSS), code, `[loss] Expected ${message}`);
    await session.loss({ ...LOSS, replay: i32(0), index: i32(0), weight: f32(1) });
    await session.backward(0.5);
  });
  test.each([[NaN, 'NaN'], [-1, '-1'], [Infinity, 'Infinity'], [1e7, '10000000']])('a penalty of %d', async (penalty, received) => {
    const { session } = await ready({ training: true });
    await expectRejection(session.backward(penalty), 'ERR_RANGE', `[backward] Expected routerPenalty to be a finite number from 0 to 1000000 but received ${received}`);
    await session.backward(1e6);
  });
  test('replays without targets have no loss; a spent tape has none at all, and no sequences', async () => {
    const { session, id } = await ready({ training: true });
    await session.replay(i32(id), NEITHER);
    await expectRejection(session.loss({ ...LOSS, replay: i32(0), index: i32(0), weight: f32(1) }), 'ERR_RANGE', '[loss] Expected sequences that have a super-resolution loss in replay 0 but received index 0');
    await session.backward(0);
    await expectRejection(session.backward(0), 'ERR_ARGUMENT', '[backward] Expected at least one pass since the last backward');
    await expectRejection(session.loss(LOSS), 'ERR_RANGE', '[loss] Expected passes in 0..-1 but received 0');
    for (const call of [session.replay(i32(id), NEITHER), session.keepLatents(i32(id)), session.restart(i32(id)), session.setPictures(id, PICTURES)]) {
      await expect(call).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringMatching(/^\[\w+\] Expected a live sequence of this session but received id 0$/) as string });
    }
    await expectRejection(session.readReplay(0, 0), 'ERR_RANGE', '[readReplay] Expected the number of a replay of a training session but received 0');
    expect(await session.routingFigures()).toEqual({ scored: 0, routed: 0, extraRows: 0, scores: 0, meanSquare: 0 });
  });
  test('a sequence of a tape is not freed or forked', async () => {
    const { session, id } = await ready({ training: true });
    await expectRejection(session.free(id), 'ERR_UNSUPPORTED', '[free] Expected no tape: backward() or reset() frees the sequences of a training session');
    await expectRejection(session.fork(id), 'ERR_UNSUPPORTED', '[fork] Expected a session that does not train: a tape cannot be shared');
  });
});

test.each<[unknown[], string, string]>([
  [[], 'ERR_ARGUMENT', 'rate to be a finite number from 0 to 1 but received undefined'], [[1.1, 0.5], 'ERR_RANGE', 'rate to be a finite number from 0 to 1 but received 1.1'],
  [[0.5, -0.1], 'ERR_RANGE', 'fraction to be a finite number from 0 to 1 but received -0.1'], [[0.5, NaN], 'ERR_RANGE', 'fraction to be a finite number from 0 to 1 but received NaN'],
])('updateThresholds %j', async (values, code, message) => {
  await expectRejection((model as unknown as Loose).updateThresholds!(...values), code, `[updateThresholds] Expected ${message}`);
});

describe('cancelling', () => {
  const outcome = ({ replay: _, ...rest }: NativeReplayResult): object => rest;
  /** A picture of 64 x 64 merged patches: long enough to be cancelled in the middle. */
  async function large(training: boolean): Promise<{ session: NativeSession; id: number; pass: NativePass }> {
    const session = open(model, { training, replay: { ...REPLAY, patches: 300 } });
    const id = session.add();
    await session.encode(new Uint8Array(3 * 256 * 256).map((_, i) => (i * i) >> 3), i32(1, 256, 256));
    const rows = i32(...Array.from({ length: 4096 }, (_, i) => i));
    await session.setPictures(id, { columns: rows.map((row) => row + 1), visualRows: rows, grids: i32(64, 64), sizes: i32(256, 256), originals: new Uint8Array(3 * 100 * 90).map((_, i) => 7 * i), originalSizes: i32(100, 90) });
    const pass = { ...tokenPass(id, [3, ...rows, 4]), kind: u8(0, ...rows.map(() => 1), 0), saliency: u8(1) };
    return { session, id, pass };
  }
  test.each([false, true])('a pass and a replay that are cancelled in the middle leave everything as it was (training: %p)', async (training) => {
    const clean = await large(training);
    await clean.session.extend(clean.pass);
    const wanted = [outcome(await clean.session.replay(i32(0), BOTH)), (await clean.session.extend({ ...tokenPass(0, [0, 1, 2]), kind: u8(4, 4, 4), logitRows: i32(2), traceRouting: true }))];

    const { session, id, pass } = await large(training);
    const cancelled = async (start: (token: InstanceType<ReturnType<typeof native>['CancelToken']>) => Promise<unknown>, delay: number): Promise<boolean> => {
      const token = new (native().CancelToken)();
      const job = start(token);
      if (delay < 0) token.cancel();
      else setTimeout(() => token.cancel(), delay);
      return job.then(() => false, (error: unknown) => { expect(error).toMatchObject({ code: 'ABORTED', message: 'The operation was aborted' }); return true; });
    };
    expect(await cancelled((token) => session.extend(pass, token), 3)).toBe(true);
    expect(session.tokenForwards()).toBe(0);
    await session.extend(pass);
    expect(await cancelled((token) => session.replay(i32(id), BOTH, token), -1)).toBe(true);
    expect(await cancelled((token) => session.replay(i32(id), BOTH, token), 2)).toBe(true);
    expect([outcome(await session.replay(i32(id), BOTH)), await session.extend({ ...tokenPass(id, [0, 1, 2]), kind: u8(4, 4, 4), logitRows: i32(2), traceRouting: true })]).toEqual(wanted);
  });
});

test('after dispose() each method says so', async () => {
  const { session, id } = await ready();
  session.dispose();
  const calls: [string, () => Promise<unknown>][] = [
    ['setPictures', () => session.setPictures(id, PICTURES)], ['replay', () => session.replay(i32(id), BOTH)], ['keepLatents', () => session.keepLatents(i32(id))], ['restart', () => session.restart(i32(id))],
    ['readReplay', () => session.readReplay(0, 0)], ['routingFigures', () => session.routingFigures()],
  ];
  for (const [op, call] of calls) await expectRejection(call(), 'ERR_DISPOSED', `[${op}] Expected a living Session but received one that is disposed`);
  const gone = await made();
  gone.dispose();
  await expectRejection(gone.updateThresholds(1, 0.5), 'ERR_DISPOSED', '[updateThresholds] Expected a living Model but received one that is disposed');
});

test('methods refuse a foreign this, and getters that dispose in the middle of reading', async () => {
  const { session, id } = await ready();
  for (const method of ['setPictures', 'replay', 'keepLatents', 'restart', 'readReplay', 'routingFigures'] as const) {
    expect(() => (session[method] as () => unknown).call(model)).toThrow('Illegal invocation');
    expect(() => (session[method] as () => unknown).call(Object.create(session))).toThrow('Illegal invocation');
  }
  await expectRejection(session.replay(i32(id), { saliency: true, get targets() { session.dispose(); return true; } }), 'ERR_DISPOSED', '[replay] Expected a living Session but received one that is disposed');
});
