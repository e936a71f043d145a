/** A model with its processor: what programs load, create, ask and save. It stands above `model` and `decode`, which it joins. */
import { resolve } from 'node:path';
import { abortable } from './abort';
import * as check from './check';
import { generate, stream, type GenerateEvent, type GenerateOptions, type GenerateRequest, type GenerateResult } from './decode/generate';
import type { DeviceName } from './device';
import { fail, guarded } from './errors';
import { makeAdapter, type Adapter } from './model/adapter';
import { saveAdapter } from './model/adapterWeights';
import { openCheckpoint } from './model/checkpoint';
import { configOf, modelGeometry, type ModelConfig, type ModelGeometry, type NewModelConfig } from './model/config';
import { withLatentTokens } from './model/latentTokens';
import { requireMergeMemory } from './model/memory';
import type { Message } from './model/messages';
import { adapterOption, newParts, weightOptions, type CreateOptions, type LoadOptions, type ModelParts, type SaveOptions } from './model/modelOptions';
import { makePreset, PLAIN, type Preset } from './model/preset';
import { makeProcessor, type EncodedPrompt, type EncodeOptions, type Processor } from './model/processor';
import { MAX_LATENTS, type GenerationDefaults, type LatentRecord } from './model/record';
import { estimateUse, type EstimateOptions, type UseEstimate } from './model/useMemory';
import { initializeWeights, loadWeights, memoryOf, readWeights, saveCheckpoint } from './model/weights';
import { native, type NativeModel, type NativeSession, type NativeSessionOptions, type StorageDType } from './native';
import { requireNoTraining } from './train/trainer';

type AskOptions = Partial<GenerateOptions>;

/**
 * A vision-language model that can reason in latents. It owns native memory: call `dispose`, or declare it with `using`.
 *
 * @example
 * using model = await LatentModel.load('checkpoints/digits');
 * const answer = await model.generate({ messages: [{ role: 'user', content: [{ type: 'image', image: 'grid.png' }, { type: 'text', text: 'sum of row 2' }] }] });
 * console.log(answer.text);
 */
export class LatentModel {
  readonly config: ModelConfig;
  readonly dtype: StorageDType;
  /** Where its weights lie and its work is done. */
  readonly device: DeviceName;
  readonly geometry: ModelGeometry;
  readonly processor: Processor;
  /** Preset, latent steps and token ids of plumbline.json. */
  readonly record: LatentRecord;
  /** What generation_config.json says. */
  readonly generation: GenerationDefaults;
  /** Text of ids; absent without a tokenizer. */
  readonly decodeText?: (ids: readonly number[]) => string;
  /** Low-rank matrices on its linear layers. */
  readonly adapter?: Adapter;
  readonly #parts: ModelParts;
  readonly #native: NativeModel;
  #disposed = false;

  private constructor(parts: ModelParts, dtype: StorageDType, processor: Processor, model: NativeModel, device: DeviceName) {
    this.#parts = parts;
    this.#native = model;
    this.config = parts.config;
    this.dtype = dtype;
    this.device = device;
    this.geometry = modelGeometry(parts.config);
    this.processor = processor;
    this.record = parts.record;
    this.generation = parts.generation;
    if (parts.adapter !== undefined) this.adapter = parts.adapter;
    if (processor.tokenizer !== undefined) this.decodeText = processor.decode;
  }

  /**
   * Loads a Hugging Face directory of a Qwen2-VL or Qwen2.5-VL model, one that `save` wrote, or that of an adapter whose base lies where it
   * says.
   *
   * @throws {LibError} `ERR_CHECKPOINT` naming file, tensor or key; `ERR_UNSUPPORTED` for other models; `ERR_ARGUMENT` and
   *   `ERR_RANGE` for options; `ERR_OUT_OF_MEMORY` before anything is taken; `signal.reason` when aborted.
   */
  static async load(directory: string, options: LoadOptions = {}): Promise<LatentModel> {
    check.path('load', 'directory', directory);
    check.options('load', options, ['dtype', 'device', 'preset', 'latentTokens', 'adapter', 'seed', 'signal', 'onProgress', 'maxMemoryBytes']);
    const wanted = check.oneOf('load', 'dtype', options.dtype ?? 'auto', ['auto', 'f32', 'bf16']);
    const seed = check.integer('load', 'seed', options.seed ?? 0, 0);
    const weights = weightOptions('load', options);
    if (options.latentTokens !== undefined) check.boolean('load', 'latentTokens', options.latentTokens);
    const { base, saved, fresh } = await adapterOption(directory, options.adapter);
    const opened = await openCheckpoint(base, options.preset, saved);
    // An adapter that was trained with them lies on a base without them.
    const isNamed = saved !== undefined && opened.record.latentToken !== undefined && opened.companions.has('tokenizer.json');
    const checkpoint = options.latentTokens ?? isNamed ? withLatentTokens(opened) : opened;
    const processor = makeProcessor(checkpoint.config, checkpoint.images, checkpoint.companions);
    const dtype = wanted === 'auto' ? checkpoint.dtype : wanted;
    const adapter = fresh === undefined ? checkpoint.adapter?.adapter : makeAdapter(checkpoint.config, fresh, resolve(base));
    const parts = { ...checkpoint, adapter: saved === undefined || adapter === undefined ? adapter : { ...adapter, base: resolve(base) } };
    return new LatentModel(parts, dtype, processor, await loadWeights(checkpoint, dtype, seed, weights, adapter), weights.device);
  }

  /**
   * Makes a model with new random weights.
   *
   * @param config dimensions, or the config of another model.
   */
  static async create(config: NewModelConfig | ModelConfig, options: CreateOptions = {}): Promise<LatentModel> {
    check.options('create', options, ['dtype', 'device', 'seed', 'processor', 'latentSteps', 'preset', 'adapter', 'signal', 'maxMemoryBytes']);
    const dtype = check.oneOf('create', 'dtype', options.dtype ?? 'f32', ['f32', 'bf16']);
    const seed = check.integer('create', 'seed', options.seed ?? 0, 0);
    const latentSteps = options.latentSteps === undefined ? undefined : check.integer('create', 'latentSteps', options.latentSteps, 0, MAX_LATENTS);
    if (options.processor !== undefined) check.path('create', 'processor', options.processor);
    const made = configOf('create', 'config', config);
    const preset = options.preset === undefined ? PLAIN : makePreset(options.preset, made.text.layers);
    const adapter = options.adapter === undefined ? undefined : makeAdapter(made, options.adapter, undefined);
    const parts = { ...await newParts(made, options.processor, latentSteps, preset), adapter };
    const processor = makeProcessor(parts.config, parts.images, parts.companions);
    const weights = weightOptions('create', options);
    return new LatentModel(parts, dtype, processor, await initializeWeights(parts, dtype, seed, weights), weights.device);
  }

  /**
   * Says what loading, generating and training will take, without taking any of it; of a directory only the small files and the headers
   * of the weights are read.
   *
   * @param source a directory as for `load`, or a config as for `create`.
   * @throws {LibError} as `load`; `ERR_ARGUMENT`, `ERR_RANGE` for options.
   * @example (await LatentModel.estimate('Qwen2-VL-2B-Instruct', { contextTokens: 8192 })).generation.totalBytes
   */
  static async estimate(source: string | NewModelConfig | ModelConfig, options: EstimateOptions = {}): Promise<UseEstimate> {
    return estimateUse('estimate', source, options);
  }

  /** The addon's model. @throws {LibError} `ERR_DISPOSED`. */
  get native(): NativeModel {
    if (this.#disposed) fail('ERR_DISPOSED', 'model', 'Expected a model that is in use but received one that was disposed');
    return this.#native;
  }

  /** Latent steps before the words unless a call says otherwise. */
  get latentSteps(): number {
    return this.record.latentSteps;
  }

  /** The switches of replay, routing and latents: every one, routed layers as a list. */
  get preset(): Preset {
    return this.record.preset;
  }

  /** Ids that end a sequence. */
  get endIds(): readonly number[] {
    return this.generation.endTokens;
  }

  openSession(options: NativeSessionOptions): NativeSession {
    const model = this.native;
    return guarded(() => new (native().Session)(model, options));
  }

  /** Messages to token ids and pictures; see `processor`. */
  encodeMessages(messages: readonly Message[], options?: EncodeOptions): Promise<EncodedPrompt> {
    return this.processor.encode(messages, options);
  }

  /**
   * Answers one request. What `options` leave open is as generation_config.json says (sampling, repetition penalty, `max_new_tokens`), and
   * the latent steps as the checkpoint says; `{ temperature: 0 }` takes the likeliest token, with the checkpoint's repetition penalty.
   */
  async generate(request: GenerateRequest<readonly Message[]>, options: AskOptions = {}): Promise<GenerateResult> {
    const [result] = await this.generateBatch([request], options);
    return result!;
  }

  /** Answers several requests in ragged batches; results in the order of the requests. */
  async generateBatch(requests: readonly GenerateRequest<readonly Message[]>[], options: AskOptions = {}): Promise<GenerateResult[]> {
    return generate(this, requests, this.#defaults(options));
  }

  /** Answers one request as it happens; leaving the loop stops the work. */
  async *stream(request: GenerateRequest<readonly Message[]>, options: AskOptions = {}): AsyncGenerator<GenerateEvent, void, void> {
    yield* stream(this, request, this.#defaults(options));
  }

  /** Writes a directory that `load` and Python read: classic Hugging Face layout, with the tokenizer files as they came. */
  async save(directory: string, options: SaveOptions = {}): Promise<void> {
    check.path('save', 'directory', directory);
    check.options('save', options, ['latentSteps', 'signal', 'onProgress']);
    const latentSteps = check.integer('save', 'latentSteps', options.latentSteps ?? this.latentSteps, 0, MAX_LATENTS);
    const parts = { ...this.#parts, record: { ...this.record, latentSteps } };
    await saveCheckpoint(directory, this.native, this.dtype, parts, weightOptions('save', options));
  }

  /**
   * Writes the adapter as PEFT does (adapter_config.json, adapter_model.safetensors), which `load` and Python read on top of the base, and
   * beside it what plumbline adds (plumbline.json, plumbline.safetensors). `save` writes the whole model with the adapter folded in.
   *
   * @throws {LibError} `ERR_ARGUMENT` for a model without an adapter.
   */
  async saveAdapter(directory: string, options: SaveOptions = {}): Promise<void> {
    check.path('saveAdapter', 'directory', directory);
    check.options('saveAdapter', options, ['latentSteps', 'signal', 'onProgress']);
    const latentSteps = check.integer('saveAdapter', 'latentSteps', options.latentSteps ?? this.latentSteps, 0, MAX_LATENTS);
    await saveAdapter(directory, this.native, this.#adapterFor('saveAdapter'), { ...this.record, latentSteps }, weightOptions('saveAdapter', options));
  }

  /**
   * Adds the adapter into the weights: W + alpha/rank B A. Answers are the same up to rounding (bf16 weights round to bf16), and cost no
   * more than without an adapter. A merged model cannot be trained. Where it fails for memory, the model answers as before.
   *
   * @param options.keepBase keep a copy of the weights of before, as many bytes as the adapted matrices have, so that `unmergeAdapter`
   *   brings back the same bits (default true).
   * @param options.maxMemoryBytes bytes that the copy may take. Default: what is available now; `Infinity` switches the check off.
   * @throws {LibError} `ERR_ARGUMENT` without an adapter, when it is merged, or during a training; `ERR_OUT_OF_MEMORY`.
   */
  async mergeAdapter(options: { keepBase?: boolean; maxMemoryBytes?: number } = {}): Promise<void> {
    check.options('mergeAdapter', options, ['keepBase', 'maxMemoryBytes']);
    const keepBase = check.boolean('mergeAdapter', 'keepBase', options.keepBase ?? true);
    const { maxMemoryBytes } = weightOptions('mergeAdapter', { device: this.device, ...(options.maxMemoryBytes === undefined ? {} : { maxMemoryBytes: options.maxMemoryBytes }) });
    const model = this.native;
    requireNoTraining('mergeAdapter', model);
    requireMergeMemory('mergeAdapter', this.#adapterFor('mergeAdapter'), this.dtype, keepBase, maxMemoryBytes ?? memoryOf(this.device));
    await abortable(undefined, () => model.mergeAdapters(keepBase));
  }

  /** Takes a merged adapter out again; the weights have the bits of before. @throws {LibError} `ERR_ARGUMENT` when it cannot be. */
  async unmergeAdapter(): Promise<void> {
    const model = this.native;
    requireNoTraining('unmergeAdapter', model);
    this.#adapterFor('unmergeAdapter');
    await abortable(undefined, () => model.unmergeAdapters());
  }

  #adapterFor(op: string): Adapter {
    return this.adapter ?? fail('ERR_ARGUMENT', op, 'Expected a model with an adapter but received one without; load it with the option adapter');
  }

  /**
   * Reads the weights of a checkpoint of the same dimensions into this model: the backbone, and what this model has of the
   * parameters beside it. The preset stays. What was read before a failure or an abort stays too, NaN of a damaged file as well: load again,
   * or dispose the model.
   *
   * @throws {LibError} `ERR_CHECKPOINT` when it is another model; `ERR_ARGUMENT` during a training.
   */
  async loadWeights(directory: string, options: Pick<LoadOptions, 'signal' | 'onProgress'> = {}): Promise<void> {
    check.options('load', options, ['signal', 'onProgress']);
    const model = this.native;
    const checkpoint = await openCheckpoint(directory);
    for (const part of ['text', 'vision'] as const) {
      const [mine, theirs] = [this.config[part], checkpoint.config[part]] as [object, object];
      const differs = Object.keys({ ...mine, ...theirs }).find((key) => JSON.stringify(Reflect.get(mine, key)) !== JSON.stringify(Reflect.get(theirs, key)));
      if (differs === undefined) continue;
      fail('ERR_CHECKPOINT', 'load', `Expected a checkpoint with ${part}.${differs} = ${JSON.stringify(Reflect.get(mine, differs))} but received ${JSON.stringify(Reflect.get(theirs, differs))} in ${directory}. Load it as a model of its own.`);
    }
    requireNoTraining('load', model);   // after all that waits
    await readWeights(model, checkpoint, weightOptions('load', options));
  }

  /** Frees the weights; later use is `ERR_DISPOSED`. May be called twice. Sessions that are open keep what they need. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#native.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.dispose();
  }

  /** The checkpoint's own latent steps and generation_config.json where a call says nothing. */
  #defaults(options: AskOptions): AskOptions {
    check.object('generate', 'options', options);
    const { sample, temperature, topK, topP, minP, repetitionPenalty, maxNewTokens } = this.generation;
    return { latentSteps: this.latentSteps, repetitionPenalty, ...(maxNewTokens === undefined ? {} : { maxNewTokens }), ...(sample ? { temperature, topK, topP, minP } : {}), ...options };
  }
}
