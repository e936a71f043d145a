/** Metrics as JSON Lines. */
import { appendFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';

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
  mkdirSync(dirname(file), { recursive: true });
  const lines = existsSync(file) ? readFileSync(file, 'utf8').split('\n') : [];
  const kept = lines.filter((line) => line !== '' && stepOf(line) <= done);
  writeFileSync(file, kept.map((line) => `${line}\n`).join(''));
  let waiting: string[] = [];
  const flush = (): void => {
    if (waiting.length > 0) appendFileSync(file, waiting.join(''));
    waiting = [];
  };
  return {
    write(figures) {
      waiting.push(`${JSON.stringify(figures)}\n`);
      if (waiting.length >= BUFFERED) flush();
    },
    close: flush,
  };
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
