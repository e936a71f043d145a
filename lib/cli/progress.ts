/** Progress on a terminal as one line that is redrawn; elsewhere as plain lines, at most one per ten seconds. */

export interface Progress {
  update(done: number, total: number, note: string): void;
  /** Ends the line, so that other text can follow. */
  end(): void;
}

const BAR_WIDTH = 24;
const REDRAW_MS = 100;
const LINE_MS = 10_000;

interface Terminal {
  write(text: string): unknown;
  isTTY?: boolean;
  columns?: number;
}

/** @param now milliseconds, for tests. */
export function progressOn(terminal: Terminal, label: string, now: () => number = () => performance.now()): Progress {
  const tty = terminal.isTTY === true;
  const started = now();
  let last = -Infinity;
  let shown = '';
  const line = (done: number, total: number, note: string): string => {
    const share = total > 0 ? Math.min(1, done / total) : 1;
    const elapsed = (now() - started) / 1000;
    const left = share > 0 ? (elapsed / share) * (1 - share) : NaN;
    const filled = Math.round(share * BAR_WIDTH);
    const bar = tty ? `[${'#'.repeat(filled)}${'-'.repeat(BAR_WIDTH - filled)}]` : '';
    return `${[label, bar].filter((part) => part !== '').map((part) => `${part} `).join('')}${done}/${total} ${duration(elapsed)}${Number.isFinite(left) && done < total ? `, ${duration(left)} left` : ''}  ${note}`;
  };
  return {
    update(done, total, note) {
      const wait = tty ? REDRAW_MS : LINE_MS;
      if (done < total && now() - last < wait) return;
      last = now();
      const text = line(done, total, note);
      if (!tty) {
        terminal.write(`${text}\n`);
        return;
      }
      // A line longer than the terminal would wrap and leave its first half behind at the next redraw.
      shown = text.slice(0, (terminal.columns ?? 80) - 1);
      terminal.write(`\r\u001b[K${shown}`);
    },
    end() {
      if (tty && shown !== '') terminal.write('\n');
      shown = '';
    },
  };
}

/** "7s", "3m05s", "1h02m". */
export function duration(seconds: number): string {
  const whole = Math.round(seconds);
  const two = (value: number): string => String(value).padStart(2, '0');
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m${two(whole % 60)}s`;
  return `${Math.floor(whole / 3600)}h${two(Math.floor((whole % 3600) / 60))}m`;
}
