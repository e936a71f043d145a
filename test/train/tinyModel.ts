/** A model of a few thousand parameters, and data for it. */
import { newConfig } from '../../lib/model/config';
import type { AdapterOptions } from '../../lib/model/adapter';
import { LatentModel } from '../../lib/latentModel';
import type { DeviceChoice } from '../../lib/device';
import type { PresetChanges, PresetName } from '../../lib/model/preset';
import { native, type NativeParameterInfo, type ParameterSlot, type StorageDType } from '../../lib/native';
import type { TrainingData, TrainingSample } from '../../lib/train';
import { mix } from '../../lib/random';

export const IMAGE = 40;
export const VIDEO = 41;
export const END = 44;

export interface TinyOptions {
  seed?: number;
  dtype?: StorageDType;
  initializerRange?: number;
  layers?: number;
  preset?: PresetName | PresetChanges;
  device?: DeviceChoice;
  adapter?: AdapterOptions;
}

export async function tinyModel(options: TinyOptions = {}): Promise<LatentModel> {
  native().setThreads(1);   // so little work is slower when shared, above all on a busy machine
  const config = newConfig({
    text: { hidden: 32, layers: options.layers ?? 2, heads: 4, kvHeads: 2, intermediate: 48, vocab: 48, mropeSection: [2, 1, 1], ropeTheta: 1000 },
    vision: { depth: 1, width: 16, heads: 2, mlpWidth: 24 },
    tokens: { image: IMAGE, video: VIDEO, visionStart: 42, visionEnd: 43, eos: END, pad: 45 },
    initializerRange: options.initializerRange ?? 0.02,
  });
  return LatentModel.create(config, { seed: options.seed ?? 1, dtype: options.dtype ?? 'f32', ...(options.device === undefined ? {} : { device: options.device }), ...(options.preset === undefined ? {} : { preset: options.preset }), ...(options.adapter === undefined ? {} : { adapter: options.adapter }) });
}

/** Sample i of a made-up task: 0 to 2 pictures, 0 to 3 steps, prompts and steps of differing lengths. */
export function sample(index: number): TrainingSample {
  const draw = (place: number, below: number): number => mix(index, place) % below;
  const words = (place: number, count: number): number[] => Array.from({ length: count }, (_, n) => draw(place + n, 40));
  const pictures = Array.from({ length: draw(0, 3) }, (_, n) => {
    const [height, width] = [28 * (1 + draw(10 + n, 2)), 28 * (1 + draw(20 + n, 2))];
    return { pixels: noise(mix(index, n), height * width * 3), frames: 1, height, width };
  });
  return {
    pictures,
    promptIds: [...words(100, 1 + draw(1, 4)), ...pictures.flatMap(({ height, width }) => [42, ...new Array<number>((height * width) / 784).fill(IMAGE), 43])],
    steps: Array.from({ length: draw(2, 4) }, (_, n) => words(200 + 10 * n, 1 + draw(30 + n, 3))),
    answer: [...words(300, 1), END],
  };
}

/** Bytes of a linear congruential generator; `mix` for each pixel takes seconds inside jest, whose globals are slow. */
export function noise(seed: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0, state = seed % 2147483647; i < length; i++) {
    state = (state * 48271) % 2147483647;
    bytes[i] = state >> 8;
  }
  return bytes;
}

export const endless: TrainingData = { at: sample };

/** Every number of a model: weights and optimiser state. */
export async function contents(model: LatentModel): Promise<Map<string, Float32Array>> {
  const all = new Map<string, Float32Array>();
  for (const info of model.native.parameters()) {
    for (const slot of info.trainable ? slotsOf(info) : ['value' as const]) all.set(`${slot}.${info.name}`, await model.native.readParameter(info.name, slot));
  }
  return all;
}

function slotsOf({ dtype }: NativeParameterInfo): ParameterSlot[] {
  return dtype === 'bf16' ? ['value', 'first', 'second', 'master'] : ['value', 'first', 'second'];
}
