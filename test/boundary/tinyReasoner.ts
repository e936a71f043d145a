/** Sessions with replay and routing over the tiny model, and what they reject. */
import { native, type NativeExtraSpec, type NativeModel, type NativePass, type NativePictures, type NativeSession, type NativeSessionOptions } from '../../lib/native';
import { EXTRAS, REPLAY, ROUTING, tinySpec, tokenPass } from './tinyModel';

export type Loose = Record<string, (...values: unknown[]) => Promise<unknown>>;
export const i32 = (...values: number[]): Int32Array => Int32Array.from(values);
export const u8 = (...values: number[]): Uint8Array => Uint8Array.from(values);
export const OPTIONS: NativeSessionOptions = Object.freeze({ training: false, recompute: false, detachLatents: false, visionGradient: false, replay: REPLAY, routing: ROUTING });

export async function made(extras: readonly NativeExtraSpec[] = EXTRAS): Promise<NativeModel> {
  const model = new (native().Model)({ ...tinySpec(), extras });
  await Promise.all(model.parameters().map(({ name }, n) => model.initialize(name, 'normal', 0.1, n)));
  await model.enableTraining();
  return model;
}

const sessions: NativeSession[] = [];
export function open(model: NativeModel, options: Partial<NativeSessionOptions> = {}): NativeSession {
  sessions.push(new (native().Session)(model, { ...OPTIONS, ...options }));
  return sessions.at(-1)!;
}
export function closeAll(): void {
  for (const session of sessions.splice(0)) session.dispose();
}

export async function expectRejection(promise: unknown, code: string, message: string): Promise<void> {
  expect(Object.prototype.toString.call(promise)).toBe('[object Promise]');
  const error = await (promise as Promise<unknown>).then(() => 'it resolved', (reason: unknown) => reason as { code: string; message: string });
  expect(error).toMatchObject({ code, message });
}

/** 2 x 2 image tokens of an 8 x 8 picture, at rows 1 .. 4. */
export const PICTURES: NativePictures = Object.freeze({
  columns: i32(1, 2, 3, 4), visualRows: i32(0, 1, 2, 3), grids: i32(2, 2), sizes: i32(8, 8), originals: new Uint8Array(3 * 5 * 6).map((_, i) => 41 * i), originalSizes: i32(5, 6),
});
export const promptPass = (id: number): NativePass => ({ ...tokenPass(id, [1, 0, 1, 2, 3, 2]), kind: u8(0, 1, 1, 1, 1, 0), saliency: u8(1) });

/** A session whose sequence has looked at its picture. */
export async function lookedAt(model: NativeModel, options: Partial<NativeSessionOptions> = {}, pictures = PICTURES): Promise<{ session: NativeSession; loose: Loose; id: number }> {
  const session = open(model, options);
  const id = session.add();
  await session.encode(new Uint8Array(3 * 64).map((_, i) => 37 * i), i32(1, 8, 8));
  await session.setPictures(id, pictures);
  await session.extend(promptPass(id));
  return { session, loose: session as unknown as Loose, id };
}
