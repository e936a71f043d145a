/** A model without arithmetic: logits are a hash of the sequence's rows so far. Records every call. */
import type { GenerativeModel } from '../../lib/decode/generate';
import { extraShapes } from '../../lib/model/extras';
import { PLAIN, type Preset } from '../../lib/model/preset';
import type { NativeModel, NativePass, NativePassResult, NativePictures, NativeReplayResult, NativeRoutingTrace, NativeSession, NativeSessionOptions } from '../../lib/native';
import { mix } from '../../lib/random';

export const GEOMETRY = Object.freeze({ vocab: 32, hidden: 8, layers: 4, imageToken: 30, videoToken: 31, patch: 14, merge: 2, temporal: 2 });
export const END = 29;

export interface FakeOptions {
  /** Logits [vocab] after a sequence's rows, "kind:index" each; the default hashes them. */
  logitsOf?: (rows: readonly string[]) => Float32Array;
  /** Default: neither replay nor routing. */
  preset?: Preset;
}

export interface FakeModel extends GenerativeModel<string> {
  passes: NativePass[];
  /** sizes of every encode. */
  encoded: Int32Array[];
  freed: number[];
  openSessions: number;
  tokenForwards: number;
  /** What sessions were opened with. */
  opened: NativeSessionOptions[];
  /** Every other call, in order: its name, and its ids as JSON where it has some. */
  calls: string[];
  pictures: Map<number, NativePictures>;
}

export function hashedLogits(rows: readonly string[]): Float32Array {
  const key = mix(...[...rows.join(' ')].map((character) => character.charCodeAt(0)));
  return Float32Array.from({ length: GEOMETRY.vocab }, (_, id) => (id === END ? -1 : (mix(key, id) / 2 ** 32) * 4));
}

export function fakeModel({ logitsOf = hashedLogits, preset = PLAIN }: FakeOptions = {}): FakeModel {
  const parameters = extraShapes(preset, GEOMETRY.hidden).map(({ name, shape }) => ({ name, shape: [...shape], dtype: 'f32' as const, trainable: false }));
  const model: FakeModel = {
    native: { parameters: () => parameters } as Partial<NativeModel> as NativeModel, geometry: GEOMETRY, preset, endIds: [END],
    passes: [], encoded: [], freed: [], openSessions: 0, tokenForwards: 0, opened: [], calls: [], pictures: new Map(),
    openSession(options) {
      model.opened.push(options);
      return fakeSession(model, options, logitsOf);
    },
    decodeText: (ids) => ids.map((id) => ` w${id}`).join(''),
    encodeMessages: async (text) => ({ promptIds: text.split(' ').map(Number), pictures: [] }),
  };
  return model;
}

interface FakeSequence {
  rows: string[];
  /** Image tokens that were replayed, how many there are, and whether the last pass looked at them. */
  used: Set<number>;
  tokens: number;
  looked: boolean;
}

function fakeSession(model: FakeModel, options: NativeSessionOptions, logitsOf: (rows: readonly string[]) => Float32Array): NativeSession {
  const sequences = new Map<number, FakeSequence>();
  const stored: string[] = [];
  let made = 0;
  let visual = 0;
  let replays = 0;
  model.openSessions++;
  const record = (name: string, ids: ArrayLike<number>): FakeSequence[] => {
    model.calls.push(`${name}${JSON.stringify(Array.from(ids))}`);
    return Array.from(ids, (id) => sequences.get(id)!);
  };
  const session: Partial<NativeSession> = {
    add() {
      sequences.set(made, { rows: [], used: new Set(), tokens: 0, looked: false });
      return made++;
    },
    async free(sequence) {
      sequences.delete(sequence);
      model.freed.push(sequence);
    },
    async encode(_frames, sizes) {
      const first = visual;
      model.encoded.push(sizes);
      for (let n = 0; n < sizes.length; n += 3) visual += Math.ceil(sizes[n]! / 2) * (sizes[n + 1]! / 28) * (sizes[n + 2]! / 28);
      return first;
    },
    async setPictures(id, pictures) {
      const [own] = record('setPictures', [id]);
      model.pictures.set(id, pictures);
      own!.tokens = pictures.columns.length;
    },
    async replay(ids, { targets, saliency }) {
      const owners = record(targets ? 'replayTargets' : saliency ? 'replaySaliency' : 'replay', ids);
      const result = fakeReplay(owners, stored, options.replay!.patches, replays++, targets);
      return { ...result, ...(saliency ? { saliency: Float32Array.from(owners.flatMap(({ tokens }) => Array.from({ length: tokens }, (_, i) => i + 1))) } : {}) };
    },
    async keepLatents(ids) {
      for (const _ of record('keepLatents', ids)) stored.push('2:0');   // as a latent row's own
      return stored.length - ids.length;
    },
    async restart(ids) {
      for (const own of record('restart', ids)) own.rows = [];
    },
    async extend(pass): Promise<NativePassResult> {
      model.passes.push(pass);
      model.tokenForwards += pass.kind.length;
      const after = new Map<number, Float32Array>();
      pass.sequences.forEach((id, b) => {
        const own = sequences.get(id)!;
        // A visual or stored row's number depends on the batch; what it shows does not.
        for (let r = pass.cuSeqlens[b]!; r < pass.cuSeqlens[b + 1]!; r++) {
          own.rows.push(pass.kind[r] === 1 ? '1' : pass.kind[r] === 4 ? stored[pass.index[r]!]! : `${pass.kind[r]}:${pass.index[r]}`);
        }
        own.looked = pass.saliency?.[b] === 1;
        after.set(pass.cuSeqlens[b + 1]! - 1, logitsOf(own.rows));
      });
      const logits = Float32Array.from(Array.from(pass.logitRows ?? []).flatMap((row) => Array.from(after.get(row)!)));
      return { pass: model.passes.length - 1, logits, hidden: new Float32Array(0), ...(pass.traceRouting ? { routing: tracesOf(pass, options.routing!.layers) } : {}) };
    },
    tokenForwards: () => model.tokenForwards,
    dispose() {
      model.openSessions--;
    },
  };
  return session as NativeSession;
}

/** Replays the tokens with the highest numbers that are left, which is also their saliency. */
function fakeReplay(owners: readonly FakeSequence[], stored: string[], patches: number, replay: number, targets: boolean): NativeReplayResult {
  const [rows, firstRow, cuSelected, selected]: number[][] = [[], [], [0], []];
  for (const own of owners) {
    if (!own.looked) throw new Error('the last pass collected no saliency');
    own.looked = false;
    const chosen = Array.from({ length: own.tokens }, (_, i) => own.tokens - 1 - i).filter((i) => !own.used.has(i)).slice(0, patches);
    for (const i of chosen) own.used.add(i);
    firstRow!.push(stored.length);
    stored.push(...chosen.map((i) => `B${i}`));
    rows!.push(chosen.length);
    selected!.push(...chosen);
    cuSelected!.push(selected!.length);
  }
  return {
    replay, rows: Int32Array.from(rows!), firstRow: Int32Array.from(firstRow!), cuSelected: Int32Array.from(cuSelected!), selected: Int32Array.from(selected!),
    weights: Float32Array.from(selected!, (i) => i + 1), windows: new Int32Array(6 * owners.length), boxes: new Int32Array(4 * owners.length),
    srLosses: Float32Array.from(rows!, (count, b) => (targets && count > 0 ? 1 + 10 * replay + b : NaN)),
  };
}

/** Every third packed row of a pass. */
function tracesOf(pass: NativePass, layers: readonly number[]): NativeRoutingTrace[] {
  const all = Int32Array.from(pass.kind.keys());
  return layers.map((layer) => ({ layer, depth: 2, candidates: all, scores: new Float32Array(all.length), gates: new Float32Array(all.length), routed: all.filter((row) => row % 3 === 0) }));
}

/** A black picture of merged rows x columns. */
export function picture(rows: number, columns: number): { pixels: Uint8Array; frames: number; height: number; width: number } {
  return { pixels: new Uint8Array(rows * columns * 28 * 28 * 3), frames: 1, height: rows * 28, width: columns * 28 };
}
