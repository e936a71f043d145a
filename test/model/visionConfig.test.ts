/** config.json of Qwen2.5-VL. What both kinds share is in config.test.ts. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LatentModel } from '../../lib/latentModel';
import { configJson, modelGeometry, newConfig, parseConfig, toNativeSpec, type NewModelConfig } from '../../lib/model/config';
import { parseImageSettings } from '../../lib/model/imageSettings';
import { parameterShapes, sizeOf } from '../../lib/model/parameterShapes';

type Json = Record<string, unknown>;
const HUB_VISION: Json = {
  depth: 32, hidden_act: 'silu', hidden_size: 1280, intermediate_size: 3420, num_heads: 16, in_chans: 3, out_hidden_size: 2048, patch_size: 14,
  spatial_merge_size: 2, spatial_patch_size: 14, window_size: 112, fullatt_block_indexes: [7, 15, 23, 31], tokens_per_second: 2, temporal_patch_size: 2,
};
const QWEN25_VL_3B: Json = {
  architectures: ['Qwen2_5_VLForConditionalGeneration'], attention_dropout: 0, bos_token_id: 151643, eos_token_id: 151645, vision_start_token_id: 151652,
  vision_end_token_id: 151653, vision_token_id: 151654, image_token_id: 151655, video_token_id: 151656, hidden_act: 'silu', hidden_size: 2048,
  initializer_range: 0.02, intermediate_size: 11008, max_position_embeddings: 128000, max_window_layers: 70, model_type: 'qwen2_5_vl',
  num_attention_heads: 16, num_hidden_layers: 36, num_key_value_heads: 2, rms_norm_eps: 1e-6, rope_theta: 1e6, sliding_window: 32768,
  tie_word_embeddings: true, torch_dtype: 'bfloat16', use_cache: true, use_sliding_window: false, vision_config: HUB_VISION,
  rope_scaling: { type: 'mrope', mrope_section: [16, 24, 24] }, vocab_size: 151936,
};
const QWEN25_VL_7B: Json = {
  ...QWEN25_VL_3B, hidden_size: 3584, num_hidden_layers: 28, num_attention_heads: 28, num_key_value_heads: 4, intermediate_size: 18944, vocab_size: 152064,
  tie_word_embeddings: false, vision_config: { ...HUB_VISION, out_hidden_size: 3584 },
};
const vision = (changes: Json): Json => ({ ...QWEN25_VL_3B, vision_config: { ...HUB_VISION, ...changes } });

test.each([['3B', QWEN25_VL_3B, 3_754_622_976], ['7B', QWEN25_VL_7B, 8_292_166_656]])('Qwen2.5-VL-%s has as many parameters as the hub says', (_, raw, count) => {
  const config = parseConfig(raw);
  expect(config.kind).toBe('qwen2_5_vl');
  expect(parameterShapes(config).reduce((sum, { shape }) => sum + sizeOf(shape), 0)).toBe(count);
});

test('a vision_config that says next to nothing gets the defaults of the reference', () => {
  const config = parseConfig({ ...QWEN25_VL_7B, vision_config: { hidden_size: 1280 } });
  const tower = {
    depth: 32, width: 1280, heads: 16, mlpWidth: 3420, outWidth: 3584, activation: 'silu', channels: 3, patch: 14, merge: 2, temporal: 2,
    windows: { side: 4, fullAttentionBlocks: [7, 15, 23, 31] },
  };
  expect(config.vision).toEqual({ ...tower, tokensPerSecond: 4 });
  expect(parseConfig({ ...QWEN25_VL_7B, vision_config: {} }).vision.width).toBe(3584);
  expect(modelGeometry(config)).toMatchObject({ tokensPerSecond: 4 });
  const images = parseImageSettings(undefined, config.vision);
  expect(toNativeSpec(config, images, 'bf16').vision).toEqual({ ...tower, imageMean: images.mean, imageStd: images.std });
  for (const part of [config.vision, config.vision.windows, config.vision.windows!.fullAttentionBlocks]) expect(Object.isFrozen(part)).toBe(true);
});

test('the tower has RMSNorm scales without bias and three MLP matrices with', () => {
  const names = parameterShapes(parseConfig(QWEN25_VL_3B)).filter(({ name }) => name.startsWith('visual.blocks.0.') || name.startsWith('visual.merger.ln_q'));
  expect(Object.fromEntries(names.map(({ name, shape, role }) => [name.replace('visual.', ''), [role, ...shape]]))).toEqual({
    'blocks.0.norm1.weight': ['scale', 1280], 'blocks.0.norm2.weight': ['scale', 1280], 'merger.ln_q.weight': ['scale', 1280],
    'blocks.0.attn.qkv.weight': ['matrix', 3840, 1280], 'blocks.0.attn.qkv.bias': ['bias', 3840], 'blocks.0.attn.proj.weight': ['matrix', 1280, 1280], 'blocks.0.attn.proj.bias': ['bias', 1280],
    'blocks.0.mlp.gate_proj.weight': ['matrix', 3420, 1280], 'blocks.0.mlp.gate_proj.bias': ['bias', 3420], 'blocks.0.mlp.up_proj.weight': ['matrix', 3420, 1280],
    'blocks.0.mlp.up_proj.bias': ['bias', 3420], 'blocks.0.mlp.down_proj.weight': ['matrix', 1280, 3420], 'blocks.0.mlp.down_proj.bias': ['bias', 1280],
  });
});

test.each<[Json, string]>([
  [{ hidden_size: 1284 }, 'vision_config.hidden_size in config.json to be a multiple of 4 * num_heads = 64 but received 1284. The rotary embedding splits each head into four parts.'],
  [{ hidden_size: 0 }, "vision_config.hidden_size in config.json to be a whole number from 1 to 1048576 but received 0. Correct the file or take it from the model's own repository."],
  [{ intermediate_size: 1.5 }, "vision_config.intermediate_size in config.json to be a whole number from 1 to 1048576 but received 1.5. Correct the file or take it from the model's own repository."],
  [{ out_hidden_size: undefined }, "vision_config.out_hidden_size in config.json to be the decoder's hidden_size = 2048 but received nothing. Pictures enter the decoder as rows of its width."],
  [{ window_size: 0 }, "vision_config.window_size in config.json to be a whole number from 1 to 1048576 but received 0. Correct the file or take it from the model's own repository."],
  [{ window_size: 27 }, 'vision_config.window_size in config.json to be at least patch_size * spatial_merge_size = 28 but received 27. A window holds one merged patch at least.'],
  [{ fullatt_block_indexes: 7 }, "vision_config.fullatt_block_indexes in config.json to be a list of whole numbers from 0 to 4095 but received 7. Correct the file or take it from the model's own repository."],
  [{ fullatt_block_indexes: [7, -1] }, "vision_config.fullatt_block_indexes in config.json to be a list of whole numbers from 0 to 4095 but received [7,-1]. Correct the file or take it from the model's own repository."],
  [{ fullatt_block_indexes: [4096] }, "vision_config.fullatt_block_indexes in config.json to be a list of whole numbers from 0 to 4095 but received [4096]. Correct the file or take it from the model's own repository."],
  [{ tokens_per_second: 0 }, "vision_config.tokens_per_second in config.json to be a whole number from 1 to 65536 but received 0. Correct the file or take it from the model's own repository."],
])('%j is ERR_CHECKPOINT and says what to do', (changes, message) => {
  expect(() => parseConfig(vision(changes))).toThrow(expect.objectContaining({ name: 'LibError', code: 'ERR_CHECKPOINT', message: `[config] Expected ${message}` }));
});

test.each<[Json, string]>([
  [vision({ hidden_act: 'gelu' }), `vision_config.hidden_act in config.json to be something supported but received "gelu": the tower's activation must be 'silu'`],
  [vision({ in_chans: 4 }), 'vision_config.in_chans in config.json to be something supported but received 4: pictures have 3 channels'],
  [{ ...QWEN25_VL_3B, model_type: 'qwen3_vl' },
    `model_type in config.json to be something supported but received "qwen3_vl": only 'qwen2_vl' and 'qwen2_5_vl' are supported; is this the directory of a Qwen2-VL or Qwen2.5-VL checkpoint?`],
])('a switch that is not implemented is ERR_UNSUPPORTED (%#)', (raw, message) => {
  expect(() => parseConfig(raw)).toThrow(expect.objectContaining({ name: 'LibError', code: 'ERR_UNSUPPORTED', message: `[config] Expected ${message}` }));
});

test('a nested file is saved flat, with the ids of the whole model and its class', () => {
  const { architectures: _, vision_config, image_token_id, video_token_id, vision_start_token_id, vision_end_token_id, ...text } = QWEN25_VL_3B;
  const top = { model_type: 'qwen2_5_vl', vision_config, image_token_id, video_token_id, vision_start_token_id, vision_end_token_id };
  // As transformers 4.5x writes it: ids of the whole model are repeated in text_config as null.
  const config = parseConfig({ ...top, text_config: { ...text, model_type: 'qwen2_5_vl_text', image_token_id: null, video_token_id: null } });
  const saved = configJson(config, 'bf16');
  expect(saved).toEqual(QWEN25_VL_3B);
  expect(parseConfig(saved)).toMatchObject({ kind: 'qwen2_5_vl', text: config.text, vision: config.vision, tokens: config.tokens });
});

const NEW: NewModelConfig = {
  kind: 'qwen2_5_vl', text: { hidden: 32, layers: 2, heads: 4, kvHeads: 2, intermediate: 48, vocab: 320, mropeSection: [2, 1, 1] },
  vision: { depth: 3, width: 16, heads: 2, mlpWidth: 21, windowSize: 60, fullAttentionBlocks: [1], tokensPerSecond: 3 },
  tokens: { image: 303, video: 304, visionStart: 301, visionEnd: 302, eos: 300, pad: 305 },
};

describe('a new model', () => {
  let folder: string;
  beforeAll(() => { folder = mkdtempSync(join(tmpdir(), 'plumbline-vision-')); });
  afterAll(() => rmSync(folder, { recursive: true }));

  test('has the config of the file that it will be saved as', () => {
    const config = newConfig(NEW);
    expect(config.vision).toMatchObject({ width: 16, mlpWidth: 21, outWidth: 32, windows: { side: 2, fullAttentionBlocks: [1] }, tokensPerSecond: 3 });
    expect(config.source).toMatchObject({ architectures: ['Qwen2_5_VLForConditionalGeneration'], model_type: 'qwen2_5_vl', vision_config: { window_size: 60 } });
    const again = parseConfig(JSON.parse(JSON.stringify(configJson(config, 'bf16'))));
    expect({ kind: again.kind, text: again.text, vision: again.vision, tokens: again.tokens }).toEqual({ kind: config.kind, text: config.text, vision: config.vision, tokens: config.tokens });
    const { windowSize: _, fullAttentionBlocks: __, tokensPerSecond: ___, ...sizes } = NEW.vision;
    expect(newConfig({ ...NEW, vision: sizes }).vision).toMatchObject({ windows: { side: 4, fullAttentionBlocks: [7, 15, 23, 31] }, tokensPerSecond: 4 });
  });

  test.each<[NewModelConfig, string, string]>([
    [{ ...NEW, kind: 'qwen2_5' as never }, 'ERR_ARGUMENT', `kind to be one of 'qwen2_vl', 'qwen2_5_vl' but received "qwen2_5"; did you mean 'qwen2_vl'?`],
    [{ ...NEW, kind: 'qwen2_vl' }, 'ERR_ARGUMENT', "options among depth, width, heads, mlpWidth but received 'windowSize'"],
    [{ ...NEW, vision: { ...NEW.vision, fullAttentionBlocks: 1 as never } }, 'ERR_ARGUMENT', 'vision.fullAttentionBlocks to be an array but received 1'],
    [{ ...NEW, vision: undefined as never }, 'ERR_ARGUMENT', 'vision to be an object but received undefined'],
  ])('wrong wishes are refused (%#)', (wanted, code, message) => {
    expect(() => newConfig(wanted)).toThrow(expect.objectContaining({ name: 'LibError', code, message: `[config] Expected ${message}` }));
  });

  test.each(['f32', 'bf16'] as const)('%s: random from a config alone, saved and loaded with the same bits', async (dtype) => {
    using model = await LatentModel.create(parseConfig({ ...newConfig(NEW).source }), { dtype, seed: 5 });
    const values = async (of: LatentModel): Promise<Map<string, Float32Array>> => {
      const all = new Map<string, Float32Array>();
      for (const { name } of of.native.parameters()) all.set(name, await of.native.readParameter(name, 'value'));
      return all;
    };
    const want = await values(model);
    expect(new Set(want.get('visual.blocks.2.norm2.weight'))).toEqual(new Set([1]));
    expect(new Set(want.get('visual.blocks.2.mlp.up_proj.bias'))).toEqual(new Set([0]));
    expect(want.get('visual.blocks.2.mlp.up_proj.weight')).not.toEqual(want.get('visual.blocks.2.mlp.gate_proj.weight'));
    const request = { promptIds: [1, 301, ...Array<number>(15).fill(303), 302, 2], pictures: [{ frames: 1, height: 84, width: 140, pixels: Uint8Array.from({ length: 84 * 140 * 3 }, (_, i) => (i * 31) % 251) }] };
    const answer = await model.generate(request, { maxNewTokens: 3, stopIds: [] });
    await model.save(join(folder, dtype));
    expect(JSON.parse(readFileSync(join(folder, dtype, 'preprocessor_config.json'), 'utf8'))).toMatchObject({ image_processor_type: 'Qwen2VLImageProcessor', processor_class: 'Qwen2_5_VLProcessor' });
    using again = await LatentModel.load(join(folder, dtype));
    expect(again.config).toMatchObject({ kind: 'qwen2_5_vl', vision: model.config.vision });
    expect(again.dtype).toBe(dtype);
    expect(await values(again)).toEqual(want);
    expect(await again.generate(request, { maxNewTokens: 3, stopIds: [] })).toEqual(answer);
  });

  test('weights of one kind are not read into the other', async () => {
    using model = await LatentModel.create(NEW);
    using other = await LatentModel.create({ ...NEW, kind: 'qwen2_vl', vision: { depth: 3, width: 16, heads: 2, mlpWidth: 21 } });
    await model.save(join(folder, 'windows'));
    await other.save(join(folder, 'plain'));
    await expect(model.loadWeights(join(folder, 'plain'))).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT', message: `[load] Expected a checkpoint with vision.activation = "silu" but received "quick_gelu" in ${join(folder, 'plain')}. Load it as a model of its own.`,
    });
    await expect(other.loadWeights(join(folder, 'windows'))).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT', message: `[load] Expected a checkpoint with vision.activation = "quick_gelu" but received "silu" in ${join(folder, 'windows')}. Load it as a model of its own.`,
    });
  });
});
