/** Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors. */
import { stat } from 'node:fs/promises';
import { isAbsolute, join, resolve } from 'node:path';
import { show } from '../check';
import { fail } from '../errors';
import type { NativeFileTensor } from '../native';
import { adapterNames, MAX_DROPOUT, MAX_RANK, type AdaptableLayers, type AdaptedLayer, type Adapter } from './adapter';
import { kindOf, readJson } from './files';
import { isObject, JsonReader, type JsonObject } from './jsonReader';
import { canonicalName } from './parameterShapes';
import { readHeader, type TensorEntry } from './safetensors';

export const ADAPTER_CONFIG = 'adapter_config.json';
export const ADAPTER_WEIGHTS = 'adapter_model.safetensors';

/** An adapter and where its matrices lie. */
export interface FileAdapter {
  readonly adapter: Adapter;
  readonly path: string;
  readonly tensors: readonly NativeFileTensor[];
}

/** Variants of LoRA and parts of PEFT's format that would change the result and are not implemented. */
const MUST_BE_OFF = ['kasa_config', 'monteclora_config', 'velora_config', 'use_dora', 'use_qalora', 'use_bdlora', 'lora_bias', 'fan_in_fan_out', 'modules_to_save', 'trainable_token_indices', 'layer_replication', 'target_parameters', 'alora_invocation_tokens', 'arrow_config', 'megatron_config'];

/** Starts that leave the base weights as they are. */
const PLAIN_STARTS: readonly string[] = ['gaussian', 'eva', 'orthogonal', 'mica'];
/** Limit of the addon. */
const MAX_ALPHA = 1e6;

function reader(raw: unknown, path: string): JsonReader {
  if (!isObject(raw)) return fail('ERR_CHECKPOINT', 'load', `Expected ${path} to hold an object. The file is damaged: save the adapter again.`);
  return new JsonReader('load', ADAPTER_CONFIG, raw);
}

/**
 * Reads an adapter of PEFT for a model. The layers are those of the weights file; rank and scale of each come from its matrices and
 * from alpha, `alpha_pattern` and `use_rslora`.
 *
 * @param known the layers that can have an adapter.
 * @param owner what has them, for messages.
 * @throws {LibError} `ERR_CHECKPOINT` naming file, key or tensor; `ERR_UNSUPPORTED` for other methods than LoRA.
 */
export async function openAdapter(directory: string, known: AdaptableLayers, owner = 'model'): Promise<FileAdapter> {
  const raw = await readJson(join(directory, ADAPTER_CONFIG));
  if (raw === undefined) return fail('ERR_CHECKPOINT', 'load', `Expected ${ADAPTER_CONFIG} in ${directory} but received no such file. Give the directory of an adapter as PEFT saves it.`);
  const file: JsonReader = reader(raw, join(directory, ADAPTER_CONFIG));
  checkMethod(file);
  const rank = file.integer('r', 8, 1, MAX_RANK);
  const alpha = alphaOf(file, 'lora_alpha', 8);
  const dropout = file.raw('lora_dropout') === undefined || file.raw('lora_dropout') === 0 ? 0 : file.positive('lora_dropout', undefined);
  if (dropout > MAX_DROPOUT) file.wrong('lora_dropout', `a number from 0 to ${MAX_DROPOUT}`, 'Correct the file.');
  const alphas = patterns(file, 'alpha_pattern');
  const scaleOf = (name: string, own: number): number => (alphas.find(([end]) => `.${name}`.endsWith(`.${end}`))?.[1] ?? alpha) / (file.boolean('use_rslora', false) ? Math.sqrt(own) : own);
  const path = join(directory, ADAPTER_WEIGHTS);
  if (await kindOf(path) === 'missing') return fail('ERR_CHECKPOINT', 'load', `Expected ${ADAPTER_WEIGHTS} in ${directory} but received no such file. Save the adapter as safetensors (PEFT's default).`);
  const { layers, tensors, isNested } = matchLayers((await readHeader(path)).tensors, path, known, owner, scaleOf);
  const base = file.text('base_model_name_or_path', '');
  return Object.freeze({ path, tensors, adapter: Object.freeze({ rank, alpha, dropout, layers, base: base === '' ? undefined : base, source: file.object, isNested }) });
}

function checkMethod(file: JsonReader): void {
  if (file.text('peft_type', '').toUpperCase() !== 'LORA') file.unsupported('peft_type', "only 'LORA' is implemented");
  const start = file.raw('init_lora_weights') ?? true;
  if (typeof start === 'string' ? !PLAIN_STARTS.includes(start) : typeof start !== 'boolean') file.unsupported('init_lora_weights', 'reading such an adapter changes the base weights; convert it to plain LoRA in PEFT (path_initial_model_for_weight_conversion of save_pretrained)');
  if (file.text('bias', 'none') !== 'none') file.unsupported('bias', "only 'none' is implemented; train without biases");
  for (const key of MUST_BE_OFF) {
    const value = file.raw(key);
    if (value !== undefined && value !== false && !(Array.isArray(value) && value.length === 0)) file.unsupported(key, 'this variant is not implemented; merge the adapter in Python, or train plain LoRA');
  }
}

/** `alpha_pattern`: names of layers as the file has them, or their ends. PEFT takes regular expressions too, which a file from a stranger should not hand to anyone. */
function patterns(file: JsonReader, key: string): [string, number][] {
  const raw = file.child(key);
  return Object.keys(raw.object).map((end) => {
    if (!/^[\w.]+$/.test(end)) file.unsupported(key, 'only names of layers or their ends are implemented, no regular expressions');
    return [end, alphaOf(raw, end, undefined)];
  });
}

function alphaOf(file: JsonReader, key: string, fallback: number | undefined): number {
  const alpha = file.positive(key, fallback);
  if (alpha > MAX_ALPHA) file.wrong(key, `a number above 0, at most ${MAX_ALPHA}`, 'Correct the file.');
  return alpha;
}

/** `base_model.model.` + the layer's own name + `.lora_A.weight`; saved from a model with a named adapter, `.lora_A.default.weight`. */
const TENSOR_NAME = /^base_model\.model\.(.+)\.lora_(A|B)(?:\.default)?\.weight$/;

function matchLayers(entries: ReadonlyMap<string, TensorEntry>, path: string, known: AdaptableLayers, owner: string, scaleOf: (name: string, rank: number) => number): { layers: readonly AdaptedLayer[]; tensors: readonly NativeFileTensor[]; isNested: boolean } {
  const found = new Map<string, { name: string; A?: TensorEntry; B?: TensorEntry }>();
  for (const entry of entries.values()) {
    const [, name, part] = TENSOR_NAME.exec(entry.name) ?? [];
    const target = name === undefined ? '' : canonicalName(name);
    if (!known.has(target)) fail('ERR_CHECKPOINT', 'load', `Expected the tensors of ${path} to belong to linear layers of the ${owner} but received '${entry.name.slice(0, 200)}'. The file belongs to another ${owner}, or adapts what is not supported.`);
    if (!['F32', 'F16', 'BF16'].includes(entry.dtype)) fail('ERR_CHECKPOINT', 'load', `Expected tensor '${entry.name}' to be F32, F16 or BF16 but received ${entry.dtype} in ${path}. Save the adapter again.`);
    const parts = found.get(target) ?? { name: name! };
    if (parts[part as 'A' | 'B'] !== undefined) fail('ERR_CHECKPOINT', 'load', `Expected one lora_${part} of '${target}' but received a second, '${entry.name}', in ${path}. Save the adapter again.`);
    found.set(target, { ...parts, [part as string]: entry });
  }
  if (found.size === 0) fail('ERR_CHECKPOINT', 'load', `Expected the matrices of an adapter in ${path} but received none. Save the adapter again.`);
  const tensors: NativeFileTensor[] = [];
  // In the order of the model's layers, so that the order in the file decides nothing.
  const layers = [...known].filter(([target]) => found.has(target)).map(([target, size]): AdaptedLayer => {
    const { name, A, B } = found.get(target)!;
    if (A === undefined || B === undefined) return fail('ERR_CHECKPOINT', 'load', `Expected lora_A and lora_B of '${target}' but received only lora_${A === undefined ? 'B' : 'A'} in ${path}. Save the adapter again.`);
    const rank = A.shape[0] ?? 0;
    const expected = { A: [rank, size.in], B: [size.out, rank] };
    for (const [part, entry] of [['A', A], ['B', B]] as const) {
      if (rank < 1 || String(entry.shape) !== String(expected[part])) fail('ERR_CHECKPOINT', 'load', `Expected tensor '${entry.name}' to have shape [${part === 'A' ? `rank, ${size.in}` : `${size.out}, ${rank}`}] but received [${entry.shape.join(', ')}] in ${path}. The adapter belongs to another model.`);
      tensors.push({ name: adapterNames(target)[part === 'A' ? 'a' : 'b'], dtype: entry.dtype as NativeFileTensor['dtype'], offset: entry.offset, bytes: entry.bytes });
    }
    return Object.freeze({ target, rank, scale: scaleOf(name, rank), out: size.out, in: size.in });
  });
  const isNested = [...entries.keys()].every((name) => /\.model\.(language_model|visual)\./.test(name));
  return { layers: Object.freeze(layers), tensors: Object.freeze(tensors.sort((a, b) => a.offset - b.offset)), isNested };
}

/**
 * The directory of weights that an adapter's folder names, where it is on this machine; a relative one is looked for from the folder and
 * from the working directory.
 *
 * @throws {LibError} `ERR_CHECKPOINT` when there is none.
 */
export async function baseDirectory(directory: string): Promise<string> {
  const base = reader(await readJson(join(directory, ADAPTER_CONFIG)), join(directory, ADAPTER_CONFIG)).text('base_model_name_or_path', '');
  const places = base === '' ? [] : isAbsolute(base) ? [base] : [resolve(directory, base), resolve(base)];
  for (const place of places) {
    if (await stat(join(place, 'config.json')).then((found) => found.isFile(), () => false)) return place;
  }
  return fail('ERR_CHECKPOINT', 'load', `Expected base_model_name_or_path in ${join(directory, ADAPTER_CONFIG)} to be a directory with config.json but received ${show(base)}. Load the base model with the option adapter: '${directory}'.`);
}

/** adapter_config.json for saving: PEFT's keys, and what came with a loaded adapter. */
export function adapterJson({ rank, alpha, dropout, layers, base, source }: Adapter): JsonObject {
  // Ends of names that mean the same layers whichever way transformers nests its modules.
  const targets = layers.map(({ target }) => target.replace(/^model\./, ''));
  const uneven = layers.filter((layer) => layer.rank !== rank);
  return {
    peft_type: 'LORA', task_type: null, bias: 'none', inference_mode: true, init_lora_weights: true, use_dora: false, use_rslora: false, fan_in_fan_out: false,
    modules_to_save: null, target_modules: targets, rank_pattern: Object.fromEntries(uneven.map((layer) => [layer.target.replace(/^model\./, ''), layer.rank])), alpha_pattern: {},
    ...source, r: rank, lora_alpha: alpha, lora_dropout: dropout, base_model_name_or_path: base ?? null,
  };
}

/** A layer's name as transformers since 4.52 nests its modules. */
function nestedName(target: string): string {
  return target.startsWith('visual.') ? `model.${target}` : target.replace(/^model\./, 'model.language_model.');
}

/** Name of a tensor in adapter_model.safetensors. */
export function adapterTensorName(target: string, part: 'A' | 'B', isNested: boolean): string {
  return `base_model.model.${isNested ? nestedName(target) : target}.lora_${part}.weight`;
}
