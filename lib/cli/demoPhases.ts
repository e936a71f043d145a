/** The trainings of the demo, as data: one model that learns words, and copies of it that differ in their switches alone. */
import type { PresetChanges } from '../model/preset';
import type { TrainingStage } from '../train/curriculum';
import { DIGITS, WARMUP } from './demoData';
import type { DemoSize } from './demoSizes';

export type DemoMode = 'explicit words' | 'no reasoning' | 'latents' | 'latents + replay' | 'latents + routing' | 'latents + both';

export interface Phase {
  /** Row of the table. */
  mode: DemoMode;
  /** Folder of its checkpoints, name of its metrics. */
  folder: string;
  stages: TrainingStage[];
  /** Recorded in the checkpoints, as the number to decode with. */
  latentSteps: number;
  /** Recorded in the checkpoints. */
  preset: PresetChanges;
  /** Longest reply. */
  maxNewTokens: number;
  /** Pictures are drawn of what it looked at: the model that looks again and goes deeper. */
  isDrawn: boolean;
}

/** Longest reply in words: 5 steps of at most 9 words, and the answer. */
export const WORDS = 64;
const ANSWER_WORDS = 12;

type Switches = Required<Pick<PresetChanges, 'replay' | 'routedLayers'>>;

const PLAIN: Switches = { replay: false, routedLayers: [] };
const REPLAY: Switches = { replay: true, routedLayers: [] };
const ROUTING: Switches = { replay: false, routedLayers: 'odd' };
const BOTH: Switches = { replay: true, routedLayers: 'odd' };

/** What the copies learn to do before they answer. */
type Thinking = 'nothing' | 'latents';

const COPIES: readonly { mode: DemoMode; folder: string; thinking: Thinking; switches: Switches; isDrawn?: boolean }[] = [
  { mode: 'no reasoning', folder: 'direct', thinking: 'nothing', switches: PLAIN },
  { mode: 'latents', folder: 'latent', thinking: 'latents', switches: PLAIN },
  { mode: 'latents + replay', folder: 'latent-replay', thinking: 'latents', switches: REPLAY },
  { mode: 'latents + routing', folder: 'latent-routing', thinking: 'latents', switches: ROUTING },
  { mode: 'latents + both', folder: 'latent-both', thinking: 'latents', switches: BOTH, isDrawn: true },
];

/** The explicit model's training and those of its copies, which get the same number of steps and batches and the same learning rate. */
export function demoPhases(size: DemoSize): { explicit: Phase; copies: Phase[] } {
  const { learningRate } = size;
  const preset = (switches: Switches): PresetChanges => ({ name: 'default', ...switches, patches: size.patches, window: size.window });
  const thinking: Record<Thinking, Pick<Phase, 'stages' | 'latentSteps'>> = {
    nothing: { stages: answerStages(size), latentSteps: 0 },
    latents: { stages: latentStages(size), latentSteps: size.maxSteps * size.latentsPerStep },
  };
  return {
    explicit: {
      mode: 'explicit words', folder: 'explicit', latentSteps: 0, preset: preset(PLAIN), maxNewTokens: WORDS, isDrawn: false,
      stages: [
        { name: DIGITS, learningRate, warmupSteps: 50, finalRate: 1, steps: size.digitSteps, shape: {} },
        { name: WARMUP, learningRate, finalRate: 1, steps: size.warmupSteps, shape: {} },
        { name: 'words', learningRate, finalRate: 0.05, steps: size.explicitSteps, shape: {} },
      ],
    },
    copies: COPIES.map(({ mode, folder, thinking: kind, switches, isDrawn = false }) => ({ mode, folder, isDrawn, ...thinking[kind], preset: preset(switches), maxNewTokens: ANSWER_WORDS })),
  };
}

/** A step more becomes a latent in each stage; the last stage has no words but the answer. */
function latentStages({ latentRate, latentsPerStep, maxSteps, stageSteps, lastStageSteps }: DemoSize): TrainingStage[] {
  const stages = Array.from({ length: maxSteps }, (_, i): TrainingStage => ({
    name: `latent ${i + 1}`, learningRate: latentRate, finalRate: 1, warmupSteps: i === 0 ? 50 : 0, steps: stageSteps,
    shape: { stage: i + 1, latentsPerStep, padLatents: true }, earlierProbability: 0.1,
  }));
  return [...stages, {
    name: 'latents only', learningRate: latentRate, finalRate: 0.05, steps: lastStageSteps,
    shape: { stage: maxSteps, latentsPerStep, padLatents: true, lastStage: true },
  }];
}

function answerStages({ latentRate, maxSteps, stageSteps, lastStageSteps }: DemoSize): TrainingStage[] {
  const direct = { learningRate: latentRate, shape: { stage: 0, lastStage: true } };
  return [
    { ...direct, name: 'answer at once', warmupSteps: 50, finalRate: 1, steps: stageSteps * maxSteps },
    { ...direct, name: 'answer at once, end', finalRate: 0.05, steps: lastStageSteps },
  ];
}

/** Optimiser steps. */
export function stepsOf(phase: Phase): number {
  return phase.stages.reduce((sum, { steps }) => sum + (steps ?? 0), 0);
}
