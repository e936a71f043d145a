import { execFileSync } from 'node:child_process';

import { coherentWindow, gatherRmsNorm, Tensor } from '../../lib/kernels';
import { native, packageRoot } from '../../lib/native';

/** Keeps the job thread busy until it is cancelled. */
function blocker(): () => Promise<void> {
  const token = new (native().CancelToken)();
  const job = native().bench('linear', [256, 512, 512, 0], 100_000, token);
  return async () => {
    token.cancel();
    await expect(job).rejects.toMatchObject({ code: 'ABORTED' });
  };
}

test('buffers transferred and tensors disposed in the middle of a job do not disturb it', async () => {
  const before = native().liveObjects();
  const unblock = blocker();
  const h = Float32Array.from({ length: 4096 }, (_, i) => i % 7);
  const [rows, used, scores] = [Int32Array.of(0, 3), new Uint8Array(4096), h.slice()];
  const tensor = Tensor.zeros([4, 1024]);
  const write = tensor.write(h);
  const arrays = gatherRmsNorm(h, rows, new Float32Array(1024).fill(1));
  const tensors = gatherRmsNorm(tensor, rows, new Float32Array(1024).fill(1), { output: 'tensor' });
  const cu = { cuTokens: Int32Array.of(0, 4096), cuPictures: Int32Array.of(0, 1), grids: Int32Array.of(64, 64) };
  const window = coherentWindow(scores, { ...cu, patches: 3, window: 2, used });
  tensor.dispose();
  for (const array of [h, rows, used, scores, cu.cuTokens]) structuredClone(array.buffer, { transfer: [array.buffer as ArrayBuffer] });
  expect(h.length + rows.length).toBe(0);
  await unblock();
  await write;
  const [x, got] = [(await arrays).x, await tensors];
  expect(x.length).toBe(2048);
  expect(x[1025]).toBe((3 * 1024 + 1) % 7);
  expect(await got.x.read()).toEqual(x);
  expect([...(await window).selected]).toEqual([6, 13, 20]);
  for (const each of [got.x, got.y, got.rstd]) each.dispose();
  expect(native().liveObjects()).toEqual(before);
});

test('a cancelled job disposes the tensors that were made for it', async () => {
  const before = native().liveObjects();
  const unblock = blocker();
  const controller = new AbortController();
  const job = gatherRmsNorm(new Float32Array(64), Int32Array.of(0), new Float32Array(64), { output: 'tensor', signal: controller.signal });
  expect(native().liveObjects().tensors).toBe(before.tensors + 3);
  controller.abort('enough');
  await unblock();
  await expect(job).rejects.toBe('enough');
  expect(native().liveObjects()).toEqual(before);
});

test('V8 knows of the memory of tensors: it collects forgotten ones before 8 GB of them have come together', () => {
  const script = `const addon = require('node-gyp-build')(${JSON.stringify(packageRoot())});
    (async () => {
      let most = 0;
      for (let round = 0; round < 1000; round += 1) {
        new addon.Tensor(1 << 21);
        most = Math.max(most, addon.liveObjects().bytes);
        await new Promise(setImmediate);
      }
      console.log(most);
    })();`;
  const most = Number(execFileSync(process.execPath, ['-e', script], { cwd: packageRoot(), encoding: 'utf8', timeout: 50_000 }));
  expect(most).toBeGreaterThan(8e6);
  expect(most).toBeLessThan(1e9);
});

const rounds = (disposal: string) => `
  const addon = require('node-gyp-build')(${JSON.stringify(packageRoot())});
  const made = (size) => new addon.Tensor(size);
  (async () => {
    const memory = [];
    for (let round = 0; round < 1200; round += 1) {
      const [h, out, x, rstd] = [made(1 << 16), made(1 << 16), made(1 << 16), made(256)];
      await h.write(new Float32Array(1 << 16).fill(round), 0);
      const rows = Int32Array.from({ length: 256 }, (_, i) => 255 - i);
      const job = addon.ops.gatherRmsNorm(h, rows, new Float32Array(256).fill(1), null, 1e-6, { x, y: out, rstd });
      ${disposal}
      await job;
      await made(4).read('no token').catch(() => {});
      if (round === 200 || round === 1199) { for (let i = 0; i < 6; i += 1) { gc(); await new Promise(setImmediate); } memory.push(process.memoryUsage().rss); }
    }
    console.log(memory[1] - memory[0], JSON.stringify(addon.liveObjects()));
  })();`;

test.each([
  ['with dispose()', 'for (const tensor of [h, out, x, rstd]) tensor.dispose();', 4],
  ['left to the collector', 'if (round % 20 === 19) { gc(); await new Promise(setImmediate); }', 8],
])('1,000 rounds of tensors and a job, %s, take at most 8 MB', (_name, disposal, most) => {
  const output = execFileSync(process.execPath, ['--expose-gc', '-e', rounds(disposal)], { cwd: packageRoot(), encoding: 'utf8', timeout: 110_000 });
  const [growth, live] = output.trim().split(' ') as [string, string];
  expect(Number(growth)).toBeLessThan(8e6);
  expect((JSON.parse(live) as { tensors: number }).tensors).toBeLessThanOrEqual(most);
}, 120_000);

test('a process that exits with tensors alive, and with jobs that use them, ends cleanly', () => {
  const script = `const addon = require('node-gyp-build')(${JSON.stringify(packageRoot())});
    const tensor = new addon.Tensor(1 << 20); globalThis.kept = new addon.Tensor(8);
    for (let i = 0; i < 100; i += 1) addon.ops.packRagged(tensor, Int32Array.of(1 << 20), 1);
    setTimeout(() => process.exit(0), 10);`;
  expect(execFileSync(process.execPath, ['-e', script], { cwd: packageRoot(), encoding: 'utf8', timeout: 50_000 })).toBe('');
});

test('a worker that is terminated with tensors alive takes its memory with it', () => {
  const source = `const addon = require('node-gyp-build')(${JSON.stringify(packageRoot())});
    globalThis.kept = [new addon.Tensor(1 << 20), new addon.Tensor(8)];
    addon.ops.packRagged(globalThis.kept[0], Int32Array.of(1 << 20), 1); require('node:worker_threads').parentPort.postMessage(0);
    const again = () => addon.ops.packRagged(globalThis.kept[0], Int32Array.of(1 << 20), 1).then(again, () => {}); again();`;
  const script = `const { Worker } = require('node:worker_threads');
    (async () => {
      for (let i = 0; i < 20; i += 1) {
        const worker = new Worker(${JSON.stringify(source)}, { eval: true });
        await new Promise((resolve) => worker.once('message', resolve));
        await worker.terminate();
      }
      console.log(process.memoryUsage().rss < 400e6);
    })();`;
  expect(execFileSync(process.execPath, ['-e', script], { cwd: packageRoot(), encoding: 'utf8', timeout: 100_000 })).toBe('true\n');
}, 110_000);
