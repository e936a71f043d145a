/** A model without arithmetic: logits are a hash of the sequence's rows so far. Records every call. */
import type { GenerativeModel } from '../../lib/decode/generate';
import type { NativeModel, NativePass, NativePassResult, NativeSession } from '../../lib/native';
import { mix } from '../../lib/random';

export const GEOMETRY = Object.freeze({ vocab: 32, imageToken: 30, videoToken: 31, patch: 14, merge: 2, temporal: 2 });
export const END = 29;

export interface FakeOptions {
  /** Logits [vocab] after a sequence's rows, "kind:index" each; the default hashes them. */
  logitsOf?: (rows: readonly string[]) => Float32Array;
}

export interface FakeModel extends GenerativeModel<string> {
  passes: NativePass[];
  /** sizes of every encode. */
  encoded: Int32Array[];
  freed: number[];
  openSessions: number;
  tokenForwards: number;
}

export function hashedLogits(rows: readonly string[]): Float32Array {
  const key = mix(...[...rows.join(' ')].map((character) => character.charCodeAt(0)));
  return Float32Array.from({ length: GEOMETRY.vocab }, (_, id) => (id === END ? -1 : (mix(key, id) / 2 ** 32) * 4));
}

export function fakeModel({ logitsOf = hashedLogits }: FakeOptions = {}): FakeModel {
  const model: FakeModel = {
    native: {} as NativeModel, geometry: GEOMETRY, endIds: [END], passes: [], encoded: [], freed: [], openSessions: 0, tokenForwards: 0,
    openSession: () => fakeSession(model, logitsOf),
    decodeText: (ids) => ids.map((id) => ` w${id}`).join(''),
    encodeMessages: async (text) => ({ promptIds: text.split(' ').map(Number), pictures: [] }),
  };
  return model;
}

function fakeSession(model: FakeModel, logitsOf: (rows: readonly string[]) => Float32Array): NativeSession {
  const rows = new Map<number, string[]>();
  let made = 0;
  let visual = 0;
  model.openSessions++;
  const session: Partial<NativeSession> = {
    add() {
      rows.set(made, []);
      return made++;
    },
    async free(sequence) {
      rows.delete(sequence);
      model.freed.push(sequence);
    },
    async encode(_frames, sizes) {
      const first = visual;
      model.encoded.push(sizes);
      for (let n = 0; n < sizes.length; n += 3) visual += Math.ceil(sizes[n]! / 2) * (sizes[n + 1]! / 28) * (sizes[n + 2]! / 28);
      return first;
    },
    async extend(pass): Promise<NativePassResult> {
      model.passes.push(pass);
      model.tokenForwards += pass.kind.length;
      const after = new Map<number, Float32Array>();
      pass.sequences.forEach((id, b) => {
        const own = rows.get(id)!;
        // A visual row's number depends on the batch; what it shows does not.
        for (let r = pass.cuSeqlens[b]!; r < pass.cuSeqlens[b + 1]!; r++) own.push(pass.kind[r] === 1 ? '1' : `${pass.kind[r]}:${pass.index[r]}`);
        after.set(pass.cuSeqlens[b + 1]! - 1, logitsOf(own));
      });
      const logits = Float32Array.from(Array.from(pass.logitRows ?? []).flatMap((row) => Array.from(after.get(row)!)));
      return { pass: model.passes.length - 1, logits, hidden: new Float32Array(0) };
    },
    tokenForwards: () => model.tokenForwards,
    dispose() {
      model.openSessions--;
    },
  };
  return session as NativeSession;
}

/** A black picture of merged rows x columns. */
export function picture(rows: number, columns: number): { pixels: Uint8Array; frames: number; height: number; width: number } {
  return { pixels: new Uint8Array(rows * columns * 28 * 28 * 3), frames: 1, height: rows * 28, width: columns * 28 };
}
