import { execFileSync } from 'node:child_process';

import { native, packageRoot, type NativeModel, type NativeSession } from '../../lib/native';
import { tinySpec, tokenPass } from '../boundary/tinyModel';

const inference = { training: false, recompute: false, detachLatents: false, visionGradient: false };

async function initialised(): Promise<NativeModel> {
  const model = new (native().Model)(tinySpec());
  await Promise.all(model.parameters().map(({ name }) => model.initialize(name, 'normal', 0.1, 1)));
  return model;
}

test('a buffer transferred in the middle of a job does not disturb it: inputs are copied on entry', async () => {
  const token = new (native().CancelToken)();
  const blocker = native().bench('linear', [256, 512, 512, 0], 100_000, token);
  const x = new Float32Array(1 << 16).fill(1);
  const job = native().ops.activation('silu', x);
  structuredClone(x.buffer, { transfer: [x.buffer] });
  expect(x.length).toBe(0);
  token.cancel();
  await expect(blocker).rejects.toMatchObject({ code: 'ABORTED' });
  const y = await job;
  expect(y.length).toBe(1 << 16);
  expect(y.every((value) => value === y[0]) && Math.abs(y[0]! - 0.7310586) < 1e-6).toBe(true);
});

test('dispose() in the middle of a job: the job ends well, later use is an error, a second dispose() is nothing', async () => {
  const model = await initialised();
  const session = new (native().Session)(model, inference);
  const id = session.add();
  const job = session.extend({ ...tokenPass(id, [1, 2, 3]), hiddenRows: Int32Array.of(2) });
  session.dispose();
  model.dispose();
  expect((await job).hidden.length).toBe(16);
  session.dispose();
  expect(() => session.add()).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED', message: '[add] Expected a living Session but received one that is disposed' }));
  await expect(session.extend(tokenPass(id, [1]))).rejects.toMatchObject({ code: 'ERR_DISPOSED', message: '[extend] Expected a living Session but received one that is disposed' });
});

test('every method of a disposed object says so', async () => {
  const model = await initialised();
  const session = new (native().Session)(model, inference);
  session.dispose();
  model.dispose();
  const calls: (() => unknown)[] = [
    () => model.parameters(), () => model.bytes(), () => model.setTrainable('model.norm.weight', true), () => model.loadFile('x', []),
    () => model.readParameter('model.norm.weight', 'value'), () => model.readParameterBf16('model.norm.weight'),
    () => model.writeParameter('model.norm.weight', 'value', new Float32Array(16)), () => model.initialize('model.norm.weight', 'constant', 1, 0),
    () => model.enableTraining(), () => model.zeroGradients(), () => model.gradientNorm(),
    () => model.optimizerStep({ learningRate: 1, beta1: 0, beta2: 0, epsilon: 0, weightDecay: 0, maxNorm: 0, step: 1 }),
    () => session.add(), () => session.fork(0), () => session.free(0), () => session.encode(new Uint8Array(48), Int32Array.of(1, 4, 4)),
    () => session.extend(tokenPass(0, [1])), () => session.loss({ pass: new Int32Array(1), row: new Int32Array(1), target: new Int32Array(1), scale: 1 }),
    () => session.backward(0), () => session.reset(), () => session.read('visual', 0, 0), () => session.tokenForwards(), () => session.bytes(),
    () => new (native().Session)(model, inference),
  ];
  for (const call of calls) {
    await expect((async () => call())()).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
  }
});

test('liveObjects() counts what is not disposed', async () => {
  const before = native().liveObjects();
  const model = await initialised();
  const session = new (native().Session)(model, inference);
  await session.extend(tokenPass(session.add(), [1, 2]));
  const during = native().liveObjects();
  expect(during).toMatchObject({ models: before.models + 1, sessions: before.sessions + 1 });
  expect(during.bytes - before.bytes).toBe(model.bytes() + session.bytes());
  expect(session.bytes()).toBeGreaterThan(0);
  session.dispose();
  model.dispose();
  expect(native().liveObjects()).toEqual(before);
});

test('a sequence lives until it is freed, reset or swept; ids are never given twice', async () => {
  const model = await initialised();
  const session: NativeSession = new (native().Session)(model, inference);
  const first = session.add();
  await session.extend(tokenPass(first, [1, 2]));
  const copy = await session.fork(first);
  await session.free(first);
  await expect(session.free(first)).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: `[free] Expected a live sequence of this session but received id ${first}` });
  await session.extend(tokenPass(copy, [3]));
  await session.reset();
  await expect(session.extend(tokenPass(copy, [3]))).rejects.toMatchObject({ code: 'ERR_ARGUMENT' });
  expect(new Set([first, copy, session.add(), session.add()]).size).toBe(4);
  expect(session.tokenForwards()).toBe(3);
  session.dispose();
  model.dispose();
});

const rounds = (body: string) => `
  const addon = require('node-gyp-build')(${JSON.stringify(packageRoot())});
  const options = ${JSON.stringify({ ...inference, training: true })};
  (async () => {
    const memory = [];
    for (let round = 0; round < 1200; round += 1) {
      ${body}
      if (round === 200 || round === 1199) { for (let i = 0; i < 4; i += 1) { gc(); await new Promise(setImmediate); } memory.push(process.memoryUsage().rss); }
    }
    console.log(memory[1] - memory[0], JSON.stringify(addon.liveObjects()));
  })();`;

const once = (disposal: string) => `
  const model = new addon.Model(${JSON.stringify(tinySpec())});
  for (const { name } of model.parameters()) model.initialize(name, 'normal', 0.1, 1);
  await model.enableTraining();
  const session = new addon.Session(model, options);
  const id = session.add();
  await session.encode(new Uint8Array(48), Int32Array.of(1, 4, 4));
  await session.extend({ sequences: Int32Array.of(id), cuSeqlens: Int32Array.of(0, 3), kind: Uint8Array.of(0, 1, 0), index: Int32Array.of(1, 0, 2), positions: new Int32Array(9) });
  await session.loss({ pass: Int32Array.of(0, 0), row: Int32Array.of(1, 2), target: Int32Array.of(3, 4), scale: 0.5 });
  await session.backward(0);
  await session.extend({}).catch(() => {});
  ${disposal}`;

test.each([
  ['with dispose()', 'session.dispose(); model.dispose();'],
  ['left to the collector', 'if (round % 10 === 9) { gc(); await new Promise(setImmediate); }'],
])('1,000 rounds of a model that learns, %s, take at most 8 MB', async (_name, disposal) => {
  const output = execFileSync(process.execPath, ['--expose-gc', '-e', rounds(once(disposal))], { cwd: packageRoot(), encoding: 'utf8', timeout: 110_000 });
  const [growth, live] = output.trim().split(' ') as [string, string];
  expect(Number(growth)).toBeLessThan(8e6);
  expect(JSON.parse(live).models).toBeLessThan(3);
}, 120_000);
