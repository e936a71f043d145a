/**
 * The only file that loads the addon, and the typed mirror of its surface.
 *
 * Native code checks memory safety (array types, lengths, ranges of indices) and throws errors with `code`; every other check is
 * the caller's (`lib/check.ts`). Methods that touch tensor data return promises that run on the environment's one job thread, in
 * order. Typed arrays are copied before a method returns.
 */
import type { CudaReport } from './device';
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
  /** Absent: the tower of Qwen2-VL. Present: that of Qwen2.5-VL (RMSNorm, SwiGLU, windows), whose activation is 'silu'. */
  windows?: NativeVisionWindows;
}

/** Attention windows: their side in merged units, and the blocks that attend over whole frames instead. */
export interface NativeVisionWindows { side: number; fullAttentionBlocks: readonly number[]; }

/** A parameter beside the backbone (router, token super-resolution, step vector), always f32. */
export interface NativeExtraSpec { name: string; shape: readonly number[]; }

/** A low-rank adapter on a linear layer: s B A drop(x) is added. Its parameters are `lora.<target>.A` [rank, in] and `.B` [out, rank]. */
export interface NativeAdapterSpec { target: string; rank: number; scale: number; dropout: number; }

export interface NativeModelSpec {
  text: NativeTextSpec; vision: NativeVisionSpec; dtype: StorageDType; extras?: readonly NativeExtraSpec[]; adapters?: readonly NativeAdapterSpec[];
}

export interface NativeParameterInfo { name: string; shape: number[]; dtype: StorageDType; trainable: boolean; }

/** Where a tensor lies in a safetensors file: absolute byte offset, and the file's dtype ('F32' | 'F16' | 'BF16'). */
export interface NativeFileTensor {
  name: string; dtype: 'F32' | 'F16' | 'BF16'; offset: number; bytes: number;
  /** Element of the parameter where they go, which they then need not fill. Default: they are all of it. */
  first?: number;
}

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
  /** Value [shape] of a matrix with its adapter folded in; the plain value of any other parameter. */
  readMerged(name: string, dtype: 'f32'): Promise<Float32Array>;
  readMerged(name: string, dtype: 'bf16'): Promise<Uint16Array>;
  /** W <- W + s B A of every adapted layer. keepBase: the bits of before are kept for `unmergeAdapters`. Failed half-way, it may be called again. */
  mergeAdapters(keepBase: boolean): Promise<void>;
  unmergeAdapters(): Promise<void>;
  /** How many adapted layers are merged now. */
  mergedAdapters(): Promise<number>;
  /** Room for gradients and optimiser state of the parameters that are trainable now; all zero, but for masters, where it is not as it was. */
  enableTraining(): Promise<void>;
  zeroGradients(): Promise<void>;
  /**
   * Clip and AdamW on all trainable parameters; resolves to the global gradient norm before clipping. A norm that is not finite leaves
   * the weights as they are. Once the update has begun it is not cancelled: half of it would be weights of no step at all.
   */
  optimizerStep(options: NativeOptimizerOptions, token?: NativeCancelToken): Promise<number>;
  gradientNorm(): Promise<number>;
  /**
   * [n*4] of the gradients of n matrices as they stand: nuclear norm, spectral norm, effective rank (sum s)^2 / sum s^2, nuclear / spectral.
   * From the eigenvalues of the shorter side's Gram matrix in f64, which take about that side cubed, twice over, on one thread a matrix; CUDA
   * takes sides up to 128 (ERR_UNSUPPORTED above). NaN where a gradient is not finite.
   */
  gradientSpectra(names: readonly string[], token?: NativeCancelToken): Promise<Float64Array>;
  /**
   * Moves the routing threshold of each layer that was scored since the last `zeroGradients` towards the (1 - fraction) quantile q of
   * its scores: t += rate (q - t); a threshold that was never set becomes q. Resolves to the layers and their new thresholds.
   */
  updateThresholds(rate: number, fraction: number): Promise<{ layers: Int32Array; thresholds: Float32Array }>;
  dispose(): void;
}

/**
 * What a row's input embedding is. 2 = the final hidden state of the sequence's last row; 3 = row `index` of `embeddings`; 4 = row
 * `index` of the session's stored rows, which `replay` and `keepLatents` append.
 */
export const ROW_KIND = Object.freeze({ token: 0, visual: 1, latent: 2, embedding: 3, stored: 4 });

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
  /** [B] 1 where the last row's attention to the sequence's pictures (`setPictures`) is wanted, for the `replay` that follows. */
  saliency?: Uint8Array;
  /** Return which rows were routed. */
  traceRouting?: boolean;
  /** Rows that take an extra pass whatever the rule says, each (layer, depth) at most once; those that are not named follow the rule. */
  forcedRoutes?: readonly NativeForcedRoute[];
}

/** Exactly these packed rows [n], rising, take the extra pass number `depth` (from 2) of a layer, but for those that did not take the one before. */
export interface NativeForcedRoute { layer: number; depth: number; rows: Int32Array; }

/** One extra pass of one layer over the rows of a pass. Row numbers are packed rows of the pass. */
export interface NativeRoutingTrace {
  layer: number;
  /** From 2. */
  depth: number;
  /** Rows that were scored, ascending, their raw scores and their gates. */
  candidates: Int32Array; scores: Float32Array; gates: Float32Array;
  /** Rows that took the extra pass, ascending. */
  routed: Int32Array;
}

export interface NativePassResult { pass: number; logits: Float32Array; hidden: Float32Array; routing?: NativeRoutingTrace[]; }

/** Pictures that a sequence looks at: what replay chooses from. */
export interface NativePictures {
  /** [N] rows of the sequence that hold the image tokens, and the visual rows that they are. */
  columns: Int32Array; visualRows: Int32Array;
  /** [P*2] merged grid rows, columns of each picture; they fill the N tokens in order. */
  grids: Int32Array;
  /** [P*2] height, width of each picture as the tower saw it. */
  sizes: Int32Array;
  /** RGB bytes of the pictures that crops are cut from, and their [P*2] height, width. Needed for targets only. */
  originals?: Uint8Array; originalSizes?: Int32Array;
}

export interface NativeReplayResult {
  /** Number of this replay, for `loss`. */
  replay: number;
  /** [B] rows of each sequence's block (0: nothing is left), and the first of them among the stored rows. */
  rows: Int32Array; firstRow: Int32Array;
  /** [B+1] offsets of `selected` (indices among the sequence's image tokens, in block order) and of `weights`. */
  cuSelected: Int32Array; selected: Int32Array; weights: Float32Array;
  /** [B*6] picture, row, column, height, width, selected tokens inside; [B*4] its box x1, y1, x2, y2 in pixels (zeros without originals). */
  windows: Int32Array; boxes: Int32Array;
  /** [B] super-resolution loss; NaN where there is none. */
  srLosses: Float32Array;
  /** Attention to all image tokens, sequence after sequence; when asked for. */
  saliency?: Float32Array;
}

/** For tests: what one sequence's replay computed. */
export interface NativeReplayDetail { block: Float32Array; b: Float32Array; f: Float32Array; u: Float32Array; crop: Uint8Array; }

export interface NativeReplaySpec {
  patches: number; window: number;
  /** Side of a fixed grid; 0: each picture's own. */
  grid: number;
  weights: 'mean-preserving' | 'softmax'; mix: boolean; reselectUsed: boolean; topkOrder: boolean; saliencyGradient: boolean;
  tokenSr: boolean; srInput: 'weighted' | 'unweighted'; srAdded: boolean; targetGradient: boolean; officialCrop: boolean;
}

export interface NativeRoutingSpec {
  layers: readonly number[]; rule: 'threshold' | 'prefix-topk' | 'topk'; router: 'linear' | 'mlp'; alpha: number; maxDepth: number;
  gate: 'sigmoid' | 'raw' | 'softmax-sequence'; fusion: 'interpolate' | 'scaled' | 'plain'; misordered: boolean;
}

/**
 * Routing of the passes since the last reset or backward, over the routed layers: rows, those that took the first extra pass, rows of all
 * extra passes, the scores of all passes, and (training) their mean square.
 */
export interface NativeRoutingFigures { scored: number; routed: number; extraRows: number; scores: number; meanSquare: number; }

/**
 * L2 norms of the loss gradient with respect to each layer's input hidden state and, last, the final one before its norm. A row that
 * several passes computed counts once, with the sum of its gradients.
 */
export interface NativeGradientNorms {
  /** Layers + 1. */
  levels: number;
  /** Rows of each sequence that had any, in the order of `add`. */
  rows: Int32Array;
  /** [levels * sum of rows] */
  norms: Float32Array;
}

export interface NativeLoss {
  /** [R] pass number and packed row that predicts target [R]. */
  pass: Int32Array; row: Int32Array; target: Int32Array;
  /** Weight of one row in the loss: 1 / targets of the whole optimiser step. */
  scale: number;
  /** Super-resolution losses: sequence `index` [Q] of replay [Q], and the weight [Q] of its loss. */
  replay?: Int32Array; index?: Int32Array; weight?: Float32Array;
}

export interface NativeLossResult { losses: Float32Array; argmax: Int32Array; }

/** 'layer_qkv': [T, (heads + 2 kvHeads) headDim] queries and keys turned, values. */
export type NativeReadKind = 'layer_input' | 'layer_qkv' | 'hidden' | 'embeds' | 'visual' | 'visual_state' | 'visual_grad';

export interface NativeSessionOptions {
  training: boolean; recompute: boolean; detachLatents: boolean; visionGradient: boolean;
  /** Training: keep the gradient norms of every row, for `gradientNorms` (default false). */
  profile?: boolean;
  /** Absent: no visual replay. Their parameters (`token_sr.*`, `router.*`, `step.*`) must be among the model's extras. */
  replay?: NativeReplaySpec;
  /** Absent: no depth routing. */
  routing?: NativeRoutingSpec;
}

export interface NativeSession {
  add(): number;
  fork(sequence: number): Promise<number>;
  /** The last sequence takes kept passes and the visual rows with it. */
  free(sequence: number): Promise<void>;
  /** frames: RGB bytes of all pictures; sizes [n*3] = frames, height, width. Resolves to the first new visual row. */
  encode(frames: Uint8Array, sizes: Int32Array, token?: NativeCancelToken): Promise<number>;
  extend(pass: NativePass, token?: NativeCancelToken): Promise<NativePassResult>;
  /** Which pictures a sequence looks at. Replaces what was set before, and forgets what was replayed. */
  setPictures(sequence: number, pictures: NativePictures): Promise<void>;
  /**
   * One replay step of sequences whose last pass had `saliency`: appends their blocks to the stored rows.
   *
   * Stored rows, like visual ones, live until the last sequence is freed or the session is reset.
   *
   * targets: also compute the super-resolution loss (training), which needs the originals. saliency: also return it (training with
   * targets: and keep the crops for `readReplay`).
   */
  replay(sequences: Int32Array, options: { targets: boolean; saliency: boolean }, token?: NativeCancelToken): Promise<NativeReplayResult>;
  /** Appends the sequences' last hidden states to the stored rows and resolves to the first of them. */
  keepLatents(sequences: Int32Array): Promise<number>;
  /** Forgets the rows of sequences, but not their pictures, what was replayed and the last hidden state: for recomputing a whole prefix. */
  restart(sequences: Int32Array): Promise<void>;
  /** For tests: what replay number `replay` computed for its sequence `index`. Training, and targets only. */
  readReplay(replay: number, index: number): Promise<NativeReplayDetail>;
  routingFigures(): Promise<NativeRoutingFigures>;
  /** Adds the loss's gradients. When it fails or is cancelled the tape is gone: run the passes again. */
  loss(loss: NativeLoss, token?: NativeCancelToken): Promise<NativeLossResult>;
  /**
   * All passes and replays, last first. However it ends, tape, sequences and visual rows are gone.
   *
   * routerPenalty: weight of the mean squared router score of this tape in the loss.
   */
  backward(routerPenalty: number, token?: NativeCancelToken): Promise<void>;
  /** Of the last `backward`, until the next or `reset`. Needs the option `profile`. */
  gradientNorms(): Promise<NativeGradientNorms>;
  /** dropoutSeed: of the adapters' dropout in what follows (training sessions); absent: no dropout. */
  reset(dropoutSeed?: number): Promise<void>;
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

/** {@link NativeAttentionInput} on f32, or on the bits of f16 or bf16. */
export interface NativeRaggedInput extends Pick<NativeAttentionInput, 'cuQ' | 'cuK' | 'heads' | 'kvHeads' | 'headDim' | 'causal'> {
  q: NativeGradient; k: NativeGradient; v: NativeGradient; dtype: GradientDType;
}

/** f32 memory of the device, zero at first. Jobs that use it share it, so that `dispose` takes nothing away from them. */
export interface NativeTensor {
  read(token?: NativeCancelToken): Promise<Float32Array>;
  write(data: Float32Array, offset: number, token?: NativeCancelToken): Promise<void>;
  dispose(): void;
}

export type NativeFloats = Float32Array | NativeTensor;

/** Tensors, of the right size and used for nothing else, that take float results. A result named here is not part of the answer. */
export type NativeInto<Name extends string> = Readonly<Record<Name, NativeTensor>> | undefined;

/** q [Tq,H,d], k [Tk,Hkv,d]; columns [N]: key rows inside their sequence, those of sequence b at cuColumns[b] .. cuColumns[b+1]. */
export interface NativeSaliencyInput {
  q: NativeFloats; k: NativeFloats; cuQ: Int32Array; cuK: Int32Array; columns: Int32Array; cuColumns: Int32Array;
  heads: number; kvHeads: number; headDim: number;
  /** [Tq,H] as attention gives it; absent: computed for the last rows. */
  lse?: NativeFloats;
}

export interface NativeReplayInput {
  cuTokens: Int32Array; cuPictures: Int32Array;
  /** [P*2] rows, columns; they fill the tokens of their sequence in order. */
  grids: Int32Array;
  patches: number; window: number; weights: 'mean-preserving' | 'softmax';
  /** [N] 0 or 1. */
  used: Uint8Array;
}

export interface NativeCrop {
  height: number; width: number;
  /** x1, y1, x2, y2. */
  box: Int32Array;
  toHeight: number; toWidth: number; patch: number; merge: number; temporal: number; mean: Float32Array; std: Float32Array;
}

export interface NativeRouteInput {
  rule: 'threshold' | 'prefix-topk' | 'topk'; cuSeqlens: Int32Array;
  /** Rule threshold. */
  threshold?: number;
  /** The other rules. */
  alpha?: number;
  /** Rule prefix-topk: the best scores so far of each sequence, best first. */
  cuBest?: Int32Array; best?: Float32Array;
}

export type NativeFusion = 'interpolate' | 'plain' | 'scaled';

/** What the bits of a gradient are. A Uint16Array holds 'f16' or 'bf16'. */
export type GradientDType = 'f32' | 'f16' | 'bf16';

export type NativeGradient = NativeFloats | Uint16Array;

export interface NativeNormOptions { tokens: number; channels: number; dtype: GradientDType; classes?: Uint8Array; numClasses: number; scale: number; }

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
  raggedAttention(input: NativeRaggedInput, token?: NativeCancelToken): Promise<{ out: Float32Array | Uint16Array; lse: Float32Array }>;
  raggedAttentionGrad(input: NativeRaggedInput, dout: NativeGradient, token?: NativeCancelToken): Promise<{ dq: Float32Array | Uint16Array; dk: Float32Array | Uint16Array; dv: Float32Array | Uint16Array }>;
  /** logits [R, V]; target -100 is ignored; scale multiplies the gradient. */
  crossEntropy(logits: Float32Array, targets: Int32Array, scale: number, token?: NativeCancelToken): Promise<{ losses: Float32Array; argmax: Int32Array; dlogits: Float32Array }>;
  /** y[M,N] = x[M,K] w[N,K]^T + bias. w: Float32Array, or Uint16Array of bf16 bits. */
  linear(x: Float32Array, w: Float32Array | Uint16Array, bias: Float32Array | null, m: number, n: number, k: number, token?: NativeCancelToken): Promise<Float32Array>;
  linearGrad(x: Float32Array, w: Float32Array | Uint16Array, dout: Float32Array, m: number, n: number, k: number, token?: NativeCancelToken): Promise<{ dx: Float32Array; dw: Float32Array; dbias: Float32Array }>;
  resize(image: Uint8Array, height: number, width: number, toHeight: number, toWidth: number, filter: 'bilinear' | 'bicubic', token?: NativeCancelToken): Promise<Uint8Array>;
  patchRows(frames: Uint8Array, count: number, height: number, width: number, patch: number, merge: number, temporal: number, mean: Float32Array, std: Float32Array, token?: NativeCancelToken): Promise<Float32Array>;

  attentionSaliency(input: NativeSaliencyInput, into?: NativeInto<'saliency'>, token?: NativeCancelToken): Promise<{ saliency: Float32Array }>;
  attentionSaliencyGrad(input: NativeSaliencyInput, dsaliency: NativeFloats, into?: NativeInto<'dq' | 'dk'>, token?: NativeCancelToken): Promise<{ dq: Float32Array; dk: Float32Array }>;
  coherentWindow(scores: NativeFloats, input: NativeReplayInput, into?: NativeInto<'weights'>, token?: NativeCancelToken): Promise<{ cuSelected: Int32Array; selected: Int32Array; weights: Float32Array; windows: Int32Array; used: Uint8Array }>;
  cropPatches(image: Uint8Array, crop: NativeCrop, into?: NativeInto<'rows'>, token?: NativeCancelToken): Promise<{ rows: Float32Array; pixels: Uint8Array }>;
  /** `order` of rule topk; `cuBest` and `best` of rule prefix-topk. */
  routeTokens(scores: NativeFloats, input: NativeRouteInput, token?: NativeCancelToken): Promise<{ rows: Int32Array; cuRouted: Int32Array; order?: Int32Array; cuBest?: Int32Array; best?: Float32Array }>;
  gatherRmsNorm(h: NativeFloats, rows: Int32Array, weight: NativeFloats, step: NativeFloats | null, eps: number, into?: NativeInto<'x' | 'y' | 'rstd'>, token?: NativeCancelToken): Promise<{ x: Float32Array; y: Float32Array; rstd: Float32Array }>;
  gatherRmsNormGrad(h: NativeFloats, rows: Int32Array, weight: NativeFloats, step: NativeFloats | null, eps: number, dy: NativeFloats, into?: NativeInto<'dh' | 'dstep' | 'dweight'>, token?: NativeCancelToken): Promise<{ dh: Float32Array; dstep: Float32Array; dweight: Float32Array }>;
  gatedScatter(h: NativeFloats, y: NativeFloats, gate: NativeFloats, rows: Int32Array, step: NativeFloats | null, fusion: NativeFusion, width: number, into?: NativeInto<'out'>, token?: NativeCancelToken): Promise<{ out: Float32Array }>;
  /** `dstep` when there is a step. */
  gatedScatterGrad(h: NativeFloats, y: NativeFloats, gate: NativeFloats, rows: Int32Array, step: NativeFloats | null, fusion: NativeFusion, width: number, dout: NativeFloats, into?: NativeInto<'dh' | 'dy' | 'dgate'>, token?: NativeCancelToken): Promise<{ dh: Float32Array; dy: Float32Array; dgate: Float32Array; dstep?: Float32Array }>;
  packRagged(padded: NativeFloats, lengths: Int32Array, width: number, into?: NativeInto<'packed'>, token?: NativeCancelToken): Promise<{ packed: Float32Array }>;
  unpackRagged(packed: NativeFloats, cuSeqlens: Int32Array, width: number, length: number, fill: number, into?: NativeInto<'padded'>, token?: NativeCancelToken): Promise<{ padded: Float32Array }>;

  /** grad [tokens, channels]; classes: each below numClasses. figures [numClasses * 6]: count, mean, squared deviations, min, max, not finite. histogram [numClasses * 256]. */
  gradNorm(grad: NativeGradient, options: NativeNormOptions, token?: NativeCancelToken): Promise<{ norms: Float32Array; figures: Float64Array; histogram: Int32Array }>;
  /** dtype: of the Uint16Arrays. */
  globalNorm(tensors: readonly NativeGradient[], dtype: GradientDType, token?: NativeCancelToken): Promise<number>;
  /** Matrices of one dtype, shapes [n*2] rows, columns. Squared singular values, largest first, packed; NaN where a matrix is not finite. */
  gradSpectra(matrices: readonly NativeGradient[], shapes: Int32Array, dtype: GradientDType, token?: NativeCancelToken): Promise<Float64Array>;
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
  /** `device`: where an operation of `ops` runs (default 'cpu'). */
  CancelToken: new (device?: 'cpu' | 'cuda') => NativeCancelToken;
  Model: new (spec: NativeModelSpec, device?: 'cpu' | 'cuda') => NativeModel;
  Session: new (model: NativeModel, options: NativeSessionOptions) => NativeSession;
  Tensor: new (size: number, device?: 'cpu' | 'cuda') => NativeTensor;
  ops: NativeOps;
  buildInfo(): NativeBuildInfo;
  /** What a probe of the CUDA device found; starts the runtime. Counters are of now. */
  cudaDevice(): CudaReport;
  /** Threads of the compute pool of this environment; takes effect for the next job. */
  setThreads(count: number): void;
  /** Where operations of `ops` run whose token names no device ('cpu' at first): for tests. */
  setDevice(device: 'cpu' | 'cuda'): void;
  /** Force 'onednn' | 'portable' GEMM, or an instruction set: for tests and benchmarks. */
  setGemm(kind: 'auto' | 'onednn' | 'portable'): void;
  setIsa(isa: 'auto' | 'baseline' | 'avx2' | 'avx512'): void;
  /** Native objects of this environment that are not disposed, by kind. */
  liveObjects(): { models: number; sessions: number; tensors: number; bytes: number };
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
