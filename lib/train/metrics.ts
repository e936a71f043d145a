/** Metrics as JSON Lines. */
import { appendFileSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fail } from '../errors';

export interface MetricsWriter {
  write(figures: { step: number }): void;
  close(): void;
}

/** Lines that wait in memory; a crash loses at most these. */
const BUFFERED = 50;

/**
 * Appends to `file` (undefined: nowhere). Lines of steps after `done`, left by a run that went on after its last checkpoint, are
 * dropped: the resumed run writes them again.
 */
export function metricsWriter(file: string | undefined, done: number): MetricsWriter {
  if (file === undefined) return { write: () => {}, close: () => {} };
  onFile(file, () => {
    mkdirSync(dirname(file), { recursive: true });
    // Devices are only written: some of them, as /dev/full, never end.
    const lines = statSync(file, { throwIfNoEntry: false })?.isFile() ? readFileSync(file, 'utf8').split('\n') : [];
    const kept = lines.filter((line) => line !== '' && stepOf(line) <= done);
    writeFileSync(file, kept.map((line) => `${line}\n`).join(''));
  });
  let waiting: string[] = [];
  const flush = (): void => {
    const lines = waiting.join('');
    waiting = [];
    if (lines !== '') onFile(file, () => appendFileSync(file, lines));
  };
  return {
    write(figures) {
      waiting.push(`${JSON.stringify(figures)}\n`);
      if (waiting.length >= BUFFERED) flush();
    },
    close: flush,
  };
}

function onFile(file: string, work: () => void): void {
  try {
    work();
  } catch (error) {
    fail('ERR_ARGUMENT', 'train', `Expected metricsFile to be a file that can be written but received ${file}: ${(error as Error).message}`, { cause: error });
  }
}

/** Step of a line; a line that a crash cut off belongs to no step. */
function stepOf(line: string): number {
  try {
    const { step } = JSON.parse(line) as { step?: unknown };
    return typeof step === 'number' ? step : Infinity;
  } catch {
    return Infinity;
  }
}
