// The addon's CUDA code without a GPU: where ../shared/tools/ptxsim is there, which interprets the PTX that nvcc made behind a
// libcudart.so of its own, the addon is linked against that and laid out in .cache/interpreter with the compiled tests.
//   require('./interpreter.cjs').prepare()   -> { folder, env } or null (and says why)
//   node scripts/interpreter.cjs FILE [arguments]: runs a compiled test or benchmark there, FILE relative to the package root
const { spawnSync } = require('node:child_process');
const { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } = require('node:fs');
const { join, resolve } = require('node:path');

const { root, cores, run, say, step } = require('./steps.cjs');

const source = resolve(root, '..', 'shared', 'tools', 'ptxsim');
const library = join(root, '.cache', 'ptxsim');
const folder = join(root, '.cache', 'interpreter');

function missing() {
  if (!existsSync(join(source, 'Makefile'))) return `the PTX interpreter is not there (${join('..', 'shared', 'tools', 'ptxsim')})`;
  const cache = join(root, 'build', 'CMakeCache.txt');
  if (!existsSync(cache) || !/^CMAKE_CUDA_COMPILER:\w+=(?!.*NOTFOUND)/m.test(readFileSync(cache, 'utf8'))) return 'the addon was built without nvcc';
  return '';
}

/** Builds what is out of date. Null, with the reason on standard error, where it cannot be had. */
function prepare() {
  const reason = missing();
  if (reason !== '') {
    say(`CUDA code is not checked on this machine: ${reason}`);
    return null;
  }
  step('ptxsim', { inputs: [], extra: readFileSync(join(source, 'Makefile'), 'utf8'), outputs: ['.cache/ptxsim/libcudart.so.13'] }, () => {
    const targets = ['libcudart.so.13', 'libcublas.so.13'].map((name) => join(library, name));
    run('make', ['-C', source, `BUILD=${library}`, 'MARCH=x86-64-v3', `-j${cores}`, ...targets], { stdio: ['ignore', 'ignore', 'inherit'] });
  });
  const build = require('./build.cjs');
  build.dev();
  step('interpreter', { inputs: ['src', 'cuda', 'lib', 'test', 'bench', 'CMakeLists.txt'], outputs: ['.cache/interpreter/build/Release/plumbline.node'] }, () => {
    run('cmake', ['--build', 'build', '--target', 'plumbline_shared_runtime', '--parallel', String(cores)]);
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(join(folder, 'build', 'Release'), { recursive: true });
    copyFileSync(join(root, 'package.json'), join(folder, 'package.json'));
    copyFileSync(join(root, 'build', 'shared-runtime', 'plumbline_shared_runtime.node'), join(folder, 'build', 'Release', 'plumbline.node'));
    cpSync(join(root, '.cache', 'dev'), join(folder, 'dev'), { recursive: true });
  });
  writeFileSync(join(folder, 'ready'), '');
  return { folder, env: environment() };
}

/** Any report of the interpreter (bounds, races, reads of memory never written, misuse of the runtime) makes the exit status 86. */
function environment() {
  return { ...process.env, LD_LIBRARY_PATH: library, PTXSIM_EXIT_CODE: '86', PTXSIM_CHECK_LEAK: '1', PLUMBLINE_DEVICE: 'cuda' };
}

module.exports = { prepare, environment, folder };
if (require.main === module) {
  const ready = prepare();
  if (ready === null) process.exit(1);
  const [file, ...args] = process.argv.slice(2);
  const { status } = spawnSync(process.execPath, [join(folder, 'dev', file), ...args], { stdio: 'inherit', env: ready.env });
  process.exit(status ?? 1);
}
