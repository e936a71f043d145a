/**
 * The only file that loads the addon, and the typed mirror of its surface.
 *
 * Native code checks memory safety (array types, lengths, ranges of indices) and throws errors with `code`; every other check is
 * the caller's (`lib/check.ts`). Methods that touch tensor data return promises that run on the environment's one job thread, in
 * order. Typed arrays are copied before a method returns.
 */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import loadAddon from 'node-gyp-build';

import { LibError } from './errors';


/** Cancels the job it is given to. Made by `new native.CancelToken()`; a cancelled job rejects with code `ABORTED`. */
export interface NativeCancelToken {
  cancel(): void;
}

export type StorageDType = 'f32' | 'bf16';
export type ParameterSlot = 'value' | 'gradient' | 'first' | 'second' | 'master';

export interface NativeTextSpec {
  hidden: number; layers: number; heads: number; kvHeads: number; headDim: number; intermediate: number; vocab: number;
  eps: number; ropeTheta: number; mropeSection: readonly number[]; tied: boolean;
}

export interface NativeVisionSpec {
  depth: number; width: number; heads: number; mlpWidth: number; outWidth: number; activation: 'quick_gelu' | 'gelu' | 'silu';
  channels: number; patch: number; merge: number; temporal: number; imageMean: readonly number[]; imageStd: readonly number[];
}

/** A parameter beside the backbone (router, token super-resolution, step vector), always f32. */
export interface NativeExtraSpec { name: string; shape: readonly number[]; }

export interface NativeModelSpec { text: NativeTextSpec; vision: NativeVisionSpec; dtype: StorageDType; extras?: readonly NativeExtraSpec[]; }

export interface NativeParameterInfo { name: string; shape: number[]; dtype: StorageDType; trainable: boolean; }

/** Where a tensor lies in a safetensors file: absolute byte offset, and the file's dtype ('F32' | 'F16' | 'BF16'). */
export interface NativeFileTensor { name: string; dtype: 'F32' | 'F16' | 'BF16'; offset: number; bytes: number; }

export interface NativeOptimizerOptions {
  learningRate: number; beta1: number; beta2: number; epsilon: number; weightDecay: number;
  /** Clip by global norm; 0 = no clipping. */
  maxNorm: number;
  /** Number of this step, from 1. */
  step: number;
}

export interface NativeModel {
  parameters(): NativeParameterInfo[];
  /** Bytes of weights, gradients and optimiser state now held. */
  bytes(): number;
  setTrainable(name: string, trainable: boolean): void;
  /** Reads tensors of one file. Rejects with ERR_CHECKPOINT (truncated file, NaN) naming the tensor. */
  loadFile(path: string, tensors: readonly NativeFileTensor[], token?: NativeCancelToken): Promise<void>;
  /** 'f32': Float32Array. 'bf16' (slot 'value' of a bf16 model's matrix or any parameter, rounded): Uint16Array of the bits. */
  readParameter(name: string, slot: ParameterSlot): Promise<Float32Array>;
  readParameterBf16(name: string): Promise<Uint16Array>;
  writeParameter(name: string, slot: ParameterSlot, data: Float32Array): Promise<void>;
  /** kind 'normal' (mean 0, standard deviation `scale`) or 'constant' (`scale`); seed is a non-negative safe integer. */
  initialize(name: string, kind: 'normal' | 'constant', scale: number, seed: number): Promise<void>;
  enableTraining(): Promise<void>;
  zeroGradients(): Promise<void>;
  /**
   * Clip and AdamW on all trainable parameters; resolves to the global gradient norm before clipping. A norm that is not finite leaves
   * the weights as they are. Once the update has begun it is not cancelled: half of it would be weights of no step at all.
   */
  optimizerStep(options: NativeOptimizerOptions, token?: NativeCancelToken): Promise<number>;
  gradientNorm(): Promise<number>;
  dispose(): void;
}

/** What a row's input embedding is. 3 = row `index` of `embeddings`; 2 = the final hidden state of the sequence's last row. */
export const ROW_KIND = Object.freeze({ token: 0, visual: 1, latent: 2, embedding: 3 });

export interface NativePass {
  /** [B] sequence ids, each at most once. */
  sequences: Int32Array;
  /** [B+1] rows of sequence b are cuSeqlens[b] .. cuSeqlens[b+1] of the packed rows. */
  cuSeqlens: Int32Array;
  /** [T] ROW_KIND of each packed row. */
  kind: Uint8Array;
  /** [T] token id, visual row, 0, or row of `embeddings`. */
  index: Int32Array;
  /** [3*T] temporal, height, width position ids. */
  positions: Int32Array;
  /** [n*D], for rows of kind `embedding`. */
  embeddings?: Float32Array;
  /** Packed rows whose logits / final hidden states are wanted. */
  logitRows?: Int32Array;
  hiddenRows?: Int32Array;
  keepLayerInputs?: boolean;
}

export interface NativePassResult { pass: number; logits: Float32Array; hidden: Float32Array; }

export interface NativeLoss {
  /** [R] pass number and packed row that predicts target [R]. */
  pass: Int32Array; row: Int32Array; target: Int32Array;
  /** Weight of one row in the loss: 1 / targets of the whole optimiser step. */
  scale: number;
}

export interface NativeLossResult { losses: Float32Array; argmax: Int32Array; }

export type NativeReadKind = 'layer_input' | 'hidden' | 'embeds' | 'visual' | 'visual_state' | 'visual_grad';

export interface NativeSessionOptions { training: boolean; recompute: boolean; detachLatents: boolean; visionGradient: boolean; }

export interface NativeSession {
  add(): number;
  fork(sequence: number): Promise<number>;
  /** The last sequence takes kept passes and the visual rows with it. */
  free(sequence: number): Promise<void>;
  /** frames: RGB bytes of all pictures; sizes [n*3] = frames, height, width. Resolves to the first new visual row. */
  encode(frames: Uint8Array, sizes: Int32Array, token?: NativeCancelToken): Promise<number>;
  extend(pass: NativePass, token?: NativeCancelToken): Promise<NativePassResult>;
  /** Adds the loss's gradients. When it fails or is cancelled the tape is gone: run the passes again. */
  loss(loss: NativeLoss, token?: NativeCancelToken): Promise<NativeLossResult>;
  /** All passes, last first. However it ends, tape, sequences and visual rows are gone. */
  backward(token?: NativeCancelToken): Promise<void>;
  reset(): Promise<void>;
  read(what: NativeReadKind, pass: number, layer: number): Promise<{ data: Float32Array; width: number }>;
  /** Decoder rows computed since the session was made; exact once the promises before it have settled. */
  tokenForwards(): number;
  bytes(): number;
  dispose(): void;
}

/** Ragged attention input of the public kernel. q [Tq,H,d], k v [Tk,Hkv,d]. */
export interface NativeAttentionInput {
  q: Float32Array; k: Float32Array; v: Float32Array; cuQ: Int32Array; cuK: Int32Array;
  heads: number; kvHeads: number; headDim: number; causal: boolean;
}

/** Plain operations on typed arrays, for `plumbline/kernels` and for tests. All f32. */
export interface NativeOps {
  rmsNorm(x: Float32Array, weight: Float32Array, eps: number, token?: NativeCancelToken): Promise<Float32Array>;
  rmsNormGrad(x: Float32Array, weight: Float32Array, dout: Float32Array, eps: number, token?: NativeCancelToken): Promise<{ dx: Float32Array; dweight: Float32Array }>;
  layerNorm(x: Float32Array, weight: Float32Array, bias: Float32Array, eps: number, token?: NativeCancelToken): Promise<Float32Array>;
  layerNormGrad(x: Float32Array, weight: Float32Array, bias: Float32Array, dout: Float32Array, eps: number, token?: NativeCancelToken): Promise<{ dx: Float32Array; dweight: Float32Array; dbias: Float32Array }>;
  swiglu(gate: Float32Array, up: Float32Array, token?: NativeCancelToken): Promise<Float32Array>;
  swigluGrad(gate: Float32Array, up: Float32Array, dout: Float32Array, token?: NativeCancelToken): Promise<{ dgate: Float32Array; dup: Float32Array }>;
  activation(kind: 'quick_gelu' | 'gelu' | 'silu', x: Float32Array, token?: NativeCancelToken): Promise<Float32Array>;
  activationGrad(kind: 'quick_gelu' | 'gelu' | 'silu', x: Float32Array, dout: Float32Array, token?: NativeCancelToken): Promise<Float32Array>;
  /** x [T, heads, d], positions [3*T]; inverse turns back (the gradient). */
  mrope(x: Float32Array, positions: Int32Array, section: Int32Array, heads: number, headDim: number, theta: number, inverse: boolean, token?: NativeCancelToken): Promise<Float32Array>;
  attention(input: NativeAttentionInput, token?: NativeCancelToken): Promise<{ out: Float32Array; lse: Float32Array }>;
  attentionGrad(input: NativeAttentionInput, dout: Float32Array, token?: NativeCancelToken): Promise<{ dq: Float32Array; dk: Float32Array; dv: Float32Array }>;
  /** logits [R, V]; target -100 is ignored; scale multiplies the gradient. */
  crossEntropy(logits: Float32Array, targets: Int32Array, scale: number, token?: NativeCancelToken): Promise<{ losses: Float32Array; argmax: Int32Array; dlogits: Float32Array }>;
  /** y[M,N] = x[M,K] w[N,K]^T + bias. w: Float32Array, or Uint16Array of bf16 bits. */
  linear(x: Float32Array, w: Float32Array | Uint16Array, bias: Float32Array | null, m: number, n: number, k: number, token?: NativeCancelToken): Promise<Float32Array>;
  linearGrad(x: Float32Array, w: Float32Array | Uint16Array, dout: Float32Array, m: number, n: number, k: number, token?: NativeCancelToken): Promise<{ dx: Float32Array; dw: Float32Array; dbias: Float32Array }>;
  resize(image: Uint8Array, height: number, width: number, toHeight: number, toWidth: number, filter: 'bilinear' | 'bicubic', token?: NativeCancelToken): Promise<Uint8Array>;
  patchRows(frames: Uint8Array, count: number, height: number, width: number, patch: number, merge: number, temporal: number, mean: Float32Array, std: Float32Array, token?: NativeCancelToken): Promise<Float32Array>;
}

export interface NativeBuildInfo {
  version: string;
  backends: string[];
  /** 'onednn 2.6.0' or 'portable'. */
  gemm: string;
  /** Instruction set chosen at run time: 'baseline' | 'avx2' | 'avx512'. */
  isa: string;
  threads: number;
  compiler: string;
}

export interface NativeAddon {
  CancelToken: new () => NativeCancelToken;
  Model: new (spec: NativeModelSpec) => NativeModel;
  Session: new (model: NativeModel, options: NativeSessionOptions) => NativeSession;
  ops: NativeOps;
  buildInfo(): NativeBuildInfo;
  /** Threads of the compute pool of this environment; takes effect for the next job. */
  setThreads(count: number): void;
  /** Force 'onednn' | 'portable' GEMM, or an instruction set: for tests and benchmarks. */
  setGemm(kind: 'auto' | 'onednn' | 'portable'): void;
  setIsa(isa: 'auto' | 'baseline' | 'avx2' | 'avx512'): void;
  /** Native objects of this environment that are not disposed, by kind. */
  liveObjects(): { models: number; sessions: number; bytes: number };
  /** Synthetic timing loops for `npm run bench` that Node's overhead must not enter: see bench/. */
  bench(name: string, sizes: readonly number[], repeats: number, token?: NativeCancelToken): Promise<Float64Array>;
}

/** The folder of this package: the nearest one above this file that holds a package.json. */
export function packageRoot(): string {
  let folder = __dirname;
  while (!existsSync(join(folder, 'package.json'))) {
    const above = dirname(folder);
    if (above === folder) throw new LibError('ERR_NATIVE_LOAD', `[native] Expected a package.json above ${__dirname} but received none; reinstall plumbline`);
    folder = above;
  }
  return folder;
}

let loaded: NativeAddon | undefined;

/**
 * The addon of this environment, loaded at the first call (importing the package loads no native code).
 *
 * @throws {LibError} `ERR_NATIVE_LOAD` with every place that was tried and what to do.
 */
export function native(): NativeAddon {
  loaded ??= load(packageRoot());
  return loaded;
}

function load(root: string): NativeAddon {
  try {
    return loadAddon(root) as NativeAddon;
  } catch (error) {
    const places = [join(root, 'build', 'Release'), join(root, 'prebuilds', `${process.platform}-${process.arch}`)];
    throw new LibError('ERR_NATIVE_LOAD', [
      `[native] Expected a plumbline addon for ${process.platform}-${process.arch} (Node ${process.version}) but received: ${(error as Error).message}`,
      `Tried: ${places.join('; ')}`,
      '1. In a clone of the repository: npm run build',
      '2. As a dependency: npm rebuild plumbline --foreground-scripts (needs a C++17 compiler, make and Python 3)',
      '3. When bundling: leave the package external, its .node file cannot be bundled',
    ].join('\n'), { cause: error });
  }
}
