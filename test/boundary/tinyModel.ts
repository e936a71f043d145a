import type { NativeExtraSpec, NativeModelSpec, NativePass, NativeReplaySpec, NativeRoutingSpec } from '../../lib/native';

/** The smallest model with every part: 2 layers, grouped heads, one vision block, one merged token per 4x4 pixels. */
export function tinySpec(): NativeModelSpec {
  return {
    text: {
      hidden: 16, layers: 2, heads: 4, kvHeads: 2, headDim: 8, intermediate: 32, vocab: 50, eps: 1e-6, ropeTheta: 1e4,
      mropeSection: [1, 1, 2], tied: true,
    },
    vision: {
      depth: 1, width: 16, heads: 2, mlpWidth: 32, outWidth: 16, activation: 'quick_gelu', channels: 3, patch: 2, merge: 2,
      temporal: 2, imageMean: [0.5, 0.5, 0.5], imageStd: [0.25, 0.25, 0.25],
    },
    dtype: 'f32',
  };
}

/** A pass of `tokens` for one sequence. */
export function tokenPass(sequence: number, tokens: readonly number[]): NativePass {
  const T = tokens.length;
  return {
    sequences: Int32Array.of(sequence),
    cuSeqlens: Int32Array.of(0, T),
    kind: new Uint8Array(T),
    index: Int32Array.from(tokens),
    positions: Int32Array.from({ length: 3 * T }, (_, i) => i % T),
  };
}

/** Replay and routing of the tiny model, and the parameters that they use. */
export const REPLAY: NativeReplaySpec = Object.freeze({
  patches: 2, window: 2, grid: 0, weights: 'mean-preserving', mix: false, reselectUsed: false, topkOrder: false, saliencyGradient: true,
  tokenSr: true, srInput: 'weighted', srAdded: true, targetGradient: false, officialCrop: false,
});
export const ROUTING: NativeRoutingSpec = Object.freeze({
  layers: [0, 1], rule: 'prefix-topk', router: 'linear', alpha: 2, maxDepth: 3, gate: 'sigmoid', fusion: 'interpolate', misordered: false,
});
export const EXTRAS: readonly NativeExtraSpec[] = Object.freeze([
  ...[0, 1].flatMap((layer) => [{ name: `router.${layer}.weight`, shape: [1, 16] }, { name: `router.${layer}.bias`, shape: [1] }, { name: `router.${layer}.threshold`, shape: [1] }]),
  ...[2, 3].map((depth) => ({ name: `step.${depth}`, shape: [16] })),
  ...[0, 2].flatMap((part) => [{ name: `token_sr.${part}.weight`, shape: [16, 16] }, { name: `token_sr.${part}.bias`, shape: [16] }]),
]);
