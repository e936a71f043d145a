import { duration, progressOn } from '../../lib/cli/progress';
import { percent, table } from '../../lib/cli/table';

function terminal(options: { isTTY?: boolean; columns?: number }): { text: string; write(text: string): void } {
  const made = { text: '', ...options, write: (text: string) => { made.text += text; } };
  return made;
}

test('elsewhere: plain lines, at most one per ten seconds, and the last', () => {
  const out = terminal({});
  let now = 0;
  const progress = progressOn(out, 'train', () => now);
  for (let i = 1; i <= 40; i++) {
    now = i * 1000;
    progress.update(i, 40, `loss ${i}`);
  }
  progress.end();
  expect(out.text).toBe('train 1/40 1s, 39s left  loss 1\ntrain 11/40 11s, 29s left  loss 11\ntrain 21/40 21s, 19s left  loss 21\ntrain 31/40 31s, 9s left  loss 31\ntrain 40/40 40s  loss 40\n');
});

test('on a terminal: one line, redrawn, never wider than the terminal', () => {
  const out = terminal({ isTTY: true, columns: 40 });
  let now = 0;
  const progress = progressOn(out, '', () => now);
  progress.update(0, 10, 'a note that is too long for it');
  now = 50;
  progress.update(1, 10, 'too soon');
  now = 5000;
  progress.update(5, 10, 'x');
  progress.end();
  const lines = out.text.split('\r\u001b[K').slice(1);
  expect(lines).toEqual(['[------------------------] 0/10 0s  a n', '[############------------] 5/10 5s, 5s \n']);
});

test.each([[0, '0s'], [59.4, '59s'], [60, '1m00s'], [185, '3m05s'], [3720, '1h02m']])('%f seconds', (seconds, text) => expect(duration(seconds)).toBe(text));

test('tables', () => {
  expect(table([['', 'right'], ['words', percent(0.5)], ['none', percent(NaN)]])).toBe('        right\n-----  ------\nwords  50.0 %\nnone     none');
  expect(table([])).toBe('');
});
