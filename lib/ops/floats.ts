/** Float arguments and results of the kernels: arrays, or tensors on the device. */
import * as check from '../check';
import { chooseDevice } from '../device';
import { fail } from '../errors';
import type { NativeCancelToken, NativeFloats, NativeInto, NativeOps, NativeTensor } from '../native';
import { run, type KernelOptions } from './call';
import { living, Tensor } from './tensor';

/** A float argument. An array is copied before the call returns; a tensor is read when the job runs, in the order of the calls. */
export type Floats = Float32Array | Tensor;

export type OutputKind = 'array' | 'tensor';

/** A float result: what `output` asked for. */
export type FloatsOf<O extends OutputKind> = O extends 'tensor' ? Tensor : Float32Array;

export interface OutputOptions<O extends OutputKind = OutputKind> extends KernelOptions {
  /** Float results as `Float32Array` (default 'array'), or as new tensors, which stay on the device and are yours to dispose ('tensor'). */
  output?: O;
}

export interface FloatArgument {
  native: NativeFloats;
  length: number;
}

/** Checks a float argument, and its number of elements when given. `kinds`: what the operation takes, for messages. */
export function floats(op: string, name: string, value: unknown, length?: number, meaning?: string, kinds = 'a Float32Array or a Tensor'): FloatArgument {
  if (!Tensor.is(value)) {
    if (Object.prototype.toString.call(value) !== '[object Float32Array]') fail('ERR_DTYPE', op, `Expected ${name} to be ${kinds} but received ${check.show(value)}`);
    const array = check.typedArray(op, name, value, 'Float32Array', length, meaning);
    return { native: array, length: array.length };
  }
  const tensor = living(op, value, `${name} to be a living Tensor`);
  if (length !== undefined && value.size !== length) fail('ERR_SHAPE', op, `Expected ${name} to have ${meaning === undefined ? '' : `${meaning} = `}${length} elements but received ${value.size}`);
  return { native: tensor, length: value.size };
}

/**
 * Runs a job whose float results have these shapes. With `output: 'tensor'` they are tensors made here, which the job fills; the
 * sizes are known before it runs, so that it allocates nothing for them.
 */
export async function runFloats<O extends OutputKind, Name extends string, R extends Partial<Record<Name, Float32Array>>>(
  op: string, options: OutputOptions<O>, shapes: Readonly<Record<Name, readonly number[]>>,
  start: (ops: NativeOps, into: NativeInto<Name>, token: NativeCancelToken | undefined) => Promise<R>,
): Promise<Omit<R, Name> & Record<Name, FloatsOf<O>>> {
  const device = chooseDevice(op, options.device);
  const made = new Map<string, Tensor>();
  try {
    if (check.oneOf(op, 'output', options.output === undefined ? 'array' : options.output, ['array', 'tensor']) === 'tensor') {
      for (const [name, shape] of Object.entries<readonly number[]>(shapes)) made.set(name, new Tensor(shape, { device }));
    }
    const into = made.size === 0 ? undefined : (Object.fromEntries([...made].map(([name, tensor]) => [name, living(op, tensor)])) as Record<Name, NativeTensor>);
    const result = await run(op, { ...options, device }, (ops, token) => start(ops, into, token));
    return { ...result, ...Object.fromEntries(made) } as unknown as Omit<R, Name> & Record<Name, FloatsOf<O>>;
  } catch (error) {
    for (const tensor of made.values()) tensor.dispose();
    throw error;
  }
}

/** Checks row numbers: in 0..rows-1, and each at most once when `distinct`. */
export function checkRows(op: string, rows: Int32Array, count: number, distinct: boolean): void {
  check.typedArray(op, 'rows', rows, 'Int32Array');
  const seen = new Uint8Array(distinct ? count : 0);
  rows.forEach((row, i) => {
    if (row < 0 || row >= count) fail('ERR_RANGE', op, `Expected row ${i} to be an integer from 0 to ${count - 1} but received ${row}`);
    if (!distinct) return;
    if (seen[row] === 1) fail('ERR_RANGE', op, `Expected rows to be distinct but received ${row} again at ${i}`);
    seen[row] = 1;
  });
}
