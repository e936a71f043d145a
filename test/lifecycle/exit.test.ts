import { spawn } from 'node:child_process';

import { packageRoot } from '../../lib/native';
import { tinySpec } from '../boundary/tinyModel';

const load = `const addon = require('node-gyp-build')(${JSON.stringify(packageRoot())});`;
const job = "addon.bench('linear', [512, 1024, 1024, 0], 100000)";

/** Runs a script in a child process; resolves to how it ended. */
function run(script: string): Promise<{ status: number | null; signal: string | null; output: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ['-e', script], { cwd: packageRoot(), stdio: ['ignore', 'pipe', 'pipe'], timeout: 50_000 });
    let output = '';
    child.stdout.on('data', (data) => { output += data; });
    child.stderr.on('data', (data) => { output += data; });
    child.on('error', reject);
    child.on('close', (status, signal) => resolve({ status, signal, output }));
  });
}

const endings: readonly (readonly [string, string])[] = [
  ['right after loading', 'process.exit(7)'],
  ['right after submitting', `${job}; process.exit(7)`],
  ['while a job runs', `${job}; setTimeout(() => process.exit(7), 80)`],
  ['with jobs queued behind it', `for (let i = 0; i < 50; i += 1) ${job}; setTimeout(() => process.exit(7), 80)`],
  ['with a model, a session and a pass alive', `
    const model = new addon.Model(${JSON.stringify(tinySpec())});
    const session = new addon.Session(model, { training: false, recompute: false, detachLatents: false, visionGradient: false });
    const id = session.add();
    const pass = { sequences: Int32Array.of(id), cuSeqlens: Int32Array.of(0, 1), kind: new Uint8Array(1), index: new Int32Array(1), positions: new Int32Array(3) };
    ${job}; session.extend(pass); setTimeout(() => process.exit(7), 40)`],
  ['by an uncaught exception', `process.on('uncaughtException', () => process.exit(7)); ${job}; setTimeout(() => { throw new Error('x'); }, 80)`],
  ['from inside a settled promise', `addon.ops.activation('silu', new Float32Array(4)).then(() => { ${job}; process.exit(7); })`],
  ['in an exit handler that submits more', `process.on('exit', () => { ${job}.catch(() => {}); }); ${job}; setTimeout(() => process.exit(7), 40)`],
];

test.each(endings)('a process that exits %s ends cleanly', async (_name, script) => {
  expect(await run(`${load}${script}`)).toEqual({ status: 7, signal: null, output: '' });
});

test('a pending job keeps the process alive until it settles; an idle addon does not', async () => {
  const result = await run(`${load} addon.bench('linear', [64, 64, 64, 0], 2000).then((s) => console.log(s.length));`);
  expect(result).toEqual({ status: 0, signal: null, output: '2000\n' });
});

(process.platform === 'linux' ? test : test.skip)('loading starts no thread and asks for no memory', async () => {
  const script = `const { readdirSync } = require('node:fs'); const threads = () => readdirSync('/proc/self/task').length;
    require('node-gyp-build'); const before = threads(); ${load} console.log(threads() - before, JSON.stringify(addon.liveObjects()));`;
  expect((await run(script)).output).toBe('0 {"models":0,"sessions":0,"tensors":0,"bytes":0}\n');
});

test('20 worker threads compute side by side, and terminate() in the middle of their jobs leaves the process well', async () => {
  const script = `
    const { Worker } = require('node:worker_threads');
    const source = ${JSON.stringify(`${load}
      const { parentPort } = require('node:worker_threads');
      addon.setThreads(2);
      const again = () => addon.bench('attention', [256, 4, 2, 32, 256], 20).then(again, () => {});
      addon.ops.activation('silu', new Float32Array(8)).then((y) => { parentPort.postMessage(y.length); again(); again(); });`)};
    (async () => {
      const workers = Array.from({ length: 20 }, () => new Worker(source, { eval: true }));
      const answers = await Promise.all(workers.map((worker) => new Promise((resolve, reject) => { worker.once('message', resolve); worker.once('error', reject); })));
      await new Promise((resolve) => setTimeout(resolve, 300));
      await Promise.all(workers.map(async (worker, i) => { await new Promise((resolve) => setTimeout(resolve, 5 * i)); await worker.terminate(); }));
      ${load}
      console.log(answers.join(), (await addon.ops.activation('silu', new Float32Array(3))).length);
    })();`;
  expect(await run(script)).toEqual({ status: 0, signal: null, output: `${Array(20).fill(8).join()} 3\n` });
});

test('a worker that ends by itself, or by process.exit(), joins its job thread', async () => {
  const script = `
    const { Worker } = require('node:worker_threads');
    const end = (code) => new Promise((resolve) => new Worker(${JSON.stringify(load)} + code, { eval: true }).on('exit', resolve));
    (async () => {
      console.log(await end("addon.ops.activation('silu', new Float32Array(4))"), await end(${JSON.stringify(`${job}; setTimeout(() => process.exit(5), 30)`)}));
    })();`;
  expect(await run(script)).toEqual({ status: 0, signal: null, output: '0 5\n' });
});
