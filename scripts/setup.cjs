// node scripts/setup.cjs [--dev]: everything that a fresh clone needs, quick when there is nothing to do. Says what it does.
//   system packages  a C++ compiler, cmake and make (needed), oneDNN (optional, faster): by apt-get when root, else the command to type
//   npm packages     from the lock file, without running their scripts
//   builds           the addon and dist/; with --dev also tests and benchmarks that run outside jest
const { spawnSync } = require('node:child_process');
const { existsSync, mkdirSync, readFileSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');

const onednn = require('./onednn.cjs');
const { root, fingerprint, run, say, succeeds } = require('./steps.cjs');

const needed = [
  { packages: ['g++'], isThere: () => succeeds('c++', ['--version']) || succeeds('g++', ['--version']) },
  { packages: ['cmake'], isThere: () => succeeds('cmake', ['--version']) },
  { packages: ['make'], isThere: () => succeeds('make', ['--version']) || succeeds('ninja', ['--version']) },
];
const optional = [{ packages: ['libdnnl-dev'], isThere: onednn.isInstalled }];

const missing = (list) => list.filter((item) => !item.isThere()).flatMap((item) => item.packages);

function aptInstall(packages) {
  const apt = (...args) => spawnSync('apt-get', args, { stdio: 'inherit', env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' } }).status === 0;
  say(`installing system packages with apt-get: ${packages.join(' ')}`);
  return apt('update', '-q') && apt('install', '-y', '-q', '--no-install-recommends', ...packages);
}

function systemPackages() {
  const must = missing(needed);
  const may = missing(optional);
  const mayInstall = process.getuid?.() === 0 && succeeds('apt-get', ['--version']);
  const command = (packages) => `sudo apt-get install ${packages.join(' ')}`;
  if (must.length > 0 && !(mayInstall && aptInstall(must))) {
    say(`missing system packages; on Debian or Ubuntu: ${command([...must, ...may])}`);
    process.exit(1);
  }
  if (may.length === 0) return;
  const tried = join(root, '.cache', 'stamps', 'optional-packages');
  if (existsSync(tried)) return;
  if (!(mayInstall && aptInstall(may))) say(`oneDNN is not installed: the portable GEMM is used, which is slower. To change that: ${command(may)}, then npm run build`);
  mkdirSync(join(root, '.cache', 'stamps'), { recursive: true });
  writeFileSync(tried, may.join(' '));
}

function npmPackages() {
  const stamp = join(root, 'node_modules', '.plumbline-lock');
  const now = fingerprint(['package-lock.json']);
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === now) return;
  say('installing npm packages');
  // Not `npm ci`: it refuses a lock file that was written behind a registry without the binaries of every other platform.
  // --no-save keeps the locked versions and writes neither file.
  run('npm', ['install', '--no-save', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error']);
  writeFileSync(stamp, now);
}

function setup({ dev = false } = {}) {
  systemPackages();
  npmPackages();
  const build = require('./build.cjs');
  build.native();
  build.ts();
  if (dev) build.dev();
}

module.exports = { setup };
if (require.main === module) setup({ dev: process.argv.includes('--dev') });
