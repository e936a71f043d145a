// node scripts/cuda-report.cjs [--arch 90[,80]] [--only TEXT] [--json]: registers, spills, shared memory and theoretical occupancy of every
// kernel of cuda/, per architecture, as ptxas says when it assembles them. Needs nvcc, no GPU. Exits 1 when a kernel spills.
const { execFile } = require('node:child_process');
const { mkdtempSync, readFileSync, readdirSync, rmSync } = require('node:fs');
const { tmpdir } = require('node:os');
const { join } = require('node:path');
const { parseArgs, promisify } = require('node:util');

const { root, cores, say, succeeds } = require('./steps.cjs');

// CUDA C++ programming guide, "Technical specifications per compute capability". Registers: 64 Ki per multiprocessor in all of them.
const LIMITS = {
  80: { warps: 64, blocks: 32, sharedKiB: 164 }, 86: { warps: 48, blocks: 16, sharedKiB: 100 }, 89: { warps: 48, blocks: 24, sharedKiB: 100 },
  90: { warps: 64, blocks: 32, sharedKiB: 228 }, 100: { warps: 64, blocks: 32, sharedKiB: 228 }, 120: { warps: 48, blocks: 24, sharedKiB: 100 },
};
const RESERVED_SHARED = 1024;   // per block, by the system
const DEFAULT_THREADS = 256;    // of kernels without __launch_bounds__

const run = promisify(execFile);
const up = (value, to) => Math.ceil(value / to) * to;

/** Share of the warps that a multiprocessor can hold at once, from registers, static shared memory and block size. */
function occupancy(arch, threads, registers, shared) {
  const { warps, blocks, sharedKiB } = LIMITS[arch];
  const perBlock = Math.ceil(threads / 32);
  const byRegisters = Math.floor(Math.floor(65536 / up(registers * 32, 256)) / perBlock);
  const byShared = Math.floor((sharedKiB * 1024) / up(shared + RESERVED_SHARED, 128));
  return Math.min(blocks, Math.floor(warps / perBlock), byRegisters, byShared) * perBlock / warps;
}

/** Kernels of one file as ptxas reports them. */
function parse(text, ptx, file, arch) {
  const threads = new Map([...ptx.matchAll(/\.entry (\w+)\([^)]*\)\s*((?:\.\w+ [^\n{]*\n)*)/g)].map(([, name, directives]) => [name, Number(/\.maxntid (\d+)/.exec(directives)?.[1] ?? 0)]));
  const blocks = text.split(/Compiling entry function '/).slice(1);
  return blocks.map((block) => {
    const number = (pattern) => Number(pattern.exec(block)?.[1] ?? 0);
    const name = /^(\w+)/.exec(block)[1];
    const bound = threads.get(name) ?? 0;
    const registers = number(/Used (\d+) registers/);
    const sharedBytes = number(/(\d+) bytes smem/);
    return {
      file, arch, name, threads: bound || DEFAULT_THREADS, isBound: bound > 0, registers, sharedBytes, stackBytes: number(/(\d+) bytes stack frame/),
      spillBytes: number(/(\d+) bytes spill stores/) + number(/(\d+) bytes spill loads/), occupancy: occupancy(arch, bound || DEFAULT_THREADS, registers, sharedBytes),
    };
  });
}

async function assemble(file, arch) {
  const folder = mkdtempSync(join(tmpdir(), 'cuda-report-'));
  try {
    const args = ['-std=c++17', '--fmad=false', `-arch=sm_${arch}`, '-cubin', '-Xptxas', '-v', '--keep', '--keep-dir', folder, '-o', join(folder, 'out.cubin'), join(root, 'cuda', file)];
    const { stderr } = await run('nvcc', args, { maxBuffer: 1 << 26 });
    const ptx = readdirSync(folder).filter((name) => name.endsWith('.ptx')).map((name) => readFileSync(join(folder, name), 'utf8')).join('\n');
    return parse(stderr, ptx, file, arch);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function demangle(kernels) {
  if (kernels.length === 0) return;
  const { stdout } = await run('c++filt', ['-p', ...kernels.map(({ name }) => name)], { maxBuffer: 1 << 26 });
  const names = stdout.trimEnd().split('\n');
  kernels.forEach((kernel, i) => { kernel.name = names[i].replaceAll('plumbline::', '').replaceAll('(anonymous namespace)::', '').replace(/^void /, ''); });
}

function table(kernels) {
  const head = ['file', 'kernel', 'sm', 'threads', 'registers', 'spilled bytes', 'stack', 'static shared', 'occupancy'];
  const rows = kernels.map((k) => [k.file, k.name, String(k.arch), `${k.threads}${k.isBound ? '' : ' ?'}`, String(k.registers), String(k.spillBytes), String(k.stackBytes), String(k.sharedBytes), `${(100 * k.occupancy).toFixed(0)} %`]);
  const widths = head.map((title, i) => Math.max(title.length, ...rows.map((row) => row[i].length)));
  const line = (row) => `| ${row.map((cell, i) => cell.padEnd(widths[i])).join(' | ')} |`;
  return [line(head), `|${widths.map((width) => '-'.repeat(width + 2)).join('|')}|`, ...rows.map(line)].join('\n');
}

async function main() {
  const { values } = parseArgs({ options: { arch: { type: 'string', default: Object.keys(LIMITS).join(',') }, only: { type: 'string', default: '' }, json: { type: 'boolean', default: false } } });
  const archs = values.arch.split(',').map(Number);
  const unknown = archs.find((arch) => !(arch in LIMITS));
  if (unknown !== undefined) throw new Error(`--arch: expected some of ${Object.keys(LIMITS).join(', ')} but received ${unknown}`);
  if (!succeeds('nvcc', ['--version'])) throw new Error('nvcc is not on the PATH: install the CUDA toolkit 12.8 or newer');
  const files = readdirSync(join(root, 'cuda')).filter((file) => file.endsWith('.cu') && file.includes(values.only));
  if (files.length === 0) throw new Error(`no file of cuda/ has '${values.only}' in its name`);
  const work = files.flatMap((file) => archs.map((arch) => [file, arch]));
  const kernels = [];
  let done = 0;
  await Promise.all(Array.from({ length: cores }, async () => {
    for (let next = work.shift(); next !== undefined; next = work.shift()) {
      kernels.push(...await assemble(...next));
      if (process.stderr.isTTY) process.stderr.write(`\r${++done} of ${files.length * archs.length} assembled`);
    }
  }));
  if (process.stderr.isTTY) process.stderr.write('\n');
  await demangle(kernels);
  kernels.sort((a, b) => a.file.localeCompare(b.file) || a.name.localeCompare(b.name) || a.arch - b.arch);
  const spilling = kernels.filter(({ spillBytes }) => spillBytes > 0);
  process.stdout.write(values.json ? `${JSON.stringify(kernels, null, 1)}\n`
    : `${table(kernels)}\n\n${kernels.length} kernels, ${spilling.length} spill. Occupancy: from registers, static shared memory and block size ('?': 256 assumed); dynamic shared memory lowers it.\n`);
  return spilling.length === 0 ? 0 : 1;
}

main().then((code) => { process.exitCode = code; }, (error) => {
  say(error.message);
  process.exitCode = 2;
});
