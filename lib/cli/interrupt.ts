/** Interrupts as abort signals. */

/** Code of the reason that an interrupt gives, so that it is not taken for a defect. */
export const STOPPED = 'STOPPED';

/** What an interrupted command says: why it stopped, and the words that go on with it, ready for a shell. */
export function goOnText(reason: unknown, words: readonly string[]): string {
  return `${(reason as Error).message}; go on with: plumbline ${[...words, '--resume'].map(shellWord).join(' ')}\n`;
}

/** A word as a POSIX shell reads it back. */
function shellWord(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** The first interrupt stops after writing a checkpoint; a second one ends the process as usual. */
export function interruptSignal(): AbortSignal {
  const controller = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => controller.abort(Object.assign(new Error(`stopped by ${name}`), { code: STOPPED })));
  return controller.signal;
}
