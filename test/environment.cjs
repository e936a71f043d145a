// Native code makes its typed arrays in the main realm; giving jest's realm the same constructors makes `toEqual`,
// `toStrictEqual` and `instanceof` mean there what they mean in Node.
// The suites are about the CPU unless they say otherwise, also where there is a GPU.
process.env.PLUMBLINE_DEVICE ??= 'cpu';

const { TestEnvironment } = require('jest-environment-node');

module.exports = class extends TestEnvironment {
  constructor(config, context) {
    super(config, context);
    Object.assign(this.global, {
      Int8Array, Uint8Array, Uint8ClampedArray, Int16Array, Uint16Array, Int32Array, Uint32Array,
      Float32Array, Float64Array, BigInt64Array, BigUint64Array, ArrayBuffer, SharedArrayBuffer,
    });
  }
};
