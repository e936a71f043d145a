export type { Box, Evidence, EvidenceImage, EvidenceWindow, LatentEvidence, LayerEvidence, NearWord, ReplayedPatch } from './evidence';
export * from './generate';
export { DEFAULT_SAMPLING, sampleToken, type SamplingOptions } from './sampling';
