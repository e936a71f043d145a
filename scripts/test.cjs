// node scripts/test.cjs [--sanitize] [jest arguments]: set-up, type check, native tests, jest; ends with the sum of all counts.
//   The native tests of kernels run plain and with each sanitizer.
//   --sanitize: only native tests, all of them, with the whole library built with AddressSanitizer and then with ThreadSanitizer.
const { spawn, spawnSync } = require('node:child_process');
const { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } = require('node:fs');
const { join } = require('node:path');

const { setup } = require('./setup.cjs');
const { root, cores, say } = require('./steps.cjs');

const total = { passed: 0, failed: 0, skipped: 0 };

function add(counts) {
  for (const key of Object.keys(total)) total[key] += counts[key];
}

const sources = () => readdirSync(join(root, 'test', 'native')).filter((file) => file.endsWith('.cpp')).map((file) => file.slice(0, -4));

function nativeTest(program, label) {
  return new Promise((resolve) => {
    const child = spawn(program, [], { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] });
    let text = '';
    child.stdout.on('data', (data) => {
      text += data;
    });
    child.on('error', (error) => say(error.message));
    child.on('close', (status, signal) => {
      const counts = /(\d+) passed, (\d+) failed(?:, (\d+) skipped)?/.exec(text);
      const [passed, failed, skipped] = counts ? counts.slice(1).map((count) => Number(count ?? 0)) : [0, 0, 0];
      const isGood = status === 0 && passed > 0 && failed === 0;
      add({ passed: isGood ? 1 : 0, failed: isGood ? 0 : 1, skipped });
      const end = isGood ? '' : `, ${signal ?? `exit status ${status}`}`;
      console.log(`native ${label}: ${counts?.[0] ?? 'no count'}${end}`);
      resolve();
    });
  });
}

/** Each file of test/native is an executable that prints "N passed, N failed[, N skipped]" of its checks, and one test here. */
async function nativeTests(folder, names, label, atOnce) {
  if (names.length === 0) add({ passed: 0, failed: 1, skipped: 0 });
  const left = [...names];
  const next = async () => {
    for (let name = left.shift(); name !== undefined; name = left.shift()) await nativeTest(join(folder, name), label === '' ? name : `${name} (${label})`);
  };
  await Promise.all(Array.from({ length: atOnce }, next));
}

/** All of them, and those of kernels with each sanitizer: there on one thread each, so that several run at a time. */
async function allNativeTests() {
  const folder = require('./build.cjs').nativeTests('');
  await nativeTests(folder, sources(), '', 1);
  for (const sanitizer of ['address', 'thread']) {
    if (!existsSync(join(folder, sanitizer))) {
      console.log(`SKIPPED native tests of kernels with the ${sanitizer} sanitizer: it does not work on this machine`);
      add({ passed: 0, failed: 0, skipped: 1 });
      continue;
    }
    const built = readdirSync(join(folder, sanitizer));
    await nativeTests(join(folder, sanitizer), sources().filter((name) => built.includes(name)), `kernels, ${sanitizer} sanitizer`, cores);
  }
}

/** The whole library with each sanitizer. */
async function sanitizedTests() {
  for (const sanitizer of ['address', 'thread']) await nativeTests(require('./build.cjs').nativeTests(sanitizer), sources(), `${sanitizer} sanitizer`, 1);
}

function typeCheck() {
  for (const project of ['tsconfig.dev.json', 'tsconfig.examples.json']) {
    const { status } = spawnSync(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '--noEmit', '-p', project], { cwd: root, stdio: 'inherit' });
    console.log(`types of ${project}: ${status === 0 ? 'checked' : 'errors, counted as one failure'}`);
    if (status !== 0) add({ passed: 0, failed: 1, skipped: 0 });
  }
}

function jest(args) {
  const file = join(root, '.cache', 'jest-counts.json');
  mkdirSync(join(root, '.cache'), { recursive: true });
  rmSync(file, { force: true });
  const { status } = spawnSync(process.execPath, [join(root, 'node_modules/jest/bin/jest.js'), ...args], { cwd: root, stdio: 'inherit', env: { ...process.env, PLUMBLINE_TEST_COUNTS: file } });
  let counts = { passed: 0, failed: 0, skipped: 0 };
  try {
    counts = JSON.parse(readFileSync(file, 'utf8'));
  } catch {
    say('jest wrote no counts');
  }
  if (status !== 0 && counts.failed === 0) counts.failed = 1;
  add(counts);
}

async function main() {
  const args = process.argv.slice(2);
  setup();
  if (args.includes('--sanitize')) {
    await sanitizedTests();
  } else {
    typeCheck();
    if (args.length === 0) await allNativeTests();
    require('./interpreter.cjs').prepare();
    jest(args);
  }
  console.log(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`);
  process.exit(total.failed === 0 && total.passed > 0 ? 0 : 1);
}

main();
