/** Memory and ends of sessions with replay and routing. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { generate, stream } from '../../lib/decode';
import { native, packageRoot } from '../../lib/native';
import { prompt, RAGGED, reasoner, settleThresholds, traces } from '../model/reasoner';
import { EXTRAS, REPLAY, ROUTING, tinySpec } from '../boundary/tinyModel';

const options = { training: false, recompute: false, detachLatents: false, visionGradient: false, replay: REPLAY, routing: ROUTING };
const load = `
  const addon = require('node-gyp-build')(${JSON.stringify(packageRoot())});
  addon.setThreads(1);
  const i32 = (...values) => Int32Array.from(values), u8 = (...values) => Uint8Array.from(values);
  const create = async () => {
    const model = new addon.Model(${JSON.stringify({ ...tinySpec(), extras: EXTRAS })});
    for (const { name } of model.parameters()) await model.initialize(name, 'normal', 0.1, 1);
    return model;
  };
  const pass = (id, kind, index, more) => ({ sequences: i32(id), cuSeqlens: i32(0, kind.length), kind: u8(...kind), index: i32(...index), positions: new Int32Array(3 * kind.length), ...more });
  const start = async (session) => {
    const id = session.add();
    const first = await session.encode(new Uint8Array(192).map((_, i) => 37 * i), i32(1, 8, 8));
    const visual = [0, 1, 2, 3].map((n) => first + n);
    await session.setPictures(id, { columns: i32(1, 2, 3, 4), visualRows: i32(...visual), grids: i32(2, 2), sizes: i32(8, 8), originals: new Uint8Array(90), originalSizes: i32(5, 6) });
    await session.extend(pass(id, [0, 1, 1, 1, 1, 0], [1, ...visual, 2], { saliency: u8(1) }));
    return id;
  };
  const latent = async (session, id, targets) => {
    const { rows: [rows], firstRow: [first] } = await session.replay(i32(id), { targets, saliency: true });
    await session.extend(pass(id, [...new Array(rows).fill(4), 2], [...Array.from({ length: rows }, (_, n) => first + n), 0], { saliency: u8(1), traceRouting: true }));
  };`;

async function run(script: string): Promise<string> {
  return (await promisify(execFile)(process.execPath, ['--expose-gc', '-e', `${load}(async () => {${script}})();`], { cwd: packageRoot(), timeout: 110_000 })).stdout.trim();
}

/** Growth of the process's memory from round 200 to round 1200. */
const rounds = (before: string, body: string, after: string): string => `
  const memory = [];
  ${before}
  for (let round = 0; round < 1200; round += 1) {
    ${body}
    if (round === 200 || round === 1199) { for (let i = 0; i < 4; i += 1) { gc(); await new Promise(setImmediate); } memory.push(process.memoryUsage().rss); }
  }
  ${after}
  for (let i = 0; i < 4; i += 1) { gc(); await new Promise(setImmediate); }
  console.log(JSON.stringify({ growth: memory[1] - memory[0], live: addon.liveObjects() }));`;
const ANSWER = 'const id = await start(session); for (let n = 0; n < 3; n += 1) await latent(session, id, n === 1); await session.extend(pass(id, [0, 0], [3, 4]));';

test.each([
  ['a session for each answer', 'const model = await create();', `const session = new addon.Session(model, ${JSON.stringify(options)}); ${ANSWER} session.dispose();`, 'model.dispose();'],
  ['one session for all', `const model = await create(); const session = new addon.Session(model, ${JSON.stringify(options)});`,
    `${ANSWER} await session.fork(id).then((copy) => session.free(copy)); if (round % 3 === 0) await session.restart(i32(id)); await session.keepLatents(i32(id)); await session.free(id);`, 'session.dispose(); model.dispose();'],
  ['training steps', `const model = await create(); await model.enableTraining(); const session = new addon.Session(model, ${JSON.stringify({ ...options, training: true })});`,
    `const id = await start(session); await latent(session, id, true); await latent(session, id, true);
     await session.loss({ pass: i32(2), row: i32(0), target: i32(3), scale: 1, replay: i32(0, 1), index: i32(0, 0), weight: Float32Array.of(1, 1) });
     if (round % 5 === 4) await session.reset(); else await session.backward(0.1);
     await model.updateThresholds(0.1, 0.5); await model.zeroGradients();`, 'session.dispose(); model.dispose();'],
])('1,000 rounds of replay and routing, %s, take at most 8 MB and leave nothing', async (_, before, body, after) => {
  const { growth, live } = JSON.parse(await run(rounds(before, body, after))) as { growth: number; live: object };
  expect(growth).toBeLessThan(8e6);
  expect(live).toEqual({ models: 0, sessions: 0, tensors: 0, bytes: 0 });
}, 120_000);

test('a process that exits during a replay ends cleanly', async () => {
  const script = `
    const model = await create();
    const session = new addon.Session(model, ${JSON.stringify(options)});
    const id = await start(session);
    process.on('exit', () => console.log('bye'));
    session.replay(i32(id), { targets: true, saliency: true }); session.extend(pass(id, [0], [3]));
    setImmediate(() => process.exit(0));`;
  expect(await run(script)).toBe('bye');
});

test('a session that is disposed during its replay finishes it', async () => {
  const script = `
    const model = await create();
    const session = new addon.Session(model, ${JSON.stringify(options)});
    const id = await start(session);
    const job = session.replay(i32(id), { targets: true, saliency: true });
    session.dispose(); model.dispose();
    console.log((await job).rows[0], await session.keepLatents(i32(id)).catch(({ code }) => code), JSON.stringify(addon.liveObjects()));`;
  expect(await run(script)).toBe('2 ERR_DISPOSED {"models":0,"sessions":0,"tensors":0,"bytes":0}');
});

test('generation gives back all that it took, whether it ends, is left or is aborted during its latents', async () => {
  const before = native().liveObjects();
  const model = await reasoner({ patches: 3, window: 2, maxDepth: 3 });
  await settleThresholds(model, () => traces(model, RAGGED));
  const held = native().liveObjects();
  const request = { ...prompt(3, [[4, 5], [3, 3]]), latentSteps: 6, maxNewTokens: 3 };
  await generate(model, [request, request], { evidence: true });
  expect(native().liveObjects()).toEqual(held);
  for await (const event of stream(model, request)) if (event.type === 'latent' && event.step === 2) break;
  expect(native().liveObjects()).toEqual(held);
  for (const delay of [0, 1, 2, 4, 8]) {
    const controller = new AbortController();
    const reason = new Error(`after ${delay}`);
    setTimeout(() => controller.abort(reason), delay);
    const ended = await generate(model, [request, request, request], { signal: controller.signal, evidence: true, recompute: delay % 2 === 0 }).then(() => undefined, (error: unknown) => error);
    expect(delay === 0 ? [reason] : [undefined, reason]).toContain(ended);
    expect(native().liveObjects()).toEqual(held);
  }
  model.dispose();
  expect(native().liveObjects()).toEqual(before);
});
