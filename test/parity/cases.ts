/** Goldens of ragged batches: forward, losses and the gradient of every parameter, through the code that training uses. */
import type { NativePass, NativePassResult, NativeSession } from '../../lib/native';
import type { Picture } from '../../lib/model/image';
import { ROW_KIND } from '../../lib/native';
import { runBatch, type ModelView, type SequenceInput } from '../../lib/train/batch';
import type { Golden, Report } from './goldens';

/** The switches of a golden's preset (keys of the oracle's presets.py) that decide whether this version can run it. */
export interface PresetSwitches {
  routed_layers: number[];
  replay: boolean;
  positions: 'mrope' | 'sequential';
  latent_gradient: 'through' | 'detached';
}

/** Why a preset cannot be run on sequences with latents and images, or undefined when it can. */
export function whyUnsupported(preset: PresetSwitches, replays: boolean): string | undefined {
  const missing = [...(preset.routed_layers.length > 0 ? ['depth routing'] : []), ...(preset.replay && replays ? ['visual replay'] : [])];
  return missing.length > 0 ? missing.join(', ') : undefined;
}

export function pictureOf(golden: Golden, name: string): Picture {
  const shape = golden.shape(name);
  const [frames, height, width] = shape.length === 4 ? (shape as [number, number, number, number]) : [1, ...(shape as [number, number, number])];
  return { pixels: golden.u8(name), frames, height, width };
}

interface CaseSequence extends SequenceInput {
  wordClasses: Int32Array;
}

function sequencesOf(golden: Golden): CaseSequence[] {
  return Array.from({ length: golden.one('in.sequences') }, (_, i) => ({
    promptIds: golden.i32(`in.s${i}.prompt`), latents: golden.one(`in.s${i}.latents`), words: golden.i32(`in.s${i}.words`),
    wordClasses: golden.i32(`in.s${i}.word_classes`),
    pictures: Array.from({ length: golden.one(`in.s${i}.images`) }, (_, j) => pictureOf(golden, `in.s${i}.image${j}.resized`)),
  }));
}

/** Preset `official` counts positions 0, 1, 2 … through pictures too. `lengths`: rows so far of each sequence id. */
function withSequentialPositions(pass: NativePass, lengths: Map<number, number>): NativePass {
  const positions = new Int32Array(pass.positions.length);
  const rows = pass.kind.length;
  pass.sequences.forEach((id, b) => {
    let position = lengths.get(id) ?? 0;
    for (let row = pass.cuSeqlens[b] as number; row < (pass.cuSeqlens[b + 1] as number); row++, position++) {
      for (let axis = 0; axis < 3; axis++) positions[axis * rows + row] = position;
    }
    lengths.set(id, position);
  });
  return { ...pass, positions };
}

interface RanPass { pass: NativePass; result: NativePassResult }

/** Rows of one sequence out of each pass's packed rows of `width` values, in order. */
function rowsOfSequence(passes: readonly RanPass[], id: number, width: number, packed: (ran: RanPass) => ArrayLike<number>): number[] {
  const out: number[] = [];
  for (const ran of passes) {
    const b = ran.pass.sequences.indexOf(id);
    if (b < 0) continue;
    const values = packed(ran);
    for (let i = (ran.pass.cuSeqlens[b] as number) * width; i < (ran.pass.cuSeqlens[b + 1] as number) * width; i++) out.push(values[i] as number);
  }
  return out;
}

const IMAGE_CLASS = 1;
const LATENT_CLASS = 3;

function compareRows(report: Report, prefix: string, sequence: CaseSequence, passes: readonly RanPass[], id: number, model: ModelView, cached: boolean): void {
  const kinds = rowsOfSequence(passes, id, 1, ({ pass }) => pass.kind);
  const axes = [0, 1, 2].map((axis) => rowsOfSequence(passes, id, 1, ({ pass }) => pass.positions.subarray(axis * pass.kind.length, (axis + 1) * pass.kind.length)));
  const prompt = sequence.promptIds.length;
  report.compare(`${prefix}positions`, axes.flat());
  report.compare(`${prefix}delta`, [Math.max(...axes.map((axis) => Math.max(...axis.slice(0, prompt)))) + 1 - prompt]);
  let word = 0;
  report.compare(`${prefix}classes`, kinds.map((kind, row) => (
    kind === ROW_KIND.visual ? IMAGE_CLASS : kind === ROW_KIND.latent ? LATENT_CLASS : row < prompt ? 0 : sequence.wordClasses[word++] as number)));
  report.compare(`${prefix}image_columns`, kinds.flatMap((kind, row) => (kind === ROW_KIND.visual ? [row] : [])));
  const { patch, merge } = model.geometry;
  report.compare(`${prefix}image_grids`, sequence.pictures.flatMap(({ height, width }) => [height / patch / merge, width / patch / merge]));
  if (cached) report.compare(`${prefix}tokens_forwarded`, [kinds.length]);
  else report.skip(`${prefix}tokens_forwarded`);
}

/** Hidden states, logits and layer inputs of one sequence. */
function compareStates(report: Report, prefix: string, passes: readonly RanPass[], id: number, states: ReadonlyMap<string, readonly Float32Array[]>, width: number, vocab: number): void {
  const numberOf = new Map(passes.map((ran, n) => [ran, n]));
  const rows = (name: string): number[] => rowsOfSequence(passes, id, width, (ran) => states.get(name)?.[numberOf.get(ran) as number] as Float32Array);
  const embeds = rows('layer0');
  report.compare(`${prefix}embeds`, embeds);
  report.compare(`${prefix}hidden`, rows('hidden'));
  for (const name of states.keys()) if (name.startsWith('layer')) report.compare(`${prefix}${name}.input`, rows(name));
  const kinds = rowsOfSequence(passes, id, 1, ({ pass }) => pass.kind);
  report.compare(`${prefix}latent_inputs`, kinds.flatMap((kind, row) => (kind === ROW_KIND.latent ? embeds.slice(row * width, (row + 1) * width) : [])));
  const logits = rowsOfSequence(passes, id, vocab, ({ result }) => result.logits);
  report.compare(`${prefix}next_logits`, logits.slice(-vocab));
  const words = report.golden.shape(`out.${prefix}logits`)[0] as number;
  report.compare(`${prefix}logits`, logits.slice(logits.length - (words + 1) * vocab, logits.length - vocab));
}

/** What belongs to replay alone: nothing is replayed in a supported case, and the attention maps come with it. */
function compareReplay(report: Report, prefix: string): void {
  for (const key of report.golden.names(`out.${prefix}`)) {
    const name = key.slice(4);
    if (/\.step\d+\.replayed$/.test(name)) report.compare(name, [0]);
    else if (/\.run\d+\.last_row$/.test(name)) report.skip(name);
  }
}

async function readStates(session: NativeSession, passes: readonly RanPass[], layers: number): Promise<Map<string, Float32Array[]>> {
  const states = new Map<string, Float32Array[]>();
  for (let layer = 0; layer < layers; layer++) {
    states.set(`layer${layer}`, await Promise.all(passes.map(async ({ result }) => (await session.read('layer_input', result.pass, layer)).data)));
  }
  states.set('hidden', await Promise.all(passes.map(async ({ result }) => (await session.read('hidden', result.pass, 0)).data)));
  return states;
}

/** Runs one case file. `layers` and `width` are the decoder's. Returns why it cannot be run, if so. */
export async function runCase(report: Report, model: ModelView, layers: number, width: number, recompute = false): Promise<string | undefined> {
  const { golden } = report;
  const preset = golden.entry.preset as unknown as PresetSwitches;
  const sequences = sequencesOf(golden);
  const reason = whyUnsupported(preset, sequences.some(({ latents, pictures }) => latents > 0 && pictures.length > 0));
  if (reason !== undefined) return reason;

  await model.native.enableTraining();
  await model.native.zeroGradients();
  const session = model.openSession({ training: true, recompute, detachLatents: preset.latent_gradient === 'detached', visionGradient: true });
  try {
    const passes: NativePass[] = [];
    const lengths = new Map<number, number>();
    const run = await runBatch(session, sequences, model.geometry, {
      feedLastWord: true,
      adjust: (pass) => {
        const placed = preset.positions === 'sequential' ? withSequentialPositions(pass, lengths) : pass;
        passes.push({ ...placed, logitRows: Int32Array.from(placed.kind.keys()) });
        return passes.at(-1) as NativePass;
      },
    });
    const ran = run.results.map((result, n): RanPass => ({ pass: passes[n] as NativePass, result }));
    const states = await readStates(session, ran, layers);
    const visual = (await session.read('visual', 0, 0)).data;
    const { losses } = await session.loss({ pass: run.targets.pass, row: run.targets.row, target: run.targets.target, scale: 1 / run.targets.row.length });
    let offset = 0;
    sequences.forEach((sequence, i) => {
      const prefix = `s${i}.`;
      compareRows(report, prefix, sequence, ran, i, model, golden.entry.form !== 'full');
      compareStates(report, prefix, ran, i, states, width, model.geometry.vocab);
      const tokens = (golden.shape(`out.${prefix}image_tokens`)[0] as number) * width;
      report.compare(`${prefix}image_tokens`, visual.subarray(offset, offset + tokens));
      offset += tokens;
      report.compare(`${prefix}losses`, losses.filter((_, n) => run.targets.sequence[n] === i));
      compareReplay(report, prefix);
    });
    const crossEntropy = losses.reduce((sum, loss) => sum + loss, 0) / losses.length;
    report.compare('loss.cross_entropy', [crossEntropy]);
    report.compare('loss.sr', [0]);
    report.compare('loss.total', [crossEntropy]);
    await session.backward();
  } finally {
    session.dispose();
  }
  for (const key of golden.names('out.grad.')) report.compare(key.slice(4), await model.native.readParameter(key.slice('out.grad.'.length), 'gradient'));
  return undefined;
}
