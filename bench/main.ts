/** `npm run bench -- [--json] [--only SECTION] [--peer DIR]`: operations, decoding and training against the machine's measured roofs. */
import { parseArgs } from 'node:util';
import { machineFacts, table, type BenchRow } from './harness';
import { decodeRow, trainingRows } from './models';
import { checkpointRows } from './checkpoint';
import { kernelRows } from './kernels';
import { extraCostRows, latentRows } from './reasoning';
import { profileRows } from './profile';
import { attentionRows, gemmRows, gemvRows, higher, roofs, type Roofs } from './operations';

/** Divides every row by the highest of the roofs measured before, between and after the sections. */
function againstRoof(row: BenchRow, used: Roofs, best: Roofs): BenchRow {
  if (row.roof === undefined || row.ownRoof) return row;
  const factor = row.unit === 'GFLOP/s' ? best.gflops / used.gflops : best.gigabytesPerSecond / used.gigabytesPerSecond;
  return { ...row, roof: row.roof * factor };
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { json: { type: 'boolean', default: false }, only: { type: 'string', default: '' }, peer: { type: 'string' } } });
  const say = (text: string): void => { process.stderr.write(`${text}\n`); };
  const measured: BenchRow[] = [];
  say('roofs of this machine');
  const roof = await roofs();
  let best = roof;
  for (const [name, run] of [
    ['GEMM', () => gemmRows(roof)], ['GEMV', () => gemvRows(roof)], ['attention', () => attentionRows(roof)],
    ['kernels', kernelRows], ['decoding (makes a model of 0.8 GB)', async () => [await decodeRow(roof)]], ['checkpoint (writes 4.4 GB to a temporary folder)', () => checkpointRows(roof)], ['saliency and routing', extraCostRows], ['latents, cached and recomputed', latentRows],
    ['profile', profileRows], ['training', () => trainingRows(values.peer)],
  ] as const) {
    if (!name.includes(values.only)) continue;
    say(name);
    measured.push(...await run());
    best = higher(best, await roofs());
  }
  if (measured.length === 0) throw new Error(`no section has '${values.only}' in its name`);
  const rows = [...best.rows, ...measured.map((row) => againstRoof(row, roof, best))];
  const machine = machineFacts();
  process.stdout.write(values.json ? `${JSON.stringify({ machine, rows }, null, 1)}\n` : `${JSON.stringify(machine)}\n\n${table(rows)}\n`);
}

main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.stack ?? error.message : String(error)}\n`);
  process.exitCode = 1;
});
