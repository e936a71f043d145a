/** Causal probes: a plain run, and runs whose latents, replay blocks or routes are given. Whole batches, through the code that training uses. */
import { nearestWords } from '../../lib/evaluate/nearestWords';
import { REPLACEMENTS, replaceLatents } from '../../lib/evaluate/replaceLatents';
import type { Preset } from '../../lib/model/preset';
import { openReasoning, type ModelView } from '../../lib/model/reasoning';
import { native, type NativePass } from '../../lib/native';
import { runBatch, type BatchOptions, type BatchRun, type SequenceInput } from '../../lib/train/batch';
import type { SequenceProbe, SequenceRoute } from '../../lib/train/probes';
import { presetOf, sequencesOf } from './cases';
import type { Golden, Report } from './goldens';

interface ProbedRun extends BatchRun {
  passes: NativePass[];
}

/** Runs a batch in a session of its own, with the logits of all rows and a trace of the routing. */
async function run(model: ModelView, preset: Preset, sequences: readonly SequenceInput[], options: BatchOptions = {}): Promise<ProbedRun> {
  const session = openReasoning('parity', model, preset, { training: false, recompute: false, visionGradient: false });
  const passes: NativePass[] = [];
  try {
    const ran = await runBatch(session, sequences, model.geometry, {
      preset, keepSteps: true, feedLastWord: true, ...options,
      adjust: (pass) => {
        passes.push({ ...pass, logitRows: Int32Array.from(pass.kind.keys()), traceRouting: true });
        return passes.at(-1)!;
      },
    });
    return { ...ran, passes };
  } finally {
    session.dispose();
  }
}

/** Logits [n, V] of the rows that predict a sequence's words, and those words. */
function predictions({ results, targets }: ProbedRun, sequence: number, vocab: number): { logits: Float32Array; words: Int32Array } {
  const own = [...targets.sequence.keys()].filter((n) => targets.sequence[n] === sequence);
  const rows = own.map((n) => results.find(({ pass }) => pass === targets.pass[n])!.logits.subarray(targets.row[n]! * vocab, (targets.row[n]! + 1) * vocab));
  return { logits: Float32Array.from(rows.flatMap((row) => [...row])), words: Int32Array.from(own, (n) => targets.target[n]!) };
}

/** Rows of a sequence that took an extra pass, over all passes of the cached form. */
function routedRows({ results, passes }: ProbedRun, sequence: number, layer: number, depth: number): number[] {
  let before = 0;
  return passes.flatMap(({ sequences, cuSeqlens }, n) => {
    const b = sequences.indexOf(sequence);
    if (b < 0) return [];
    const [start, end] = [cuSeqlens[b]!, cuSeqlens[b + 1]!];
    const trace = results[n]!.routing!.find((one) => one.layer === layer && one.depth === depth);
    const rows = Array.from(trace?.routed ?? []).filter((row) => row >= start && row < end).map((row) => row - start + before);
    before += end - start;
    return rows;
  });
}

async function compareRun(report: Report, name: string, ran: ProbedRun, vocab: number): Promise<void> {
  const losses: number[] = [];
  for (const [id, { latents }] of ran.steps!.entries()) {
    const prefix = `${name}.s${id}.`;
    const { logits, words } = predictions(ran, id, vocab);
    losses.push(...(await native().ops.crossEntropy(logits, words, 1)).losses);
    if (!report.golden.has(`out.${prefix}logits`)) continue;   // the fixtures leave out what is the same as another run's
    report.compare(`${prefix}logits`, logits);
    report.compare(`${prefix}latent_inputs`, latents);
    for (const key of report.golden.names(`out.${prefix}layer`)) {
      const [, layer, depth] = /layer(\d+)\.pass(\d+)\.routed$/.exec(key)!;
      report.compare(key.slice('out.'.length), routedRows(ran, id, Number(layer), Number(depth)));
    }
  }
  report.compare(`${name}.cross_entropy`, [losses.reduce((sum, loss) => sum + loss, 0) / losses.length]);
}

/** Latent z_t is the final hidden state of the last row of pass t - 1, whose logits are therefore those of the latent. */
function compareWords(report: Report, { passes, results }: ProbedRun, sequences: readonly SequenceInput[], vocab: number): void {
  sequences.forEach(({ latents }, id) => {
    const logits = Float32Array.from(Array.from({ length: latents }, (_, step) => {
      const { sequences: ids, cuSeqlens } = passes[step]!;
      const row = cuSeqlens[ids.indexOf(id) + 1]! - 1;
      return [...results[step]!.logits.subarray(row * vocab, (row + 1) * vocab)];
    }).flat());
    report.compare(`words.s${id}.logits`, logits);
    report.compare(`words.s${id}.ids`, nearestWords(logits, vocab, report.golden.shape(`out.words.s${id}.ids`)[1]!));
  });
}

function forcedOf(golden: Golden, sequence: number): SequenceRoute[] {
  return golden.names(`in.s${sequence}.layer`).map((key) => {
    const [, layer, depth] = /layer(\d+)\.pass(\d+)\.forced$/.exec(key)!;
    return { layer: Number(layer), depth: Number(depth), rows: golden.i32(key) };
  });
}

export async function runProbes(report: Report, model: ModelView): Promise<void> {
  const { golden } = report;
  const { vocab, hidden, layers } = model.geometry;
  const preset = presetOf(golden.entry.preset as Record<string, unknown>, layers);
  const sequences = sequencesOf(golden);
  const probed = (probes: readonly SequenceProbe[]): SequenceInput[] => sequences.map((sequence, id) => ({ ...sequence, probe: probes[id]! }));
  const plain = await run(model, preset, sequences);
  await compareRun(report, 'plain', plain, vocab);
  compareWords(report, plain, sequences, vocab);

  const noise = sequences.map((_, id) => golden.f32(`in.s${id}.noise`));
  const orders = sequences.map((_, id) => golden.i32(`in.s${id}.order`));
  for (const kind of REPLACEMENTS) {
    const swapped = replaceLatents(kind, plain.steps!.map(({ latents }) => latents), hidden, { noise, orders });
    await compareRun(report, `${kind}.kept`, await run(model, preset, probed(swapped.map((latents, id) => ({ latents, blocks: plain.steps![id]!.blocks })))), vocab);
    await compareRun(report, `${kind}.reselected`, await run(model, preset, probed(swapped.map((latents) => ({ latents })))), vocab);
  }
  await compareRun(report, 'no_replay', await run(model, preset, probed(sequences.map(() => ({ blocks: 'dropped' })))), vocab);
  await compareRun(report, 'routing_off', await run(model, { ...preset, routedLayers: [] }, sequences), vocab);
  await compareRun(report, 'routing_forced', await run(model, preset, sequences, { forcedRoutes: sequences.map((_, id) => forcedOf(golden, id)) }), vocab);
}
