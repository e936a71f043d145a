/** What long commands say while they work, and where it is printed. */
import type { StepMetrics } from '../train';
import { progressOn, type Progress } from './progress';

/** Hears what a command does; the library itself prints nothing. */
export interface Reporter {
  phase(text: string): void;
  progress(done: number, total: number, note: string): void;
}

/** Progress goes to standard error, so that `--json` leaves standard output to the result. */
export function reporterOn(terminal: NodeJS.WriteStream): Reporter & { end(): void } {
  let current: Progress | undefined;
  const end = (): void => {
    current?.end();
    current = undefined;
  };
  return {
    phase(text) {
      end();
      terminal.write(`${text}\n`);
    },
    progress(done, total, note) {
      current ??= progressOn(terminal, '');
      current.update(done, total, note);
    },
    end,
  };
}

/** Figures of a step beside the progress of a training. */
export function stepNote({ stage, loss, accuracy, srLoss, routedFraction }: StepMetrics): string {
  const replay = srLoss === undefined ? '' : `  SR loss ${srLoss.toFixed(3)}`;
  const routing = routedFraction === undefined ? '' : `  routed ${(100 * routedFraction).toFixed(0)} %`;
  return `${stage}  loss ${loss.toFixed(3)}${replay}  words right ${(100 * accuracy).toFixed(0)} %${routing}`;
}
