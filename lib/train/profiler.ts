/** Gradient dynamics of a training (algorithms, section 7): what is recorded when, and the lines of `profileFile`. */
import type { ModelView } from '../model/reasoning';
import { abortable } from '../abort';
import { fail, guarded } from '../errors';
import { ROW_CLASSES } from '../model/rowClass';
import type { NativeModel } from '../native';
import { linesWriter } from './metrics';
import { parseProfile, profileHead, SPECTRUM_COLUMNS, type ProfileHead, type ProfileSamples, type ProfileStep } from './profileFormat';
import { classStatistics, recorded, runningLoss, splitByLoss, type Difficulty, type SampleNorms } from './profileStatistics';
import { forwardLosses, runMicroBatch, type BatchObservation, type PreparedStep, type Run, type StepSequence } from './step';
import type { FullOptions } from './trainOptions';

type Spectra = NonNullable<ProfileStep['matrices']>;

/** Profile of the step at hand. */
export interface StepProfile {
  /** Before the step's gradients are computed: those of its easy and hard halves. */
  before(run: Run, prepared: PreparedStep): Promise<void>;
  observe(seen: BatchObservation): void;
  /** When the step's gradients are complete, before the update. */
  complete(run: Run): Promise<void>;
  /** The line, for `write` when the step is done. */
  line(prepared: PreparedStep): ProfileStep;
}

export interface Profiler {
  /** Writes the file's head, and the lines of the steps that are done; until then the file is as it was. */
  begin(): void;
  /** Undefined where nothing is recorded at this step (from 0). */
  start(step: number): StepProfile | undefined;
  write(line: ProfileStep): void;
  close(): void;
}

/** q, k, v and o of every layer that are trained, by whether they are small enough. */
function chooseMatrices(native: NativeModel, side: number): { matrices: string[]; tooLarge: string[] } {
  const found = guarded(() => native.parameters()).filter(({ name, trainable }) => trainable && /^(model\.layers\.\d+\.self_attn\.[qkvo]_proj\.weight|lora\.model\.layers\.\d+\.self_attn\.[qkvo]_proj\.[AB])$/.test(name));
  const isSmall = ({ shape }: { shape: number[] }): boolean => Math.min(...shape) <= side;
  return { matrices: found.filter(isSmall).map(({ name }) => name), tooLarge: found.filter((matrix) => !isSmall(matrix)).map(({ name }) => name) };
}

/** What the eigenvalues of the CUDA backend take; larger matrices are named in the file as left out. */
const CUDA_MATRIX_SIDE = 128;

/**
 * Checks `options.profileFile`, which `begin` opens; undefined without one.
 *
 * @param done steps that are done: later lines are dropped, and running losses are taken up from the earlier ones.
 */
export function makeProfiler({ native, geometry: { layers }, device }: Pick<ModelView, 'native' | 'geometry' | 'device'>, options: FullOptions, done: number): Profiler | undefined {
  const { profileFile, profileEvery, profileMatricesEvery, profileMatrixSide, data } = options;
  if (profileFile === undefined) return undefined;
  const { matrices, tooLarge } = chooseMatrices(native, device === 'cuda' ? Math.min(profileMatrixSide, CUDA_MATRIX_SIDE) : profileMatrixSide);
  const head = profileHead(layers, matrices, tooLarge);
  const writer = linesWriter('profileFile', profileFile, done, head);
  const running = new Map<number, number>();
  const remember = ({ index, running: losses }: ProfileSamples): void => {
    // An endless source shows every sample once.
    if (data.size !== undefined) index.forEach((sample, n) => { if (losses[n] !== null) running.set(sample, losses[n]!); });
  };
  if (writer.first !== undefined && writer.kept.length > 0) {
    const old = parseProfile([writer.first, ...writer.kept, ''].join('\n'), profileFile);
    requireSameHead(old.head, head, profileFile);
    old.steps.forEach(({ samples }) => remember(samples));
  }
  return {
    begin: writer.begin,
    start(step) {
      const withMatrices = profileMatricesEvery > 0 && step % profileMatricesEvery === 0 && matrices.length > 0;
      return withMatrices || step % profileEvery === 0 ? startStep(layers + 1, withMatrices ? matrices : [], running) : undefined;
    },
    write(line) {
      remember(line.samples);
      writer.write(line);
    },
    close: writer.close,
  };
}

/** The lines that are kept must mean what the next ones will. */
function requireSameHead(old: ProfileHead, head: ProfileHead, file: string): void {
  if (old.layers !== head.layers) fail('ERR_ARGUMENT', 'train', `Expected profileFile to be a profile of ${head.layers} layers, as the model has, but received ${old.layers} layers in ${file}; resume with the same model, or name another file`);
  const lists = [[old.matrices, head.matrices], [old.tooLarge, head.tooLarge]] as const;
  if (lists.every(([a, b]) => a.length === b.length && a.every((name, n) => name === b[n]))) return;
  fail('ERR_ARGUMENT', 'train', `Expected profileMatrixSide to choose the ${old.matrices.length} matrices of the steps before, in ${file}, but received ${head.matrices.length} others; resume with the same profileMatrixSide, device and trained parameters, or name another profileFile`);
}

/** @param matrices whose spectra are recorded at this step. */
function startStep(levels: number, matrices: readonly string[], running: ReadonlyMap<number, number>): StepProfile {
  const samples: ProfileSamples = { index: [], loss: [], running: [], group: [] };
  const norms: SampleNorms[] = [];
  const spectra: Spectra = {};
  return {
    async before(run, prepared) {
      if (matrices.length === 0) return;
      const losses: number[] = [];
      for (const batch of prepared.batches) losses.push(...await forwardLosses(run, batch));
      const sequences = prepared.batches.flat();
      const group = splitByLoss(runningOf(sequences, losses, running));
      await clear(run);
      for (const half of ['easy', 'hard'] as const) {
        const own = sequences.filter((_, n) => group[n] === half);
        if (own.length > 0) spectra[half] = await halfSpectra(run, prepared, own, matrices);
      }
    },
    observe(seen) {
      const losses = runningOf(seen.batch, seen.losses, running);
      samples.index.push(...seen.batch.map(({ sample }) => sample));
      samples.loss.push(...seen.losses.map(recorded));
      samples.running.push(...losses);
      norms.push(...sampleNorms(seen, levels));
    },
    async complete(run) {
      if (matrices.length > 0) spectra.all = await spectraOf(run, matrices);
    },
    line({ step, stage, targets }) {
      samples.group = splitByLoss(samples.running);
      const of = (half: Difficulty): SampleNorms[] => norms.filter((_, n) => samples.group[n] === half);
      const statistics = (own: readonly SampleNorms[]): ReturnType<typeof classStatistics> => classStatistics(own, levels, targets);
      return {
        step: step + 1, stage: stage.name, targets, norms: { all: statistics(norms), easy: statistics(of('easy')), hard: statistics(of('hard')) }, samples,
        ...(matrices.length > 0 ? { matrices: scaled(spectra, targets) } : {}),
      };
    },
  };
}

function runningOf(sequences: readonly StepSequence[], losses: readonly number[], running: ReadonlyMap<number, number>): (number | null)[] {
  return sequences.map(({ sample }, n) => {
    const loss = recorded(losses[n]!);
    return loss === null ? null : recorded(runningLoss(running.get(sample), loss));
  });
}

function sampleNorms({ classes, norms }: BatchObservation, levels: number): SampleNorms[] {
  const total = norms === undefined ? 0 : norms.norms.length / norms.levels;
  let first = 0;
  return classes.map((rows) => {
    const start = first;
    first += rows.length;
    return {
      classes: Uint8Array.from(norms === undefined ? [] : rows, (name) => ROW_CLASSES.indexOf(name)),
      norms: Array.from({ length: levels }, (_, level) => (norms === undefined ? new Float32Array() : norms.norms.subarray(level * total + start, level * total + start + rows.length))),
    };
  });
}

function spectraOf({ model, options }: Run, matrices: readonly string[]): Promise<(number | null)[][]> {
  return abortable(options.signal, async (token) => {
    const figures = await model.native.gradientSpectra(matrices, token);
    return matrices.map((_, n) => Array.from(figures.subarray(SPECTRUM_COLUMNS.length * n, SPECTRUM_COLUMNS.length * (n + 1)), recorded));
  });
}

/** Of the gradients that some of the step's sequences alone would give, which are forgotten then. */
async function halfSpectra(run: Run, prepared: PreparedStep, sequences: readonly StepSequence[], matrices: readonly string[]): Promise<(number | null)[][]> {
  const { batchSize } = run.options;
  for (let first = 0; first < sequences.length; first += batchSize) await runMicroBatch(run, sequences.slice(first, first + batchSize), prepared);
  const figures = await spectraOf(run, matrices);
  await clear(run);
  return figures;
}

/** The step begins as if nothing had been. */
async function clear({ model, session }: Run): Promise<void> {
  await abortable(undefined, () => session.reset());
  await abortable(undefined, () => model.native.zeroGradients());
}

/** Norms grow with the gradient, ranks and ratios do not. */
function scaled(spectra: Spectra, targets: number): Spectra {
  return Object.fromEntries(Object.entries(spectra).map(([group, rows]) => [group, rows.map((row) => row.map((value, n) => (value === null || n > 1 ? value : recorded(value * targets))))]));
}
