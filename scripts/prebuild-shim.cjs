#!/usr/bin/env node
// prebuildify calls "node-gyp rebuild ..."; this builds with cmake-js in its place.
const { spawnSync } = require('node:child_process');

const cmakeJs = require.resolve('cmake-js/bin/cmake-js');
const onednn = process.env.PLUMBLINE_USE_ONEDNN ?? 'ON';
process.exit(spawnSync(process.execPath, [cmakeJs, 'rebuild', `--CDPLUMBLINE_USE_ONEDNN=${onednn}`], { stdio: 'inherit' }).status ?? 1);
