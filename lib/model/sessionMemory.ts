/** What a session takes beside the weights: keys and values of the context, and what a pass computes. Counted as the addon allocates. */
import type { ModelConfig } from './config';
import { routes, type Preset } from './preset';

export interface SessionEstimate {
  /** Keys and values of one token (f32). Depth routing: at most, where every token is routed. They come in pages of 64 tokens. */
  cacheBytesPerToken: number;
  /** What a pass takes for each of its rows, until it is done. */
  rowBytes: number;
  /** What the vision tower takes for each patch, until it is done. */
  patchBytes: number;
  /** What training keeps of a row and of a patch until the backward pass, their share of `rowBytes` and `patchBytes` not counted. */
  keptRowBytes: number;
  keptPatchBytes: number;
}

/** Blocks are taken an eighth larger than asked, so that passes of about the same size share them. */
const POOL = 1.125;
const F32 = 4;

/** @param preset of which the routed layers count. */
export function estimateSession(config: ModelConfig, preset: Preset): SessionEstimate {
  const { hidden: D, heads, kvHeads, headDim: d, intermediate: I, layers } = config.text;
  const { width: W, heads: towerHeads, mlpWidth: M, depth, outWidth, merge, patch, channels, temporal, windows } = config.vision;
  const routed = routes(preset) ? preset.routedLayers.length * (preset.maxDepth - 1) : 0;
  const layer = 5 * D + (2 * heads + 2 * kvHeads) * d + heads + 3 * I + 2;      // LayerTape of src/model/decoder.h
  const block = 9 * W + towerHeads + (windows === undefined ? 2 : 3) * M + 4;   // VisionBlockTape of src/model/vision.h
  const outputs = windows === undefined ? 1 : 2;                                // of windows: in their order and in the picture's
  const merger = 3 * W + 2 + (outputs * outWidth) / merge ** 2;                 // the last norm, the merger, the rows that come out
  const bytes = (floats: number): number => Math.ceil(floats * F32 * POOL);
  return Object.freeze({
    cacheBytesPerToken: (layers + routed) * 2 * kvHeads * d * F32,
    rowBytes: bytes(layer + 3 * D + d + 1),                                     // beside the layer: its output, the last two states, the rotary tables
    patchBytes: bytes(block + merger + 2 * W + channels * temporal * patch ** 2 + W / towerHeads),
    keptRowBytes: bytes((layers - 1 + routed) * layer),
    keptPatchBytes: bytes((depth - 1) * block),
  });
}
