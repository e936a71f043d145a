/** plumbline: vision-language models that reason in latents instead of words. */
export { deviceReport, type CudaReport, type DeviceChoice, type DeviceName, type DeviceReport } from './device';
export { LibError, type ErrorCode } from './errors';
export { native, type NativeAddon, type NativeBuildInfo } from './native';
export { LatentModel } from './latentModel';
export type { AdaptedLayer, Adapter, AdapterOptions } from './model/adapter';
export { openCheckpoint, type Checkpoint } from './model/checkpoint';
export { configJson, newConfig, parseConfig, type ModelConfig, type ModelGeometry, type ModelKind, type NewModelConfig, type NewVisionConfig, type SpecialTokens, type TextConfig, type VisionConfig } from './model/config';
export { extraShapes, UNSET_THRESHOLD, type ExtraShape, type FileExtra, type FileExtras } from './model/extras';
export { decodeImage, smartResize, type ImageSource, type Picture, type RawImage, type RgbImage } from './model/image';
export { availableMemory, estimateMemory, type MemoryEstimate } from './model/memory';
export { estimateSession, type SessionEstimate } from './model/sessionMemory';
export type { EstimateOptions, UseEstimate } from './model/useMemory';
export type { CreateOptions, LoadOptions, SaveOptions } from './model/modelOptions';
export type { PromptInput, ReasoningForm } from './model/passes';
export type { ModelView } from './model/reasoning';
export { ROW_CLASSES, type RowClass } from './model/rowClass';
export { mropePositions, type Grid, type Positions } from './model/positions';
export {
  looksAhead, makePreset, PLAIN, PRESETS, replaySpec, routingSpec,
  type Preset, type PresetChanges, type PresetName, type PresetSwitches,
} from './model/preset';
export type { Message, MessagePart, PictureSize, VideoFrames } from './model/messages';
export type { PictureOptions, ProcessorOptions } from './model/pictures';
export type { EncodedPrompt, EncodeOptions, Processor } from './model/processor';
export type { GenerationDefaults, LatentRecord } from './model/record';
export { readHeader, readTensor, writeSafetensors, type SafetensorsHeader, type TensorEntry, type TensorSource } from './model/safetensors';
export type { LoadProgress } from './model/weights';
export * from './decode';
export * from './train';
export * from './evaluate';
export * from './report';
export * from './data';
