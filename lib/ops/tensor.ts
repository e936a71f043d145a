import { abortable } from '../abort';
import * as check from '../check';
import { chooseDevice, type DeviceChoice, type DeviceName } from '../device';
import { fail, guarded } from '../errors';
import { native, type NativeTensor } from '../native';
import type { KernelOptions } from './call';

export interface TensorOptions {
  device?: DeviceChoice;
}

let nativeOf: (tensor: Tensor) => NativeTensor | undefined;

/**
 * A float32 array in the device's memory. Some kernels take it in place of a `Float32Array`, without a copy: those whose parameters are of type
 * `Floats` or `Gradient` (attentionSaliency, coherentWindow, cropPatches, gatedScatter, gatherRmsNorm, packRagged, unpackRagged, routeTokens;
 * gradNorm, globalNorm, gradSpectra). Those with an option `output` give their results as tensors with `output: 'tensor'`. It never gives out a view of its memory. Jobs run in the order of their calls: one that was
 * called before `write` or `dispose` still sees what was there. It owns memory: call `dispose`, or declare it with `using`.
 *
 * @example
 * const tensor = await Tensor.from(Float32Array.of(1, 2, 3, 4, 5, 6), [2, 3]);
 * await tensor.write(Float32Array.of(7), 5);
 * await tensor.read();  // [1, 2, 3, 4, 5, 7]
 * tensor.dispose();
 */
export class Tensor {
  /** Sizes of the axes, row-major, as they were given. Kernels look at `size` only. */
  readonly shape: readonly number[];
  /** Number of elements. */
  readonly size: number;
  /** Where its memory is. */
  readonly device: DeviceName;
  #native: NativeTensor | undefined;

  static {
    nativeOf = (tensor) => tensor.#native;
  }

  /**
   * A tensor of zeros.
   *
   * @param shape sizes of the axes, none negative; `[]` is one element. Copied.
   * @param options.device 'cpu', 'cuda' or 'auto' (default): where its memory is taken.
   * @throws {LibError} `ERR_ARGUMENT`, `ERR_RANGE`, `ERR_OUT_OF_MEMORY`, `ERR_BACKEND_UNAVAILABLE`.
   */
  constructor(shape: readonly number[], options: TensorOptions = {}) {
    check.options('Tensor', options, ['device']);
    this.size = sizeOf('Tensor', shape);
    const device = chooseDevice('Tensor', options.device);
    this.device = device;
    this.shape = Object.freeze([...shape]);
    this.#native = guarded(() => new (native().Tensor)(this.size, device));
  }

  /**
   * A tensor of zeros: `new Tensor(shape)`.
   *
   * @param shape sizes of the axes, none negative. Copied.
   * @throws {LibError} `ERR_ARGUMENT`, `ERR_RANGE`, `ERR_OUT_OF_MEMORY`.
   * @example Tensor.zeros([2, 3]).size;  // 6
   */
  static zeros(shape: readonly number[], options: TensorOptions = {}): Tensor {
    return new Tensor(shape, options);
  }

  /**
   * A tensor with the values of an array.
   *
   * @param data as many elements as `shape` says, row-major. Copied before this returns.
   * @param shape sizes of the axes, none negative. Copied.
   * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`, `ERR_OUT_OF_MEMORY`.
   */
  static async from(data: Float32Array, shape: readonly number[], options: KernelOptions = {}): Promise<Tensor> {
    const op = 'Tensor.from';
    check.options(op, options, ['signal', 'device']);
    check.typedArray(op, 'data', data, 'Float32Array', sizeOf(op, shape), 'the product of shape');
    const tensor = new Tensor(shape, options.device === undefined ? {} : { device: options.device });
    try {
      await abortable(check.signal(op, options.signal), (token) => living(op, tensor).write(data, 0, token));
      return tensor;
    } catch (error) {
      tensor.dispose();
      throw error;
    }
  }

  /**
   * Copies all elements out of the device.
   *
   * @returns (size), row-major, float32.
   * @throws {LibError} `ERR_ARGUMENT`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
   */
  async read(options: Pick<KernelOptions, 'signal'> = {}): Promise<Float32Array> {
    check.options('Tensor.read', options, ['signal']);
    const source = living('Tensor.read', this);
    return abortable(check.signal('Tensor.read', options.signal), (token) => source.read(token));
  }

  /**
   * Replaces elements, from `offset` on.
   *
   * @param data at most `size - offset` elements. Copied before this returns.
   * @param offset first element that is replaced (default 0).
   * @throws {LibError} `ERR_ARGUMENT`, `ERR_DTYPE`, `ERR_SHAPE`, `ERR_RANGE`, `ERR_DISPOSED`.
   */
  async write(data: Float32Array, offset = 0, options: Pick<KernelOptions, 'signal'> = {}): Promise<void> {
    const op = 'Tensor.write';
    check.options(op, options, ['signal']);
    const target = living(op, this);
    check.typedArray(op, 'data', data, 'Float32Array');
    check.integer(op, 'offset', offset, 0, this.size);
    if (data.length > this.size - offset) fail('ERR_SHAPE', op, `Expected data to have at most size - offset = ${this.size - offset} elements but received ${data.length}`);
    return abortable(check.signal(op, options.signal), (token) => target.write(data, offset, token));
  }

  /** Gives the memory back once the jobs that use it are done. Does not wait; a second call does nothing. */
  dispose(): void {
    this.#native?.dispose();
    this.#native = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  get [Symbol.toStringTag](): string {
    return 'Tensor';
  }

  /** Whether a value is a tensor of this copy of the library. */
  static is(value: unknown): value is Tensor {
    return typeof value === 'object' && value !== null && #native in value;
  }
}

/** What the addon knows a tensor by. */
export function living(op: string, tensor: Tensor, name = 'a living Tensor'): NativeTensor {
  return nativeOf(tensor) ?? fail('ERR_DISPOSED', op, `Expected ${name} but received one that is disposed`);
}

function sizeOf(op: string, shape: readonly number[]): number {
  const sizes = Array.from(check.array(op, 'shape', shape), (size) => check.integer(op, 'a size of shape', size, 0));
  const size = sizes.reduce((product, next) => product * next, 1);
  if (!Number.isSafeInteger(size)) fail('ERR_RANGE', op, `Expected shape to have at most ${Number.MAX_SAFE_INTEGER} elements but received sizes ${sizes.join(' x ')}`);
  return size;
}
