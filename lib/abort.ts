import { fromNative, codeOf } from './errors';
import { native, type NativeCancelToken } from './native';
import type { DeviceName } from './device';

/**
 * Runs a native job under an `AbortSignal`. Checked before the start; while the job runs, aborting cancels it within about
 * 10 ms, and the promise rejects with `signal.reason`. The listener is always removed. A real failure is never hidden by a late
 * abort, and errors of the addon come out as `LibError`. The token also carries the device of an operation of `ops`.
 *
 * @example const { out } = await abortable(signal, (token) => native().ops.attention(input, token));
 */
export async function abortable<T>(
  signal: AbortSignal | undefined,
  start: (token: NativeCancelToken | undefined) => Promise<T>,
  device: DeviceName = 'cpu',
): Promise<T> {
  signal?.throwIfAborted();
  let token: NativeCancelToken | undefined;
  let cancel: (() => void) | undefined;
  try {
    if (signal !== undefined || device !== 'cpu') token = new (native().CancelToken)(device);
    if (signal !== undefined) {
      const made = token as NativeCancelToken;
      cancel = () => made.cancel();
      signal.addEventListener('abort', cancel, { once: true });
    }
    return await start(token);
  } catch (error) {
    if (signal?.aborted === true && codeOf(error) === 'ABORTED') throw signal.reason;
    throw fromNative(error);
  } finally {
    if (cancel !== undefined) signal?.removeEventListener('abort', cancel);
  }
}
