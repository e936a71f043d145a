// Prints 1 when oneDNN's header is installed, else 0: binding.gyp asks, and so does the set-up.
const { existsSync } = require('node:fs');

const folders = ['/usr/include', '/usr/local/include', '/opt/homebrew/include'];
const isInstalled = () => folders.some((folder) => existsSync(`${folder}/dnnl.h`));

module.exports = { isInstalled };
if (require.main === module) console.log(isInstalled() ? 1 : 0);
