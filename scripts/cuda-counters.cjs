// What the CUDA kernels move, counted by the interpreter of their PTX (scripts/interpreter.cjs): `npm run cuda:counters [-- --json]`. It has
// no caches, so two figures, both as a share of the bytes that must be moved:
//   asked  32-byte sectors that all blocks ask for
//   DRAM   less what any L2 has: weight, bias and step for every block but the first (28 KB at most), and partial sums just written
// Exits 1 above a limit, 2 where it cannot run.
const { spawnSync } = require('node:child_process');
const { mkdtempSync, readFileSync, rmSync } = require('node:fs');
const { tmpdir } = require('node:os');
const { join } = require('node:path');
const { parseArgs } = require('node:util');

const { prepare } = require('./interpreter.cjs');
const { say } = require('./steps.cjs');

/** Most of DRAM, by the beginning of a case's name; Infinity: bound by arithmetic. */
const LIMITS = { rms_norm: 1.1, layer_norm: 1.1, grad_norm: 1.1, gather_rms_norm: 1.1, gated_scatter: 1.1, attention_saliency: 1.2, ragged_attention: Infinity };
/** Kernels whose accesses of shared memory never wait for each other. */
const FREE_OF_CONFLICTS = /norm_kernel|norm_grad_kernel|gated_scatter|saliency_partial|ragged_attention/;

/** Runs the cases where `prepare` of interpreter.cjs has laid them out. */
function count(ready) {
  const work = mkdtempSync(join(tmpdir(), 'plumbline-counters-'));
  try {
    const metrics = join(work, 'metrics.json');
    const { status, stdout } = spawnSync(process.execPath, [join(ready.folder, 'dev', 'test', 'device', 'traffic.js')], { env: { ...ready.env, PTXSIM_METRICS: metrics }, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
    if (status !== 0) throw new Error(`the cases ended with status ${status}`);
    return summarise(JSON.parse(readFileSync(metrics, 'utf8')).launches, JSON.parse(stdout));
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** One row for each case, with its kernels. The last records are those that the cases counted. */
function summarise(records, { launches, cases }) {
  const all = records.slice(records.length - launches);
  return cases.map(({ name, kernels, bytes, vectors = 0, sums = [], from, to }) => {
    const has = ({ kernel }, parts) => parts.some((part) => kernel.includes(part));
    const found = all.slice(from, to).filter((record) => has(record, kernels));
    for (const part of kernels) if (!found.some((record) => has(record, [part]))) throw new Error(`${name}: no launch of ${part}`);
    const limit = Object.entries(LIMITS).find(([op]) => name.startsWith(op))[1];
    const asked = found.reduce((sum, record) => sum + 32 * (record.global_load_sectors + record.global_store_sectors), 0);
    const cached = found.reduce((sum, record) => sum + (has(record, sums) ? 32 * record.global_load_sectors : 0) + (has(record, [kernels[0]]) ? (blocks(record) - 1) * vectors : 0), 0);
    const rows = found.map(countersOf);
    const dram = (asked - cached) / bytes;
    return { name, bytes, limit, asked: asked / bytes, dram, kernels: rows, isGood: dram <= limit && rows.every(({ isFree, conflicts }) => !isFree || conflicts === 0) };
  });
}

function countersOf(record) {
  const moved = (least) => Object.entries(record.thread_accesses_by_width).reduce((sum, [width, accesses]) => sum + (Number(width) >= least ? Number(width) * accesses : 0), 0);
  return {
    kernel: record.kernel.replace(/^void |plumbline::|\(anonymous namespace\)::|\(.*$/g, ''),
    loads: share(record.global_load_sectors, record.unique_bytes_read), stores: share(record.global_store_sectors, record.unique_bytes_written),
    wide: moved(16) / Math.max(1, moved(1)), conflicts: record.bank_conflict_extra_wavefronts, isFree: FREE_OF_CONFLICTS.test(record.kernel),
  };
}

const blocks = ({ grid }) => grid.reduce((a, b) => a * b);
const share = (sectors, bytes) => (bytes === 0 ? 0 : (32 * sectors) / bytes);

function table(cases) {
  const lines = [['case', 'MB', 'asked', 'DRAM', 'limit', 'kernel', 'loads', 'stores', '16-byte', 'conflicts', '']];
  for (const { name, bytes, limit, asked, dram, kernels, isGood } of cases) {
    kernels.forEach((k, i) => {
      const head = i === 0 ? [name, (bytes / 1e6).toFixed(1), asked.toFixed(3), dram.toFixed(3), limit === Infinity ? '' : String(limit)] : ['', '', '', '', ''];
      lines.push([...head, k.kernel, k.loads.toFixed(3), k.stores.toFixed(3), `${(100 * k.wide).toFixed(0)} %`, String(k.conflicts), i === 0 && !isGood ? 'ABOVE' : '']);
    });
  }
  const widths = lines[0].map((_, i) => Math.max(...lines.map((line) => line[i].length)));
  return lines.map((line) => line.map((cell, i) => cell.padEnd(widths[i])).join('  ').trimEnd()).join('\n');
}

function main() {
  const { values } = parseArgs({ options: { json: { type: 'boolean', default: false } } });
  const ready = prepare();
  if (ready === null) return 2;
  const cases = count(ready);
  const above = cases.filter(({ isGood }) => !isGood).length;
  process.stdout.write(values.json ? `${JSON.stringify(cases, null, 1)}\n`
    : `${table(cases)}\n\nasked, DRAM: / bytes of all inputs and outputs once; loads, stores: sectors / distinct bytes; 16-byte: of the bytes. ${cases.length} cases, ${above} above a limit.\n`);
  return above === 0 ? 0 : 1;
}

module.exports = { count };
if (require.main === module) {
  try {
    process.exitCode = main();
  } catch (error) {
    say(error.message);
    process.exitCode = 2;
  }
}
