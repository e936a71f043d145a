/** What every benchmark shares: statistics, facts about the machine, tables. GB is 1e9 bytes. */
import { execFileSync } from 'node:child_process';
import { cpus, totalmem } from 'node:os';
import { native, packageRoot } from '../lib/native';

export interface Timing { median: number; p10: number; p90: number; repeats: number }

export interface BenchRow {
  name: string;
  /** What was computed, e.g. shapes and dtypes. */
  what: string;
  /** Achieved, in `unit`. */
  value: number;
  unit: string;
  /** The floor or roof that the value is divided by, in the same unit, measured in this run. */
  roof?: number;
  /** The roof was measured in turn with this very row: the run's best one does not take its place. */
  ownRoof?: boolean;
  /** Of one repeat; absent where a figure is not a time. */
  seconds?: Timing;
  note?: string;
}

export function timing(seconds: ArrayLike<number>): Timing {
  const sorted = Array.from(seconds).sort((a, b) => a - b);
  const at = (share: number): number => sorted[Math.min(sorted.length - 1, Math.round(share * (sorted.length - 1)))] as number;
  return { median: at(0.5), p10: at(0.1), p90: at(0.9), repeats: sorted.length };
}

function commit(): string {
  try {
    const run = (...args: string[]): string => execFileSync('git', args, { cwd: packageRoot(), encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
    return run('rev-parse', '--short', 'HEAD') + (run('status', '--porcelain') === '' ? '' : ' with changes');
  } catch {
    return 'unknown';
  }
}

export function machineFacts(): Record<string, unknown> {
  return { cpu: cpus()[0]?.model.trim(), cores: cpus().length, memoryGB: Math.round(totalmem() / 1e9), node: process.version, addon: native().buildInfo(), commit: commit() };
}

/** Seconds of each repeat of one of the addon's timing loops, which warm up first. */
export async function nativeTimes(name: string, sizes: readonly number[], repeats: number): Promise<Timing> {
  return timing(await native().bench(name, sizes, repeats));
}

export function table(rows: readonly BenchRow[]): string {
  const cells = rows.map(({ name, what, value, unit, roof, seconds, note }) => [
    name, what, `${value.toPrecision(4)} ${unit}`, roof === undefined ? '' : `${((100 * value) / roof).toFixed(0)} %`,
    seconds === undefined ? '' : `${(1e3 * seconds.median).toPrecision(3)} ms (${(1e3 * seconds.p10).toPrecision(3)}–${(1e3 * seconds.p90).toPrecision(3)})`, note ?? '',
  ]);
  const head = ['what', 'size', 'achieved', 'of the roof', 'median (p10–p90)', 'note'];
  const widths = head.map((title, i) => Math.max(title.length, ...cells.map((row) => (row[i] as string).length)));
  const line = (row: readonly string[]): string => `| ${row.map((cell, i) => cell.padEnd(widths[i] as number)).join(' | ')} |`;
  return [line(head), `|${widths.map((width) => '-'.repeat(width + 2)).join('|')}|`, ...cells.map(line)].join('\n');
}
