/** Interrupts as abort signals. */

/** Code of the reason that an interrupt gives, so that it is not taken for a defect. */
export const STOPPED = 'STOPPED';

/** The first interrupt stops after writing a checkpoint; a second one ends the process as usual. */
export function interruptSignal(): AbortSignal {
  const controller = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => controller.abort(Object.assign(new Error(`stopped by ${name}`), { code: STOPPED })));
  return controller.signal;
}
