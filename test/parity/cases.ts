/** Goldens of ragged batches: forward, losses and the gradient of every parameter, through the code that training uses. */
import { replayedImages, type PromptImage, type ReasoningForm } from '../../lib/model/passes';
import { makePreset, routes, type Preset, type PresetChanges } from '../../lib/model/preset';
import type { TextConfig } from '../../lib/model/config';
import { formOf, openReasoning, type ModelView } from '../../lib/model/reasoning';
import type { NativePass, NativePassResult, NativeSession } from '../../lib/native';
import type { Picture } from '../../lib/model/image';
import { ROW_KIND } from '../../lib/native';
import { countSuperResolved, replayLosses, runBatch, type BatchReplay, type BatchRun, type ReplayLosses, type SequenceInput } from '../../lib/train/batch';
import type { Golden, Report } from './goldens';

/** A golden's preset: keys of the oracle's presets.py, without the penalty, which the oracle does not have. */
export function presetOf(switches: Record<string, unknown>, layers: number): Preset {
  const camel = Object.fromEntries(Object.entries(switches).map(([key, value]) => [key.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase()), value]));
  return makePreset({ ...camel, routerPenalty: 0 } as PresetChanges, layers);
}

export function pictureOf(golden: Golden, name: string, original?: string): Picture {
  const shape = golden.shape(name);
  const [frames, height, width] = shape.length === 4 ? (shape as [number, number, number, number]) : [1, ...(shape as [number, number, number])];
  const picture = { pixels: golden.u8(name), frames, height, width };
  if (original === undefined) return picture;
  const [high, wide] = golden.shape(original) as [number, number];
  return { ...picture, original: { pixels: golden.u8(original), height: high, width: wide } };
}

interface CaseSequence extends SequenceInput {
  wordClasses: Int32Array;
}

export function sequencesOf(golden: Golden): CaseSequence[] {
  return Array.from({ length: golden.one('in.sequences') }, (_, i) => ({
    promptIds: golden.i32(`in.s${i}.prompt`), latents: golden.one(`in.s${i}.latents`), words: golden.i32(`in.s${i}.words`),
    wordClasses: golden.i32(`in.s${i}.word_classes`),
    pictures: Array.from({ length: golden.one(`in.s${i}.images`) }, (_, j) => pictureOf(golden, `in.s${i}.image${j}.resized`, `in.s${i}.image${j}.original`)),
  }));
}

interface RanPass { pass: NativePass; result: NativePassResult }

/** What one sequence ran: its passes in order, and which packed rows of each are its own. In the form 'recompute' the last pass has them all. */
interface SequenceRun {
  sequence: CaseSequence;
  /** All passes, for what is counted; `kept` are those that make up the sequence's rows. */
  all: Slice[];
  kept: Slice[];
  images: PromptImage[];
  replays: (BatchReplay & { index: number })[];
}
interface Slice { ran: RanPass; start: number; end: number; offset: number }

function sequenceRun(sequence: CaseSequence, id: number, passes: readonly RanPass[], replays: readonly BatchReplay[], model: ModelView, preset: Preset): SequenceRun {
  let offset = 0;
  const all = passes.flatMap((ran): Slice[] => {
    const b = ran.pass.sequences.indexOf(id);
    if (b < 0) return [];
    const slice = { ran, start: ran.pass.cuSeqlens[b]!, end: ran.pass.cuSeqlens[b + 1]!, offset: formOf(preset) === 'recompute' ? 0 : offset };
    offset += slice.end - slice.start;
    return [slice];
  });
  return {
    sequence, all, kept: formOf(preset) === 'recompute' ? all.slice(-1) : all, images: replayedImages(sequence, model.geometry, preset.allImages),
    replays: replays.flatMap((replay) => (replay.sequences.includes(id) ? [{ ...replay, index: replay.sequences.indexOf(id) }] : [])),
  };
}

/** A sequence's rows of `width` values out of packed rows. */
function rowsOf(slices: readonly Slice[], width: number, packed: (ran: RanPass) => ArrayLike<number>): number[] {
  return slices.flatMap(({ ran, start, end }) => Array.from({ length: (end - start) * width }, (_, i) => packed(ran)[start * width + i]!));
}

const [TEXT, IMAGE, REPLAY, LATENT] = [0, 1, 2, 3];

/** Classes by the layout [prompt | B1 z1 | B2 z2 | ... | words], from what each replay said it added. */
function classesOf({ sequence, kept, replays }: SequenceRun): number[] {
  const kinds = rowsOf(kept, 1, ({ pass }) => pass.kind);
  const prompt = kinds.slice(0, sequence.promptIds.length).map((kind) => (kind === ROW_KIND.visual ? IMAGE : TEXT));
  const steps = Array.from({ length: sequence.latents }, (_, step) => {
    const replay = replays.find((other) => other.step === step);
    return [...new Array<number>(replay ? replay.result.rows[replay.index]! : 0).fill(REPLAY), LATENT];
  });
  return [...prompt, ...steps.flat(), ...sequence.wordClasses];
}

function compareRows(report: Report, prefix: string, run: SequenceRun): void {
  const { sequence, kept, all, images } = run;
  const axes = [0, 1, 2].map((axis) => rowsOf(kept, 1, ({ pass }) => pass.positions.subarray(axis * pass.kind.length, (axis + 1) * pass.kind.length)));
  const prompt = sequence.promptIds.length;
  report.compare(`${prefix}positions`, axes.flat());
  report.compare(`${prefix}delta`, [Math.max(...axes.map((axis) => Math.max(...axis.slice(0, prompt)))) + 1 - prompt]);
  report.compare(`${prefix}classes`, classesOf(run));
  report.compare(`${prefix}image_columns`, images.flatMap(({ columns }) => columns));
  report.compare(`${prefix}image_grids`, images.flatMap(({ rows, width }) => [rows, width]));
  report.compare(`${prefix}tokens_forwarded`, [all.reduce((sum, { start, end }) => sum + end - start, 0)]);
}

/** Hidden states, logits and layer inputs of one sequence. */
function compareStates(report: Report, prefix: string, run: SequenceRun, states: ReadonlyMap<RanPass, ReadonlyMap<string, Float32Array>>, width: number, vocab: number, visual: Float32Array): void {
  const rows = (name: string): number[] => rowsOf(run.kept, width, (ran) => states.get(ran)!.get(name)!);
  const embeds = rows('layer0');
  report.compare(`${prefix}embeds`, embeds);
  report.compare(`${prefix}hidden`, rows('hidden'));
  for (const name of states.values().next().value!.keys()) if (name.startsWith('layer')) report.compare(`${prefix}${name}.input`, rows(name));
  report.compare(`${prefix}latent_inputs`, classesOf(run).flatMap((kind, row) => (kind === LATENT ? embeds.slice(row * width, (row + 1) * width) : [])));
  const logits = rowsOf(run.kept, vocab, ({ result }) => result.logits);
  report.compare(`${prefix}next_logits`, logits.slice(-vocab));
  const words = report.golden.shape(`out.${prefix}logits`)[0] as number;
  report.compare(`${prefix}logits`, logits.slice(logits.length - (words + 1) * vocab, logits.length - vocab));
  const index = rowsOf(run.kept, 1, ({ pass }) => pass.index);
  report.compare(`${prefix}image_tokens`, run.images.flatMap(({ columns }) => columns.flatMap((column) => Array.from(visual.subarray(index[column]! * width, (index[column]! + 1) * width)))));
}

/** Router scores, gates and routed rows, merged over the passes of a sequence. */
function compareRouting(report: Report, prefix: string, { kept }: SequenceRun): void {
  const names = new Set(report.golden.names(`out.${prefix}layer`).flatMap((key) => /layer(\d+)\.pass(\d+)\./.exec(key)?.[0] ?? []));
  for (const name of names) {
    const [layer, depth] = name.match(/\d+/g)!.map(Number);
    const parts = kept.flatMap(({ ran, start, end, offset }) => (ran.result.routing ?? []).filter((trace) => trace.layer === layer && trace.depth === depth).map((trace) => {
      const own = [...trace.candidates.keys()].filter((n) => trace.candidates[n]! >= start && trace.candidates[n]! < end);
      const routed = Array.from(trace.routed).filter((row) => row >= start && row < end);
      return {
        candidates: own.map((n) => trace.candidates[n]! - start + offset), scores: own.map((n) => trace.scores[n]!), routed: routed.map((row) => row - start + offset),
        gates: own.filter((n) => routed.includes(trace.candidates[n]!)).map((n) => trace.gates[n]!),
      };
    }));
    for (const key of ['candidates', 'scores', 'routed', 'gates'] as const) report.compare(`${prefix}${name}${key}`, parts.flatMap((part) => part[key]));
  }
}

function tokensOf({ images }: SequenceRun): number {
  return images.reduce((sum, { columns }) => sum + columns.length, 0);
}

/** Every latent step's replay. */
async function compareReplay(report: Report, prefix: string, run: SequenceRun, runs: readonly SequenceRun[], session: NativeSession): Promise<void> {
  for (let step = 0; step < run.sequence.latents; step++) {
    const replay = run.replays.find((other) => other.step === step);
    const name = `${prefix}step${step}.`;
    const rows = replay ? replay.result.rows[replay.index]! : 0;
    report.compare(`${name}replayed`, [rows]);
    if (replay === undefined || rows === 0) continue;
    const { result, index } = replay;
    const [first, end] = [result.cuSelected[index]!, result.cuSelected[index + 1]!];
    const saliencyStart = replay.sequences.slice(0, index).reduce((sum, place) => sum + tokensOf(runs[place]!), 0);
    const tokens = tokensOf(run);
    report.compare(`${name}saliency`, result.saliency!.subarray(saliencyStart, saliencyStart + tokens));
    report.compare(`${name}selected`, result.selected.subarray(first, end));
    report.compare(`${name}weights`, result.weights.subarray(first, end));
    report.compare(`${name}window`, result.windows.subarray(6 * index, 6 * index + 6));
    report.compare(`${name}box`, result.boxes.subarray(4 * index, 4 * index + 4));
    const { block, b, f, u, crop } = await session.readReplay(result.replay, index);
    for (const [key, values] of Object.entries({ block, b, f, u, crop })) report.compare(`${name}${key}`, values);
    report.compare(`${name}sr_loss`, result.srLosses.subarray(index, index + 1));
  }
}

async function readStates(session: NativeSession, ran: readonly RanPass[], layers: number): Promise<Map<RanPass, Map<string, Float32Array>>> {
  const states = new Map<RanPass, Map<string, Float32Array>>();
  for (const pass of ran) {
    const of = new Map<string, Float32Array>();
    for (let layer = 0; layer < layers; layer++) of.set(`layer${layer}`, (await session.read('layer_input', pass.result.pass, layer)).data);
    of.set('hidden', (await session.read('hidden', pass.result.pass, 0)).data);
    states.set(pass, of);
  }
  return states;
}

/** Attention of the last row of each call, all layers and heads, in f64 from the queries and keys of the tape: the session itself never forms it. */
async function compareLastRows(report: Report, prefix: string, { all }: SequenceRun, session: NativeSession, form: ReasoningForm, text: TextConfig): Promise<void> {
  const { heads, kvHeads, headDim: d, layers } = text;
  for (const [call, last] of all.entries()) {
    const seen = form === 'recompute' ? [last] : all.slice(0, call + 1);
    const attention: number[] = [];
    for (let layer = 0; layer < layers; layer++) {
      const parts = await Promise.all(seen.map(async ({ ran, start, end }) => {
        const { data, width } = await session.read('layer_qkv', ran.result.pass, layer);
        return Array.from({ length: end - start }, (_, n) => data.subarray((start + n) * width, (start + n + 1) * width));
      }));
      const rows = parts.flat();
      for (let head = 0; head < heads; head++) {
        const q = rows.at(-1)!.subarray(head * d, (head + 1) * d);
        const key = heads * d + Math.floor(head / (heads / kvHeads)) * d;
        const scores = rows.map((row) => q.reduce((sum, x, i) => sum + x * row[key + i]!, 0) / Math.sqrt(d));
        const top = Math.max(...scores);
        const weights = scores.map((score) => Math.exp(score - top));
        const sum = weights.reduce((a, b) => a + b, 0);
        attention.push(...weights.map((weight) => weight / sum));
      }
    }
    const name = `${prefix}run${call}.last_row`;
    if (report.golden.has(`out.${name}`)) report.compare(name, attention);
  }
}

/** Runs one case file; recompute: activations are computed again in the backward pass. */
export async function runCase(report: Report, model: ModelView, text: TextConfig, recompute: boolean): Promise<void> {
  const { golden } = report;
  const { layers, hidden: width } = text;
  const preset = presetOf(golden.entry.preset as Record<string, unknown>, layers);
  const sequences = sequencesOf(golden);
  await model.native.enableTraining();
  await model.native.zeroGradients();
  const session = openReasoning('parity', model, preset, { training: true, recompute, visionGradient: true });
  try {
    const passes: NativePass[] = [];
    const targets = preset.replay && preset.tokenSr;
    const run = await runBatch(session, sequences, model.geometry, {
      preset, targets, saliency: true, feedLastWord: true,
      adjust: (pass) => {
        passes.push({ ...pass, logitRows: Int32Array.from(pass.kind.keys()), traceRouting: routes(preset) });
        return passes.at(-1)!;
      },
    });
    const ran = run.results.map((result, n): RanPass => ({ pass: passes[n]!, result }));
    const states = await readStates(session, ran, layers);
    const visual = (await session.read('visual', 0, 0)).data;
    const runs = sequences.map((sequence, id) => sequenceRun(sequence, id, ran, run.replays, model, preset));
    for (const [id, one] of runs.entries()) {
      const prefix = `s${id}.`;
      compareRows(report, prefix, one);
      compareStates(report, prefix, one, states, width, model.geometry.vocab, visual);
      compareRouting(report, prefix, one);
      await compareReplay(report, prefix, one, runs, session);
      if (!recompute) await compareLastRows(report, prefix, one, session, formOf(preset), text);
    }
    const { losses, replayed } = await lossOf(session, run, sequences, model, preset);
    const crossEntropy = losses.reduce((sum, loss) => sum + loss, 0) / losses.length;
    const srLoss = replayed.losses.reduce((sum, loss, n) => sum + loss * replayed.share[n]!, 0);
    runs.forEach((_, id) => {
      report.compare(`s${id}.losses`, losses.filter((__, n) => run.targets.sequence[n] === id));
      if (golden.has(`out.s${id}.sr_loss`)) report.compare(`s${id}.sr_loss`, [sequenceLoss(replayed, run.replays, id)]);
    });
    report.compare('loss.cross_entropy', [crossEntropy]);
    report.compare('loss.sr', [srLoss]);
    report.compare('loss.total', [crossEntropy + preset.srWeight * srLoss]);
    await session.backward(0);
  } finally {
    session.dispose();
  }
  for (const key of golden.names('out.grad.')) report.compare(key.slice(4), await model.native.readParameter(key.slice('out.grad.'.length), 'gradient'));
}

/** The loss of a golden's batch, from which `backward` starts. */
async function lossOf(session: NativeSession, run: BatchRun, sequences: readonly CaseSequence[], { geometry }: ModelView, preset: Preset): Promise<{ losses: Float32Array; replayed: ReplayLosses }> {
  const replayed = replayLosses(run, sequences, geometry, preset, countSuperResolved(sequences, geometry, preset));
  const { losses } = await session.loss({
    pass: run.targets.pass, row: run.targets.row, target: run.targets.target, scale: 1 / run.targets.row.length,
    replay: replayed.replay, index: replayed.index, weight: replayed.share.map((share) => share * preset.srWeight),
  });
  return { losses, replayed };
}

/** Leaves the gradients of a golden's loss in the model, and compares nothing. */
export async function addGradients(golden: Golden, model: ModelView, recompute: boolean): Promise<void> {
  const preset = presetOf(golden.entry.preset as Record<string, unknown>, model.geometry.layers);
  const sequences = sequencesOf(golden);
  const session = openReasoning('parity', model, preset, { training: true, recompute, visionGradient: true });
  try {
    const run = await runBatch(session, sequences, model.geometry, { preset, targets: preset.replay && preset.tokenSr, feedLastWord: true });
    await lossOf(session, run, sequences, model, preset);
    await session.backward(0);
  } finally {
    session.dispose();
  }
}

/** Mean of one sequence's super-resolution losses. */
function sequenceLoss(replayed: ReturnType<typeof replayLosses>, replays: readonly BatchReplay[], id: number): number {
  const own = Array.from(replayed.losses).filter((_, n) => replays.find(({ result }) => result.replay === replayed.replay[n])!.sequences[replayed.index[n]!] === id);
  return own.reduce((sum, loss) => sum + loss, 0) / own.length;
}
