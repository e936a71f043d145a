// What the other scripts share: running a command, and doing a step only when its inputs changed.
const { spawnSync } = require('node:child_process');
const { createHash } = require('node:crypto');
const { existsSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } = require('node:fs');
const { availableParallelism } = require('node:os');
const { dirname, join } = require('node:path');

const root = join(__dirname, '..');
const cores = availableParallelism();

const say = (text) => process.stderr.write(`[plumbline] ${text}\n`);

/** Runs a command in the package root with its output shown; ends this process when it fails. */
function run(command, args, options = {}) {
  const result = spawnSync(command, args, { cwd: root, stdio: 'inherit', ...options });
  if (result.error) say(`cannot run ${command}: ${result.error.message}`);
  if (result.status !== 0) {
    say(`failed: ${command} ${args.join(' ')}`);
    process.exit(result.status ?? 1);
  }
}

const succeeds = (command, args) => spawnSync(command, args, { cwd: root, stdio: 'ignore' }).status === 0;

/** Every file below a path (or the path itself, when it is a file), sorted. */
function filesOf(path) {
  const full = join(root, path);
  if (!existsSync(full)) return [];
  if (!statSync(full).isDirectory()) return [path];
  return readdirSync(full).sort().flatMap((name) => filesOf(join(path, name)));
}

/** Hash of the names and contents of files, and of extra text. */
function fingerprint(paths, extra = '') {
  const hash = createHash('sha256').update(extra);
  for (const file of paths.flatMap(filesOf)) hash.update(file).update('\0').update(readFileSync(join(root, file))).update('\0');
  return hash.digest('hex');
}

/** Runs `build` unless `outputs` exist and were made from the same inputs. Says so when it does something. */
function step(name, { inputs, extra, outputs }, build) {
  const stamp = join(root, '.cache', 'stamps', name);
  const now = fingerprint(inputs, extra);
  const isFresh = outputs.every((path) => existsSync(join(root, path))) && existsSync(stamp) && readFileSync(stamp, 'utf8') === now;
  if (isFresh) return;
  say(`building ${name}`);
  build();
  mkdirSync(dirname(stamp), { recursive: true });
  writeFileSync(stamp, now);
}

module.exports = { root, cores, say, run, succeeds, fingerprint, step };
