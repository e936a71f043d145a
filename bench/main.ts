/** `npm run bench -- [--json] [--peer DIR]`: operations, decoding and training against the machine's measured roofs. */
import { parseArgs } from 'node:util';
import { machineFacts, table, type BenchRow } from './harness';
import { decodeRow, trainingRows } from './models';
import { attentionRows, gemmRows, gemvRows, roofs } from './operations';

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { json: { type: 'boolean', default: false }, peer: { type: 'string' } } });
  const say = (text: string): void => { process.stderr.write(`${text}\n`); };
  const rows: BenchRow[] = [];
  say('roofs of this machine');
  const roof = await roofs();
  rows.push(...roof.rows);
  for (const [name, run] of [
    ['GEMM', () => gemmRows(roof)], ['GEMV', () => gemvRows(roof)], ['attention', () => attentionRows(roof)],
    ['decoding (makes a model of 0.8 GB)', async () => [await decodeRow(roof)]], ['training', () => trainingRows(values.peer)],
  ] as const) {
    say(name);
    rows.push(...await run());
  }
  const machine = machineFacts();
  process.stdout.write(values.json ? `${JSON.stringify({ machine, rows }, null, 1)}\n` : `${JSON.stringify(machine)}\n\n${table(rows)}\n`);
}

main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.stack ?? error.message : String(error)}\n`);
  process.exitCode = 1;
});
