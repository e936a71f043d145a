/** The process that renders chat templates: when it starts, what it keeps alive, and that it never stays behind. */
import { spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ModuleKind, ScriptTarget, transpileModule } from 'typescript';
import { packageRoot } from '../../lib/native';

const ENDLESS = '{% for a in range(1000000) %}{% for b in range(1000000) %}{% endfor %}{% endfor %}';
let folder: string;
beforeAll(() => {
  mkdirSync(join(packageRoot(), '.cache'), { recursive: true });
  folder = mkdtempSync(join(packageRoot(), '.cache', 'template-'));   // inside the package, so that its dependencies are found
  mkdirSync(join(folder, 'model'));
  for (const name of ['errors', 'model/templateProcess']) {
    const { outputText } = transpileModule(readFileSync(join(packageRoot(), 'lib', `${name}.ts`), 'utf8'), { compilerOptions: { module: ModuleKind.CommonJS, target: ScriptTarget.ES2022 } });
    writeFileSync(join(folder, `${name}.js`), outputText);
  }
});
afterAll(() => rmSync(folder, { recursive: true }));

/** Runs a script that has `render`; resolves to how it ended, in how many seconds. */
function run(script: string): Promise<{ status: number | null; signal: string | null; output: string; seconds: number }> {
  const file = join(folder, `main-${Math.random().toString(36).slice(2)}.js`);
  writeFileSync(file, `const { renderTemplate: render } = require(${JSON.stringify(join(folder, 'model/templateProcess.js'))});\n${script}`);
  const started = performance.now();
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [file], { stdio: ['ignore', 'pipe', 'pipe'], timeout: 50_000 });
    let output = '';
    child.stdout.on('data', (data) => { output += data; });
    child.stderr.on('data', (data) => { output += data; });
    child.on('error', reject);
    child.on('close', (status, signal) => resolve({ status, signal, output, seconds: (performance.now() - started) / 1000 }));
  });
}

test('a rendering keeps the process alive until it is done, an idle renderer does not', async () => {
  const { status, output, seconds } = await run("render('{{ 1 + 1 }}', {}).then(console.log);");
  expect([status, output]).toEqual([0, '2\n']);
  expect(seconds).toBeLessThan(20);
});

test('in a worker thread, and in one that is terminated while it renders', async () => {
  const script = `const { Worker, isMainThread, parentPort } = require('node:worker_threads');
    if (isMainThread) {
      const worker = new Worker(__filename);
      worker.on('message', (text) => { console.log(text); worker.terminate().then(() => console.log('terminated')); });
    } else render('{{ 2 + 2 }}', {}).then((text) => { render(${JSON.stringify(ENDLESS)}, {}, 3000).catch(() => {}); parentPort.postMessage(text); });`;
  expect(await run(script)).toMatchObject({ status: 0, output: '4\nterminated\n' });
});

test('importing starts no process', async () => {
  expect(await run("console.log(process.getActiveResourcesInfo().filter((name) => name.includes('Process')).length);")).toMatchObject({ status: 0, output: '0\n' });
});

test('an abort ends the process that renders, and the wait for others; the next rendering has a new one', async () => {
  const script = `const reason = new Error('enough'), controller = new AbortController(), { signal } = controller;
    const told = (promise) => promise.catch((error) => error === reason);
    const stuck = told(render(${JSON.stringify(ENDLESS)}, {}, 60_000, signal)), behind = told(render('never', {}, 60_000, signal)), free = render('{{ 3 }}', {});
    setTimeout(() => controller.abort(reason), 500);
    Promise.all([stuck, behind, free, told(render('never', {}, 60_000, AbortSignal.abort(reason)))]).then((found) => console.log(JSON.stringify(found)));`;
  const { status, output, seconds } = await run(script);
  expect([status, output]).toEqual([0, '[true,true,"3",true]\n']);
  expect(seconds).toBeLessThan(20);
});

(process.platform === 'linux' ? test : test.skip)('a process that is killed while a template loops for ever leaves none behind for long', async () => {
  const script = `const { readdirSync, readFileSync } = require('node:fs');
    render(${JSON.stringify(ENDLESS)}, {}, 2000);
    setTimeout(() => { console.log(readFileSync('/proc/self/task/' + process.pid + '/children', 'utf8').trim()); setTimeout(() => process.kill(process.pid, 'SIGKILL'), 100); }, 700);`;
  const { signal, output } = await run(script);
  expect(signal).toBe('SIGKILL');
  const child = Number(output);
  expect(child).toBeGreaterThan(1);
  const lives = (): boolean => {
    try {
      return !readFileSync(`/proc/${child}/stat`, 'utf8').includes(') Z ');
    } catch {
      return false;
    }
  };
  for (let waited = 0; lives() && waited < 15_000; waited += 100) await new Promise((resolve) => setTimeout(resolve, 100));
  expect(lives()).toBe(false);
}, 30_000);
