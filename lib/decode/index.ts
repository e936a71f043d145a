export * from './generate';
export { DEFAULT_SAMPLING, sampleToken, type SamplingOptions } from './sampling';
