import { crossEntropy } from '../../lib/kernels';
import { expectClose, random, refuses } from './support';

function reference(logits: ArrayLike<number>, targets: ArrayLike<number>, scale: number): { losses: number[]; argmax: number[]; dlogits: number[] } {
  const classes = logits.length / targets.length;
  const [losses, argmax, dlogits]: [number[], number[], number[]] = [[], [], []];
  for (let row = 0; row < targets.length; row++) {
    const x = Array.from(logits).slice(row * classes, (row + 1) * classes);
    const top = Math.max(...x);
    const sum = x.reduce((a, n) => a + Math.exp(n - top), 0);
    const target = targets[row]!;
    argmax.push(x.indexOf(top));
    losses.push(target < 0 ? 0 : top + Math.log(sum) - x[target]!);
    dlogits.push(...x.map((n, c) => (target < 0 ? 0 : scale * (Math.exp(n - top) / sum - (c === target ? 1 : 0)))));
  }
  return { losses, argmax, dlogits };
}

test.each([[1, 1], [1, 2], [3, 33], [6, 320], [2, 5000]])('%i rows of %i classes', async (rows, classes) => {
  const logits = random(rows * classes, 1).map((value) => 5 * value);
  const targets = Int32Array.from({ length: rows }, (_, r) => (r === 1 ? -100 : (r * 7) % classes));
  const want = reference(logits, targets, 0.25);
  const got = await crossEntropy(logits, targets, { scale: 0.25 });
  expectClose(got.losses, want.losses);
  expect([...got.argmax]).toEqual(want.argmax);
  expectClose(got.dlogits, want.dlogits);
});

test('ties go to the lowest class, huge logits do not overflow, no rows are none', async () => {
  const { losses, argmax, dlogits } = await crossEntropy(Float32Array.of(1e30, 1e30, -1e30), Int32Array.of(1));
  expectClose(losses, [Math.log(2)]);
  expect([...argmax]).toEqual([0]);
  expectClose(dlogits, [0.5, -0.5, 0]);
  expect(await crossEntropy(new Float32Array(0), new Int32Array(0))).toEqual({ losses: new Float32Array(0), argmax: new Int32Array(0), dlogits: new Float32Array(0) });
});

test('misuse', async () => {
  await refuses(crossEntropy(random(6, 1), Int32Array.of(0, 3)), 'ERR_RANGE', '[crossEntropy] Expected target 1 to be -100 or an integer from 0 to 2 but received 3');
  await refuses(crossEntropy(random(6, 1), Int32Array.of(-1, 0)), 'ERR_RANGE', '[crossEntropy] Expected target 0 to be -100 or an integer from 0 to 2 but received -1');
  await refuses(crossEntropy(random(5, 1), Int32Array.of(0, 0)), 'ERR_SHAPE', '[crossEntropy] Expected logits to have a multiple of rows = 2 elements but received 5');
  await refuses(crossEntropy(random(0, 1), Int32Array.of(0)), 'ERR_SHAPE', '[crossEntropy] Expected logits to have a multiple of rows = 1 elements but received 0');
  await refuses(crossEntropy(random(5, 1), new Int32Array(0)), 'ERR_SHAPE', '[crossEntropy] Expected logits to have a multiple of rows = 0 elements but received 5');
  await refuses(crossEntropy(random(1, 1), [0] as never), 'ERR_DTYPE', '[crossEntropy] Expected targets to be a Int32Array but received Array(1)');
});
