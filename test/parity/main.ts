/** `npm run parity -- DIR [--json]`: prints a line per golden file, and exits 1 on any failure. */
import { parseArgs } from 'node:util';
import { runDirectory, type FileResult } from './run';

function line({ file, status, tensors, worst, worstTensor }: FileResult): string {
  return `${status === 'passed' ? 'pass' : 'FAIL'}  ${file.padEnd(44)} ${String(tensors).padStart(4)} tensors, worst ${worst.toFixed(3)} of the tolerance (${worstTensor})`;
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({ allowPositionals: true, options: { json: { type: 'boolean', default: false } } });
  const [directory] = positionals;
  if (directory === undefined || positionals.length !== 1) {
    process.stderr.write('usage: npm run parity -- DIR [--json]   (DIR made by test/oracle/make_goldens.py)\n');
    return 2;
  }
  const results = await runDirectory(directory, (result) => {
    if (values.json) return;
    process.stdout.write(`${line(result)}\n${result.failures.map((failure) => `        ${failure}\n`).join('')}`);
  });
  const failed = results.filter(({ status }) => status === 'failed').length;
  if (values.json) process.stdout.write(`${JSON.stringify(results, null, 1)}\n`);
  else process.stdout.write(`${results.length - failed} files passed, ${failed} failed\n`);
  return failed > 0 ? 1 : 0;
}

main().then((code) => { process.exitCode = code; }, (error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.stack ?? error.message : String(error)}\n`);
  process.exitCode = 1;
});
