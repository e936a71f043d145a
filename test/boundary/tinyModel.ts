import type { NativeModelSpec, NativePass } from '../../lib/native';

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
