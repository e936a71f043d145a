/** `plumbline/kernels`: the operations by themselves, on typed arrays. Loading it loads no model code and no image decoder. */
export { LibError, type ErrorCode } from './errors';
export type { KernelOptions } from './ops/call';
export { activation, activationGrad, type ActivationKind } from './ops/activation';
export { attention, attentionGrad, type AttentionOptions } from './ops/attention';
export { crossEntropy, IGNORED_TARGET, type CrossEntropyOptions } from './ops/crossEntropy';
export { layerNorm, layerNormGrad } from './ops/layerNorm';
export { linear, linearGrad, type LinearOptions, type WeightMatrix } from './ops/linear';
export { mrope, type MropeOptions } from './ops/mrope';
export { patchRows, type PatchRowsOptions } from './ops/patchRows';
export { resize, type ResizeOptions } from './ops/resize';
export { rmsNorm, rmsNormGrad, type NormOptions } from './ops/rmsNorm';
export { swiglu, swigluGrad } from './ops/swiglu';
