import { configJson, newConfig, parseConfig, toNativeSpec, type NewModelConfig } from '../../lib/model/config';
import { imageSettingsJson, parseImageSettings } from '../../lib/model/imageSettings';
import { parameterShapes, sizeOf } from '../../lib/model/parameterShapes';
import { makePreset, PLAIN, presetJson } from '../../lib/model/preset';
import { parseGeneration, parseRecord, recordJson } from '../../lib/model/record';

type Json = Record<string, unknown>;
const tiny: Json = {
  hidden_size: 64, num_hidden_layers: 4, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 128, vocab_size: 320, hidden_act: 'silu',
  rms_norm_eps: 1e-6, rope_theta: 1e6, max_position_embeddings: 4096, rope_scaling: { type: 'mrope', mrope_section: [2, 3, 3] },
  use_sliding_window: false, sliding_window: 4096, max_window_layers: 4, initializer_range: 0.02, bos_token_id: 305, eos_token_id: 300,
  pad_token_id: 305, architectures: ['Qwen2VLForConditionalGeneration'], model_type: 'qwen2_vl', torch_dtype: 'float32', tie_word_embeddings: true,
  vision_start_token_id: 301, vision_end_token_id: 302, image_token_id: 303, video_token_id: 304,
  vision_config: {
    model_type: 'qwen2_vl', depth: 2, num_heads: 2, in_channels: 3, in_chans: 3, patch_size: 14, spatial_patch_size: 14, spatial_merge_size: 2,
    temporal_patch_size: 2, embed_dim: 32, hidden_size: 64, mlp_ratio: 2, hidden_act: 'quick_gelu',
  },
};
const QWEN2_VL_2B: Json = {
  architectures: ['Qwen2VLForConditionalGeneration'], attention_dropout: 0, bos_token_id: 151643, eos_token_id: 151645, vision_start_token_id: 151652,
  vision_end_token_id: 151653, vision_token_id: 151654, image_token_id: 151655, video_token_id: 151656, hidden_act: 'silu', hidden_size: 1536,
  initializer_range: 0.02, intermediate_size: 8960, max_position_embeddings: 32768, max_window_layers: 28, model_type: 'qwen2_vl',
  num_attention_heads: 12, num_hidden_layers: 28, num_key_value_heads: 2, rms_norm_eps: 1e-6, rope_theta: 1e6, sliding_window: 32768,
  tie_word_embeddings: true, torch_dtype: 'bfloat16', use_cache: true, use_sliding_window: false,
  vision_config: { hidden_size: 1536, in_chans: 3, model_type: 'qwen2_vl', spatial_patch_size: 14 },
  rope_scaling: { type: 'mrope', mrope_section: [16, 24, 24] }, vocab_size: 151936,
};

/** A copy with one value replaced, by a path of keys. */
function changed(source: Json, path: string, value: unknown): Json {
  const copy = structuredClone(source);
  const keys = path.split('.');
  const last = keys.pop()!;
  const target = keys.reduce((object, key) => object[key] as Json, copy);
  if (value === undefined) delete target[last];
  else target[last] = value;
  return copy;
}

function nested(source: Json, ropeKey: string): Json {
  const { architectures, model_type, vision_config, image_token_id, video_token_id, vision_start_token_id, vision_end_token_id, rope_scaling, rope_theta, ...text } = source;
  const rope = ropeKey === 'rope_parameters' ? { rope_parameters: { ...(rope_scaling as Json), rope_type: 'default', rope_theta } } : { rope_scaling, rope_theta };
  return { architectures, model_type, vision_config, image_token_id, video_token_id, vision_start_token_id, vision_end_token_id, text_config: { ...text, ...rope, model_type: 'qwen2_vl_text' } };
}

test('the sparse file of Qwen2-VL-2B gets the defaults of the reference', () => {
  const { text, vision, tokens } = parseConfig(QWEN2_VL_2B);
  expect(text).toEqual({
    hidden: 1536, layers: 28, heads: 12, kvHeads: 2, headDim: 128, intermediate: 8960, vocab: 151936, eps: 1e-6, ropeTheta: 1e6, mropeSection: [16, 24, 24], tied: true,
  });
  expect(vision).toEqual({ depth: 32, width: 1280, heads: 16, mlpWidth: 5120, outWidth: 1536, activation: 'quick_gelu', channels: 3, patch: 14, merge: 2, temporal: 2 });
  expect(tokens).toEqual({ image: 151655, video: 151656, visionStart: 151652, visionEnd: 151653 });
  // 2,208,985,600 is what the hub says this model has.
  expect(parameterShapes(parseConfig(QWEN2_VL_2B)).reduce((sum, { shape }) => sum + sizeOf(shape), 0)).toBe(2_208_985_600);
});

test.each(['rope_scaling', 'rope_parameters'])('text keys nested in text_config, with %s, say the same', (ropeKey) => {
  const [flat, deep] = [parseConfig(tiny), parseConfig(nested(tiny, ropeKey))];
  expect({ text: deep.text, vision: deep.vision, tokens: deep.tokens }).toEqual({ text: flat.text, vision: flat.vision, tokens: flat.tokens });
  const again = configJson(deep, 'f32');
  expect(again).not.toHaveProperty('text_config');
  expect(parseConfig(again).text).toEqual(flat.text);
});

test('saving keeps every key of a classic file', () => {
  expect(configJson(parseConfig(tiny), 'f32')).toEqual(tiny);
});

test('the result is frozen', () => {
  const config = parseConfig(tiny);
  for (const part of [config, config.text, config.vision, config.tokens, config.text.mropeSection]) expect(Object.isFrozen(part)).toBe(true);
});

test.each<[string, unknown, string]>([
  ['hidden_size', '64', 'hidden_size in config.json to be a whole number from 1 to 1048576 but received "64"'],
  ['hidden_size', -1, 'hidden_size in config.json to be a whole number from 1 to 1048576 but received -1'],
  ['hidden_size', 1e18, 'hidden_size in config.json to be a whole number from 1 to 1048576 but received 1000000000000000000'],
  ['hidden_size', 66, 'hidden_size in config.json to be a multiple of num_attention_heads = 4 but received 66'],
  ['num_key_value_heads', 3, 'num_key_value_heads in config.json to be a divisor of num_attention_heads = 4 but received 3'],
  ['head_dim', 20, 'rope_scaling.mrope_section in config.json to be three whole numbers that sum to half of head_dim = 20 but received [2,3,3]'],
  ['rope_scaling.mrope_section', [2, 3], 'rope_scaling.mrope_section in config.json to be 3 numbers but received [2,3]'],
  ['rope_scaling.mrope_section', undefined, 'rope_scaling.mrope_section in config.json to be 3 numbers but received nothing'],
  ['rope_scaling', [1], 'rope_scaling in config.json to be an object but received [1]'],
  ['rms_norm_eps', 0, 'rms_norm_eps in config.json to be a number above 0, at most 1 but received 0'],
  ['rms_norm_eps', 1e300, 'rms_norm_eps in config.json to be a number above 0, at most 1 but received 1e+300'],
  ['rope_theta', 5e-324, 'rope_theta in config.json to be a number from 1 to 1000000000000000 but received 5e-324'],
  ['rope_scaling.rope_theta', 1e16, 'rope_scaling.rope_theta in config.json to be a number from 1 to 1000000000000000 but received 10000000000000000'],
  ['tie_word_embeddings', 'yes', 'tie_word_embeddings in config.json to be true or false but received "yes"'],
  ['vision_config.hidden_size', 32, 'vision_config.hidden_size in config.json to be the decoder\'s hidden_size = 64 but received 32'],
  ['vision_config.embed_dim', 36, 'vision_config.embed_dim in config.json to be a multiple of 4 * num_heads = 8 but received 36'],
  ['video_token_id', 303, 'video_token_id in config.json to be another id than image_token_id = 303 but received 303'],
])('%s = %j is ERR_CHECKPOINT and says what to do', (path, value, expected) => {
  const message = expect.stringContaining(`[config] Expected ${expected}. `) as string;
  expect(() => parseConfig(changed(tiny, path, value))).toThrow(expect.objectContaining({ code: 'ERR_CHECKPOINT', message }));
});

test.each<[string, unknown, string]>([
  ['model_type', 'llama', "only 'qwen2_vl' and 'qwen2_5_vl' are supported"],
  ['hidden_act', 'gelu', "the decoder's activation must be 'silu'"],
  ['rope_scaling.type', 'yarn', "only 'mrope' and 'default' are implemented"],
  ['quantization_config', { bits: 4 }, 'quantised weights are not supported'],
  ['vision_config.hidden_act', 'relu', "the tower's activation must be"],
  ['vision_config.in_channels', 4, 'pictures have 3 channels'],
])('%s = %j is ERR_UNSUPPORTED', (path, value, why) => {
  expect(() => parseConfig(changed(tiny, path, value))).toThrow(expect.objectContaining({ code: 'ERR_UNSUPPORTED', message: expect.stringContaining(why) as string }));
});

test('a sliding window counts only on layers that have it', () => {
  expect(() => parseConfig({ ...tiny, use_sliding_window: true, max_window_layers: 1 })).toThrow(expect.objectContaining({ code: 'ERR_UNSUPPORTED' }));
  expect(parseConfig({ ...tiny, use_sliding_window: true, max_window_layers: 4 }).text.layers).toBe(tiny['num_hidden_layers']);
});

test('contradicting tie_word_embeddings are an error', () => {
  const raw = { ...nested(tiny, 'rope_scaling'), tie_word_embeddings: false };
  expect(() => parseConfig(raw)).toThrow(expect.objectContaining({ code: 'ERR_CHECKPOINT', message: expect.stringContaining('to be true, as text_config says but received false') as string }));
});

test.each([null, [], 3, 'x'])('%j is no config', (raw) => {
  expect(() => parseConfig(raw)).toThrow(expect.objectContaining({ code: 'ERR_CHECKPOINT' }));
});

const NEW: NewModelConfig = {
  text: { hidden: 48, layers: 2, heads: 3, kvHeads: 1, headDim: 20, intermediate: 64, vocab: 99, mropeSection: [2, 4, 4], tied: false },
  vision: { depth: 1, width: 24, heads: 2, mlpWidth: 41 }, tokens: { image: 5, video: 6, visionStart: 3, visionEnd: 4, eos: 1, pad: 0 },
};

test('a new config is the file that it will be saved as', () => {
  const config = newConfig(NEW);
  expect(config.vision.mlpWidth).toBe(41);
  const again = parseConfig(JSON.parse(JSON.stringify(configJson(config, 'bf16'))));
  expect(again.text).toEqual(config.text);
  expect(again.vision).toEqual(config.vision);
  expect(again.source).toMatchObject({ torch_dtype: 'bfloat16', head_dim: 20, tie_word_embeddings: false });
});

test('every MLP width survives the ratio of the file', () => {
  for (let mlpWidth = 1; mlpWidth <= 400; mlpWidth++) {
    for (const width of [8, 24, 56, 88]) expect(newConfig({ ...NEW, vision: { ...NEW.vision, width, mlpWidth } }).vision.mlpWidth).toBe(mlpWidth);
  }
});

describe('preprocessor_config.json', () => {
  const { vision } = parseConfig(tiny);

  test('defaults, classic keys and the newer size', () => {
    expect(parseImageSettings(undefined, vision)).toMatchObject({ minPixels: 3136, maxPixels: 1003520 });
    expect(parseImageSettings({ min_pixels: 784, max_pixels: 1568 }, vision)).toMatchObject({ minPixels: 784, maxPixels: 1568 });
    const settings = parseImageSettings({ size: { shortest_edge: 784, longest_edge: 1568 } }, vision);
    expect(settings).toMatchObject({ minPixels: 784, maxPixels: 1568 });
    expect(parseImageSettings(imageSettingsJson(settings, vision), vision)).toMatchObject({ minPixels: 784, maxPixels: 1568 });
    expect(toNativeSpec(parseConfig(tiny), settings, 'bf16')).toMatchObject({ dtype: 'bf16', vision: { imageMean: settings.mean, width: 32 } });
  });

  test.each<[Json, string, string]>([
    [{ patch_size: 16 }, 'ERR_CHECKPOINT', 'patch_size in preprocessor_config.json to be 14, as vision_config in config.json says but received 16'],
    [{ min_pixels: 9, max_pixels: 8 }, 'ERR_CHECKPOINT', 'min_pixels in preprocessor_config.json to be at most max_pixels = 8'],
    [{ image_std: [1, 0, 1] }, 'ERR_CHECKPOINT', 'three numbers above 0'],
    [{ image_mean: [1, 2] }, 'ERR_CHECKPOINT', 'image_mean in preprocessor_config.json to be 3 numbers'],
    [{ do_resize: false }, 'ERR_UNSUPPORTED', 'do_resize'], [{ resample: 2 }, 'ERR_UNSUPPORTED', 'resample'], [{ rescale_factor: 1 }, 'ERR_UNSUPPORTED', 'rescale_factor'],
  ])('%j is refused', (raw, code, message) => {
    expect(() => parseImageSettings(raw, vision)).toThrow(expect.objectContaining({ code, message: expect.stringContaining(message) as string }));
  });
});

describe('plumbline.json and generation_config.json', () => {
  test('the record keeps unknown keys and says the rest; it is written as format 2', () => {
    const record = parseRecord({ format: 1, preset: 'paper', latentSteps: 3, latentTokenId: 308, note: 'kept' }, 4);
    expect(record).toMatchObject({ preset: PLAIN, latentSteps: 3, latentToken: 308 });
    expect(recordJson({ ...record, latentSteps: 5 })).toEqual({ format: 2, preset: 'default', latentSteps: 5, latentTokenId: 308, note: 'kept', switches: presetJson(PLAIN) });
    expect(parseRecord(undefined, 4)).toMatchObject({ latentSteps: 0, preset: PLAIN });
  });

  test('format 2 gives back the switches that were written', () => {
    const preset = makePreset({ name: 'paper', patches: 7, grid: 5, routedLayers: [0, 3] }, 4);
    const written = JSON.parse(JSON.stringify(recordJson({ preset, latentSteps: 2, source: {} }))) as object;
    expect(written).toMatchObject({ format: 2, preset: 'paper', switches: { patches: 7, grid: 5, routedLayers: [0, 3] } });
    expect(parseRecord(written, 4).preset).toEqual(preset);
    expect(recordJson(parseRecord(written, 4))).toEqual(written);
  });

  test.each<[unknown, string, string]>([
    [{ format: 3 }, 'ERR_UNSUPPORTED', '[load] Expected format in plumbline.json to be something supported but received 3: this version reads formats 1 and 2; update plumbline'],
    [{}, 'ERR_UNSUPPORTED', '[load] Expected format in plumbline.json to be something supported but received undefined: this version reads formats 1 and 2; update plumbline'],
    [[], 'ERR_CHECKPOINT', '[load] Expected plumbline.json to hold an object. The file is damaged: save the checkpoint again.'],
    [{ format: 1, latentSteps: -1 }, 'ERR_CHECKPOINT', "[load] Expected latentSteps in plumbline.json to be a whole number from 0 to 65536 but received -1. Correct the file or take it from the model's own repository."],
    [{ format: 2, preset: 'paper' }, 'ERR_CHECKPOINT', '[load] Expected switches in plumbline.json to be an object but received undefined. Correct the file, or save the checkpoint again.'],
    [{ format: 2, preset: 5, switches: {} }, 'ERR_CHECKPOINT', '[load] Expected preset in plumbline.json to be a string but received 5. Correct the file.'],
  ])('%j is refused', (raw, code, message) => {
    expect(() => parseRecord(raw, 4)).toThrow(expect.objectContaining({ name: 'LibError', code, message }));
  });

  test('end tokens come from generation_config.json, else from config.json', () => {
    expect(parseGeneration({ eos_token_id: [300, 305], do_sample: false }, tiny)).toMatchObject({ endTokens: [300, 305], sample: false });
    expect(parseGeneration(undefined, tiny)).toMatchObject({ endTokens: [300], padToken: 305 });
    expect(parseGeneration(undefined, nested(tiny, 'rope_scaling'))).toMatchObject({ endTokens: [300] });
    expect(() => parseGeneration({ eos_token_id: ['x'] }, tiny)).toThrow(expect.objectContaining({ code: 'ERR_CHECKPOINT' }));
  });

  test.each<[Json, object]>([
    [{}, { sample: false, temperature: 1, topK: 50, topP: 1, minP: 0, repetitionPenalty: 1 }],
    [{ do_sample: true, top_k: 1, top_p: 0.001, temperature: 0.01 }, { sample: true, temperature: 0.01, topK: 1, topP: 0.001, minP: 0, repetitionPenalty: 1 }],
    [{ do_sample: true, repetition_penalty: 1.05, temperature: 1e-6, max_new_tokens: 7 }, { sample: true, temperature: 1e-6, topK: 50, topP: 1, repetitionPenalty: 1.05, maxNewTokens: 7 }],
    [{ do_sample: true, top_p: 0, min_p: 0.2 }, { topP: Number.MIN_VALUE, minP: 0.2 }],
    [{ do_sample: false, temperature: 0, top_p: 7, repetition_penalty: 1.3 }, { sample: false, temperature: 1, topP: 1, repetitionPenalty: 1.3 }],
  ])('generation_config.json %j', (raw, expected) => expect(parseGeneration(raw, tiny)).toMatchObject(expected));

  test.each<[Json, string]>([
    [{ do_sample: true, temperature: 0 }, 'Expected temperature in generation_config.json to be a finite number above 0 but received 0. Correct the file or take it from the model\'s own repository.'],
    [{ do_sample: true, top_p: 1.5 }, 'Expected top_p in generation_config.json to be a number from 0 to 1 but received 1.5. Correct the file or take it from the model\'s own repository.'],
    [{ do_sample: 'yes' }, 'Expected do_sample in generation_config.json to be true or false but received "yes". Correct the file.'],
    [{ repetition_penalty: 5e-324 }, 'Expected repetition_penalty in generation_config.json to be a number from 0.001 to 1000 but received 5e-324. Correct the file or take it from the model\'s own repository.'],
    [{ max_new_tokens: 0 }, 'Expected max_new_tokens in generation_config.json to be a whole number from 1 to 2147483647 but received 0. Correct the file or take it from the model\'s own repository.'],
  ])('generation_config.json %j is refused', (raw, message) => {
    expect(() => parseGeneration(raw, tiny)).toThrow(expect.objectContaining({ name: 'LibError', code: 'ERR_CHECKPOINT', message: `[load] ${message}` }));
  });
});

test.each<[unknown, string]>([
  [null, '[config] Expected config to be an object but received null'], [{}, '[config] Expected text to be an object but received undefined'],
  [{ text: { layer: 3 } }, "did you mean 'layers'?"], [{ text: {}, vision: {}, tokens: {} }, '[config] Expected text.mropeSection to be an array but received undefined'],
])('%j is no new config', (wanted, message) => {
  expect(() => newConfig(wanted as never)).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT', message: expect.stringContaining(message) as string }));
});
