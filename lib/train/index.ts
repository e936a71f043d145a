export { runBatch, type BatchOptions, type BatchReplay, type BatchRun, type BatchTargets, type SequenceInput } from './batch';
export { latestCheckpoint, type SavableModel } from './checkpoint';
export {
  DEFAULT_STAGE_SHAPE, drawShape, mergeSteps, planStages, stageSequence,
  type PlannedStage, type Rationale, type StagedSequence, type StageShape, type TrainingStage, type WordClass,
} from './curriculum';
export {
  parseProfile, PROFILE_GROUPS, readProfile, SPECTRUM_COLUMNS,
  type GradientProfile, type ProfileGroup, type ProfileHead, type ProfileSamples, type ProfileStep,
} from './profileFormat';
export { PROFILE_COLUMNS, PROFILE_QUANTILES, type StatisticsRow } from './profileStatistics';
export type { ReasoningSteps, SequenceProbe, SequenceRoute } from './probes';
export { recordAnswer, recordData, recordPrompts, type RecordModel, type RecordOptions } from './recordData';
export { learningRate, type Schedule } from './schedule';
export { chooseTrainable, type TrainableChoice } from './trainable';
export { DEFAULT_TRAINING, type SampleContext, type TrainArguments, type TrainingData, type TrainingSample, type TrainOptions } from './trainOptions';
export { train, trainAll, type StepMetrics, type TrainEvent } from './trainer';
