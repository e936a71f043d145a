/** Names and shapes of all parameters of a model, with the classic names of Hugging Face checkpoints. */
import type { ModelConfig, TextConfig, VisionConfig } from './config';

export interface ParameterShape {
  readonly name: string;
  readonly shape: readonly number[];
  /** What a new model starts with. */
  readonly role: 'matrix' | 'bias' | 'scale';
}

export const EMBEDDING = 'model.embed_tokens.weight';

export function parameterShapes(config: ModelConfig): ParameterShape[] {
  return [...decoderShapes(config.text), ...visionShapes(config.vision)];
}

/** Classic names are `model.*` and `visual.*`; newer files write `model.language_model.*` and `model.visual.*`. */
export function canonicalName(name: string): string {
  if (name.startsWith('model.language_model.')) return `model.${name.slice('model.language_model.'.length)}`;
  return name.startsWith('model.visual.') ? name.slice('model.'.length) : name;
}

/** Whether a parameter's name is one of the backbone; the others are extras. */
export function isBackbone(name: string): boolean {
  return /^(model|visual|lm_head)\./.test(name);
}

/** Elements of a shape. */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, n) => product * n, 1);
}

function decoderShapes(text: TextConfig): ParameterShape[] {
  const { hidden, intermediate } = text;
  const q = text.heads * text.headDim;
  const kv = text.kvHeads * text.headDim;
  const shapes = [matrix(EMBEDDING, text.vocab, hidden)];
  for (let layer = 0; layer < text.layers; layer++) {
    const base = `model.layers.${layer}.`;
    shapes.push(scale(`${base}input_layernorm.weight`, hidden));
    for (const [which, width] of [['q', q], ['k', kv], ['v', kv]] as const) {
      shapes.push(matrix(`${base}self_attn.${which}_proj.weight`, width, hidden), bias(`${base}self_attn.${which}_proj.bias`, width));
    }
    shapes.push(
      matrix(`${base}self_attn.o_proj.weight`, hidden, q), scale(`${base}post_attention_layernorm.weight`, hidden),
      matrix(`${base}mlp.gate_proj.weight`, intermediate, hidden), matrix(`${base}mlp.up_proj.weight`, intermediate, hidden),
      matrix(`${base}mlp.down_proj.weight`, hidden, intermediate),
    );
  }
  shapes.push(scale('model.norm.weight', hidden));
  if (!text.tied) shapes.push(matrix('lm_head.weight', text.vocab, hidden));
  return shapes;
}

function visionShapes(vision: VisionConfig): ParameterShape[] {
  const { width, patch } = vision;
  const merged = width * vision.merge ** 2;
  const isQwen25 = vision.windows !== undefined;
  const norm = (name: string): ParameterShape[] => [scale(`${name}.weight`, width), ...(isQwen25 ? [] : [bias(`${name}.bias`, width)])];
  const linear = (name: string, out: number, fanIn: number): ParameterShape[] => [matrix(`${name}.weight`, out, fanIn), bias(`${name}.bias`, out)];
  const shapes = [matrix('visual.patch_embed.proj.weight', width, vision.channels, vision.temporal, patch, patch)];
  for (let block = 0; block < vision.depth; block++) {
    const base = `visual.blocks.${block}.`;
    shapes.push(
      ...norm(`${base}norm1`), ...norm(`${base}norm2`), ...linear(`${base}attn.qkv`, 3 * width, width), ...linear(`${base}attn.proj`, width, width),
      ...linear(`${base}mlp.${isQwen25 ? 'gate_proj' : 'fc1'}`, vision.mlpWidth, width), ...(isQwen25 ? linear(`${base}mlp.up_proj`, vision.mlpWidth, width) : []),
      ...linear(`${base}mlp.${isQwen25 ? 'down_proj' : 'fc2'}`, width, vision.mlpWidth),
    );
  }
  return [...shapes, ...norm('visual.merger.ln_q'), ...linear('visual.merger.mlp.0', merged, merged), ...linear('visual.merger.mlp.2', vision.outWidth, merged)];
}

function matrix(name: string, ...shape: number[]): ParameterShape {
  return { name, shape, role: 'matrix' };
}

function bias(name: string, width: number): ParameterShape {
  return { name, shape: [width], role: 'bias' };
}

function scale(name: string, width: number): ParameterShape {
  return { name, shape: [width], role: 'scale' };
}
