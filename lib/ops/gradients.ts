/** Gradients in the float types that training stores them in. */
import * as check from '../check';
import { fail } from '../errors';
import type { GradientDType, NativeGradient } from '../native';
import { floats, type Floats } from './floats';

/** A Float32Array or tensor is f32; a Uint16Array holds the bits of the 16-bit floats that the option `dtype` names. Arrays are copied. */
export type Gradient = Floats | Uint16Array;

export interface GradientArgument {
  native: NativeGradient;
  dtype: GradientDType;
  length: number;
}

export function checkDtype(op: string, dtype: unknown): GradientDType | undefined {
  return dtype === undefined ? undefined : check.oneOf<GradientDType>(op, 'dtype', dtype, ['f32', 'f16', 'bf16']);
}

/** Checks a gradient, and its number of elements when given. `dtype`: the option, which a Uint16Array needs. */
export function gradient(op: string, name: string, value: unknown, dtype: unknown, length?: number, meaning?: string): GradientArgument {
  const chosen = checkDtype(op, dtype);
  if (Object.prototype.toString.call(value) === '[object Uint16Array]') {
    if (chosen !== 'f16' && chosen !== 'bf16') fail('ERR_DTYPE', op, `Expected dtype to be 'f16' or 'bf16' for ${name}, a Uint16Array, but received ${check.show(dtype)}`);
    const bits = check.typedArray(op, name, value, 'Uint16Array', length, meaning);
    return { native: bits, dtype: chosen, length: bits.length };
  }
  const { native, length: size } = floats(op, name, value, length, meaning, 'a Float32Array, a Uint16Array or a Tensor');
  return { native, dtype: 'f32', length: size };
}

/** For operations on one array: a Float32Array or tensor is nothing but f32. */
export function sameDtype(op: string, name: string, dtype: unknown, received: GradientDType): void {
  if (dtype !== undefined && dtype !== received) fail('ERR_DTYPE', op, `Expected ${name} to be a Uint16Array with dtype '${String(dtype)}' but received f32 values`);
}
