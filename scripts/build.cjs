// node scripts/build.cjs [native] [ts] [dev] [native-tests]: builds what is out of date.
const { readFileSync, rmSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');

const onednn = require('./onednn.cjs');
const { root, cores, run, say, step, succeeds } = require('./steps.cjs');

const bin = (name, file) => join(root, 'node_modules', name, file);
const tsc = (project) => run(process.execPath, [bin('typescript', 'bin/tsc'), '-p', project]);
const native = ['src', 'cuda', 'CMakeLists.txt'];
// A build on this machine holds code for its own GPU; without one, the portable intermediate code, which a driver compiles at first use.
// Machine code for every architecture takes some twenty minutes on two cores: prebuilds have it (`all`). `none`: no CUDA at all.
const architectures = process.env.PLUMBLINE_CUDA_ARCHITECTURES ?? (succeeds('nvidia-smi', ['-L']) ? 'native' : '80-virtual');
const extra = `onednn=${onednn.isInstalled()} cuda=${succeeds('nvcc', ['--version'])} ${architectures}`;

/** The addon, by cmake-js: build/Release/plumbline.node. */
function buildNative() {
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  step('native', { inputs: native, extra: `${extra} ${version}`, outputs: ['build/Release/plumbline.node'] }, () => {
    const cuda = architectures === 'all' ? [] : [architectures === 'none' ? '--CDPLUMBLINE_USE_CUDA=OFF' : `--CDPLUMBLINE_CUDA_ARCHITECTURES=${architectures}`];
    run(process.execPath, [bin('cmake-js', 'bin/cmake-js'), 'compile', ...cuda, '--parallel', String(cores)]);
  });
}

/** CommonJS and types by tsc, then for each entry of `exports` an ES module that names the same exports. */
function buildTypeScript() {
  step('ts', { inputs: ['lib', 'tsconfig.json', 'scripts/build.cjs'], outputs: ['dist/index.mjs', 'dist/kernels.mjs'] }, () => {
    rmSync(join(root, 'dist'), { recursive: true, force: true });
    tsc('tsconfig.json');
    for (const entry of ['index', 'kernels']) {
      const names = Object.keys(require(join(root, 'dist', `${entry}.js`)));
      if (names.length === 0) throw new Error(`dist/${entry}.js exports nothing`);
      writeFileSync(join(root, 'dist', `${entry}.mjs`), `import cjs from './${entry}.js';\n\nexport const {\n${names.map((name) => `  ${name},\n`).join('')}} = cjs;\n`);
      writeFileSync(join(root, 'dist', `${entry}.d.mts`), `export * from './${entry}.js';\n`);
    }
  });
}

/** Tests and benchmarks that run outside jest: .cache/dev. */
function buildDev() {
  step('dev', { inputs: ['lib', 'test', 'bench', 'tsconfig.json', 'tsconfig.dev.json'], outputs: ['.cache/dev'] }, () => tsc('tsconfig.dev.json'));
}

/** Native test executables by plain cmake: .cache/native, .cache/native-address, .cache/native-thread. */
function buildNativeTests(sanitizer) {
  const folder = sanitizer ? `.cache/native-${sanitizer}` : '.cache/native';
  step(folder.replace('.cache/', 'tests-'), { inputs: [...native, 'test/native'], extra, outputs: [folder] }, () => {
    run('cmake', ['-S', '.', '-B', folder, `-DPLUMBLINE_SANITIZE=${sanitizer}`]);
    run('cmake', ['--build', folder, '--parallel', String(cores)]);
  });
  return join(root, folder);
}

const targets = { native: buildNative, ts: buildTypeScript, dev: buildDev, 'native-tests': () => buildNativeTests('') };

module.exports = { ...targets, nativeTests: buildNativeTests };
if (require.main === module) {
  for (const name of process.argv.slice(2)) {
    if (!(name in targets)) {
      say(`unknown target '${name}': ${Object.keys(targets).join(', ')}`);
      process.exit(2);
    }
    targets[name]();
  }
}
