// node scripts/test.cjs [--sanitize] [jest arguments]: set-up, type check, native tests, jest; ends with the sum of all counts.
//   --sanitize: only the native tests, built with AddressSanitizer and then with ThreadSanitizer.
const { spawnSync } = require('node:child_process');
const { mkdirSync, readdirSync, readFileSync, rmSync } = require('node:fs');
const { join } = require('node:path');

const { setup } = require('./setup.cjs');
const { root, say } = require('./steps.cjs');

const total = { passed: 0, failed: 0, skipped: 0 };

function add(counts) {
  for (const key of Object.keys(total)) total[key] += counts[key];
}

/** Each file of test/native is an executable that prints "N passed, N failed[, N skipped]" of its checks, and one test here. */
function nativeTests(sanitizer) {
  const folder = require('./build.cjs').nativeTests(sanitizer);
  const names = readdirSync(join(root, 'test', 'native')).filter((file) => file.endsWith('.cpp')).map((file) => file.slice(0, -4));
  if (names.length === 0) add({ passed: 0, failed: 1, skipped: 0 });
  for (const name of names) {
    const result = spawnSync(join(folder, name), [], { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
    const counts = /(\d+) passed, (\d+) failed(?:, (\d+) skipped)?/.exec(result.stdout ?? '');
    const [passed, failed, skipped] = counts ? counts.slice(1).map((count) => Number(count ?? 0)) : [0, 0, 0];
    const isGood = result.status === 0 && passed > 0 && failed === 0;
    add({ passed: isGood ? 1 : 0, failed: isGood ? 0 : 1, skipped });
    const label = sanitizer ? `${name} (${sanitizer})` : name;
    console.log(`native ${label}: ${counts?.[0] ?? `no count, ${result.signal ?? `exit status ${result.status}`}`}`);
  }
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

const args = process.argv.slice(2);
setup();
if (args.includes('--sanitize')) {
  nativeTests('address');
  nativeTests('thread');
} else {
  typeCheck();
  if (args.length === 0) nativeTests('');
  jest(args);
}
console.log(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`);
process.exit(total.failed === 0 && total.passed > 0 ? 0 : 1);
