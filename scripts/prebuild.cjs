// node scripts/prebuild.cjs: prebuilds/<platform>-<arch>/*.node with prebuildify, built by cmake-js.
//   --check: exits 1 when there is no prebuild for this platform; `npm run release` asks.
const { existsSync, readdirSync, rmSync } = require('node:fs');
const { join } = require('node:path');

const { root, run, say } = require('./steps.cjs');

const folder = join(root, 'prebuilds', `${process.platform}-${process.arch}`);

if (process.argv.includes('--check')) {
  const isThere = existsSync(folder) && readdirSync(folder).some((file) => file.endsWith('.node'));
  if (!isThere) say(`no prebuild in ${folder}: run npm run prebuild`);
  process.exit(isThere ? 0 : 1);
}
// A prebuild must load where oneDNN is not installed, so it holds the portable GEMM.
process.env.PLUMBLINE_USE_ONEDNN = 'OFF';
const shim = join(__dirname, 'prebuild-shim.cjs');
run(process.execPath, [join(root, 'node_modules/prebuildify/bin.js'), '--napi', '--strip', '--tag-libc', '-t', process.versions.node, '--node-gyp', shim]);
// What is left in build/ has no oneDNN: the next build starts anew.
rmSync(join(root, 'build'), { recursive: true, force: true });
