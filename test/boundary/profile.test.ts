/** Gradient profiles at the addon: what is refused, and with which words. */
import type { NativeModel } from '../../lib/native';
import { i32, lookedAt, made, open, closeAll, expectRejection, type Loose } from './tinyReasoner';
import { tokenPass } from './tinyModel';

let model: NativeModel;
beforeAll(async () => { model = await made(); });
afterAll(() => {
  closeAll();
  model.dispose();
});

test('profile belongs to training', () => {
  expect(() => open(model, { profile: true })).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT', message: '[Session] Expected profile only with training: gradients are what it measures' }));
  expect(() => open(model, { training: true, profile: 1 as unknown as boolean })).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }));
});
test('norms need the option, and a sweep that is done', async () => {
  const { session: plain } = await lookedAt(model, { training: true });
  await expectRejection(plain.gradientNorms(), 'ERR_ARGUMENT', '[gradientNorms] Expected a session with option profile');
  const session = open(model, { training: true, profile: true });
  await expectRejection(session.gradientNorms(), 'ERR_ARGUMENT', '[gradientNorms] Expected a backward() that was completed since the last reset()');
  const { pass } = await session.extend(tokenPass(session.add(), [1, 2, 3]));
  await session.loss({ pass: i32(pass), row: i32(2), target: i32(4), scale: 1 });
  await session.backward(0);
  const { levels, rows, norms } = await session.gradientNorms();
  expect([levels, [...rows], norms.length]).toEqual([3, [3], 9]);
  expect(norms.every((norm) => norm >= 0 && Number.isFinite(norm))).toBe(true);
  expect([norms[6], norms[7], norms[8]! > 0]).toEqual([0, 0, true]);   // the final state of rows that predict nothing
  await session.reset();
  await expectRejection(session.gradientNorms(), 'ERR_ARGUMENT', '[gradientNorms] Expected a backward() that was completed since the last reset()');
});
test('spectra want matrices that are trained', async () => {
  const loose = model as unknown as Loose;
  await expectRejection(loose.gradientSpectra!(['model.norm.weight']), 'ERR_ARGUMENT', "[gradientSpectra] Expected a matrix that is trained but received 'model.norm.weight'");
  await expectRejection(loose.gradientSpectra!(['x']), 'ERR_ARGUMENT', '[gradientSpectra] Expected names[0] to be the name of a parameter but received "x"');
  await expectRejection(loose.gradientSpectra!(3), 'ERR_ARGUMENT', '[gradientSpectra] Expected names to be an Array but received 3');
  expect(await model.gradientSpectra([])).toHaveLength(0);
  const other = await made();
  other.dispose();
  await expectRejection(other.gradientSpectra([]), 'ERR_DISPOSED', '[gradientSpectra] Expected a living Model but received one that is disposed');
});
