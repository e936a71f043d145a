/** What all kernels share: their options, and the way to the addon. */
import { abortable } from '../abort';
import * as check from '../check';
import { chooseDevice, type DeviceChoice } from '../device';
import { fail } from '../errors';
import { native, type NativeCancelToken, type NativeOps } from '../native';

export interface KernelOptions {
  /** Stops the job within about 10 ms; the promise rejects with the signal's reason. */
  signal?: AbortSignal;
  /** Where it runs: 'cpu', 'cuda', or 'auto' (default, unless the environment variable PLUMBLINE_DEVICE says otherwise): CUDA where it works. Tensors must be of that device. */
  device?: DeviceChoice;
}

/** Runs a job on the environment's one native thread. Typed arrays are copied before this returns. */
export function run<T>(op: string, options: KernelOptions, start: (ops: NativeOps, token: NativeCancelToken | undefined) => Promise<T>): Promise<T> {
  const device = chooseDevice(op, options.device);
  return abortable(check.signal(op, options.signal), (token) => start(native().ops, token), device);
}

/** Rows of a packed array: its length must be a multiple of the row's length. */
export function rowsOf(op: string, name: string, length: number, width: number, meaning: string): number {
  if (length % width !== 0) fail('ERR_SHAPE', op, `Expected ${name} to have a multiple of ${meaning} = ${width} elements but received ${length}`);
  return length / width;
}

/** A vector that gives a row's length: at least one element. */
export function widthOf(op: string, name: string, vector: Float32Array): number {
  if (vector.length === 0) fail('ERR_SHAPE', op, `Expected ${name} to have at least 1 element but received 0`);
  return vector.length;
}

/** Sides of a picture and the like. */
export const MAX_SIDE = 65536;

/** Number of elements, refused when no array could hold it. */
export function elements(op: string, name: string, ...sizes: readonly number[]): number {
  const product = sizes.reduce((total, size) => total * size, 1);
  if (product > 2 ** 33) fail('ERR_RANGE', op, `Expected ${name} to have at most ${2 ** 33} elements but received sizes ${sizes.join(' x ')}`);
  return product;
}
