/** Files of JSON Lines that grow with the steps of a training. */
import { appendFileSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { show } from '../check';
import { fail } from '../errors';

export interface LinesWriter {
  /** First line of the file as it was; undefined where it was empty. */
  first: string | undefined;
  /** Lines of the steps before that are kept. */
  kept: readonly string[];
  /** Writes the head and what is kept; until then the file is as it was. */
  begin(): void;
  write(figures: { step: number }): void;
  close(): void;
}

/** Lines that wait in memory; a crash loses at most these. */
const BUFFERED = 50;

/** How the first line of each file of ours begins, and what the file is. */
const OURS = { metricsFile: ['{"step":', 'metrics of a training'], profileFile: ['{"format":"plumbline gradient profile"', 'a gradient profile'] } as const;

/**
 * Appends to `file` (undefined: nowhere). Lines of steps after `done`, left by a run that went on after its last checkpoint, are
 * dropped: the resumed run writes them again. A file of another kind is refused, and stays as it is.
 *
 * @param option named in errors.
 * @param head first line, written anew.
 */
export function linesWriter(option: 'metricsFile' | 'profileFile', file: string | undefined, done: number, head?: object): LinesWriter {
  if (file === undefined) return { first: undefined, kept: [], begin: () => {}, write: () => {}, close: () => {} };
  const onFile = (work: () => void): void => {
    try {
      work();
    } catch (error) {
      fail('ERR_ARGUMENT', 'train', `Expected ${option} to be a file that can be written but received ${file}: ${(error as Error).message}`, { cause: error });
    }
  };
  let lines: string[] = [];
  onFile(() => {
    // Devices are only written: some of them, as /dev/full, never end.
    if (statSync(file, { throwIfNoEntry: false })?.isFile()) lines = readFileSync(file, 'utf8').split('\n');
  });
  const [beginning, what] = OURS[option];
  const first = lines.find((line) => line !== '');
  if (first !== undefined && !first.startsWith(beginning) && !beginning.startsWith(first)) fail('ERR_ARGUMENT', 'train', `Expected ${option} to be a new or empty file or ${what} but received ${file}, which begins with ${show(first)}; name another file, or move this one away`);
  const kept = lines.filter((line) => line !== '' && stepOf(line) <= done);
  let waiting: string[] = [];
  const flush = (): void => {
    const lines = waiting.join('');
    waiting = [];
    if (lines !== '') onFile(() => appendFileSync(file, lines));
  };
  return {
    first,
    kept,
    begin() {
      onFile(() => {
        mkdirSync(dirname(file), { recursive: true });
        writeFileSync(file, [...(head === undefined ? [] : [JSON.stringify(head)]), ...kept].map((line) => `${line}\n`).join(''));
      });
    },
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
