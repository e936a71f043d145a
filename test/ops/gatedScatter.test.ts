import { gatedScatter, gatedScatterGrad, Tensor, type Fusion } from '../../lib/kernels';
import * as reference from '../reference/routedRows';
import { expectClose, expectGradient, random, refuses } from './support';

const fusions: Fusion[] = ['interpolate', 'plain', 'scaled'];
const sizes = [[4, 31, 3], [40, 32, 33], [7, 33, 1], [200, 127, 129], [3, 1000, 3], [2, 3584, 2], [3, 1, 2]];

test.each(sizes.flatMap((size) => fusions.map((fusion) => [...size, fusion] as [number, number, number, Fusion])))('%i rows of %i channels, %i of them, %s', async (count, width, routed, fusion) => {
  const [h, y, gate, dout] = [random(count * width, 1), random(routed * width, 2), random(routed, 3), random(count * width, 4)];
  const rows = Int32Array.from({ length: routed }, (_, i) => count - 1 - i);
  for (const step of fusion === 'scaled' ? [undefined, random(width, 5)] : [undefined]) {
    const options = step === undefined ? { fusion } : { fusion, step };
    expectClose(await gatedScatter(h, y, gate, rows, options), reference.gatedScatter(h, y, gate, rows, fusion, step));
    const { dh, dy, dgate, dstep } = await gatedScatterGrad(h, y, gate, rows, dout, options);
    expectGradient(dh, (at) => reference.gatedScatter(at, y, gate, rows, fusion, step), h, dout);
    expectGradient(dy, (at) => reference.gatedScatter(h, at, gate, rows, fusion, step), y, dout);
    expectGradient(dgate, (at) => reference.gatedScatter(h, y, at, rows, fusion, step), gate, dout);
    if (step === undefined) expect(dstep).toBeUndefined();
    else expectGradient(dstep as Float32Array, (at) => reference.gatedScatter(h, y, gate, rows, fusion, at), step, dout);
  }
});

test('the example of the documentation; h is not changed', async () => {
  const h = Float32Array.of(1, 2, 3);
  expect([...await gatedScatter(h, Float32Array.of(6), Float32Array.of(0.5), Int32Array.of(1))]).toEqual([1, 4, 3]);
  expect([...h]).toEqual([1, 2, 3]);
});

test('no rows: h comes back as it is, in the shape of a tensor; a step still gets its gradient', async () => {
  const [h, none, noRows] = [random(6, 1), new Float32Array(0), new Int32Array(0)];
  expect(await gatedScatter(h, none, none, noRows)).toEqual(h);
  expect(await gatedScatter(none, none, none, noRows)).toEqual(none);
  expect(await gatedScatterGrad(h, none, none, noRows, h, { fusion: 'scaled', step: random(3, 2) })).toEqual({ dh: h, dy: none, dgate: none, dstep: new Float32Array(3) });
  const [tensor, empty] = [await Tensor.from(h, [2, 3]), Tensor.zeros([0, 3])];
  const out = await gatedScatter(tensor, empty, none, noRows, { output: 'tensor' });
  expect(out.shape).toEqual([2, 3]);
  expect(await out.read()).toEqual(h);
  for (const each of [tensor, empty, out]) each.dispose();
});

test('NaN stays in its row', async () => {
  const out = await gatedScatter(Float32Array.of(1, 2, 3, 4), Float32Array.of(NaN, 1, 1, 1), Float32Array.of(0.5, 0), Int32Array.of(1, 0));
  expect([...out]).toEqual([1, 2, NaN, 2.5]);
});

test('misuse', async () => {
  const [h, y, gate, rows] = [random(6, 1), random(4, 2), random(2, 3), Int32Array.of(0, 2)];
  await refuses(gatedScatter(h, y, gate, [0, 2] as never), 'ERR_DTYPE', '[gatedScatter] Expected rows to be a Int32Array but received Array(2)');
  await refuses(gatedScatter(h, random(3, 1), gate, rows), 'ERR_SHAPE', '[gatedScatter] Expected y to have a multiple of rows = 2 elements but received 3');
  await refuses(gatedScatter(h, random(0, 1), gate, rows), 'ERR_SHAPE', '[gatedScatter] Expected y to have at least 1 channel but received 0');
  await refuses(gatedScatter(h, y, gate, new Int32Array(0)), 'ERR_SHAPE', '[gatedScatter] Expected y to have rows*channels = 0 elements but received 4');
  await refuses(gatedScatter(random(5, 1), y, gate, rows), 'ERR_SHAPE', '[gatedScatter] Expected h to have a multiple of channels = 2 elements but received 5');
  await refuses(gatedScatter(h, y, random(3, 1), rows), 'ERR_SHAPE', '[gatedScatter] Expected gate to have as many as rows = 2 elements but received 3');
  await refuses(gatedScatter(h, y, gate, Int32Array.of(0, 3)), 'ERR_RANGE', '[gatedScatter] Expected row 1 to be an integer from 0 to 2 but received 3');
  await refuses(gatedScatter(h, y, gate, Int32Array.of(2, 2)), 'ERR_RANGE', '[gatedScatter] Expected rows to be distinct but received 2 again at 1');
  await refuses(gatedScatter(h, y, gate, rows, { step: gate }), 'ERR_ARGUMENT', "[gatedScatter] Expected no step with fusion 'interpolate' but received Float32Array(2)");
  await refuses(gatedScatter(h, y, gate, rows, { fusion: 'scaled', step: h }), 'ERR_SHAPE', '[gatedScatter] Expected step to have channels = 2 elements but received 6');
  await refuses(gatedScatter(h, new Float32Array(0), new Float32Array(0), new Int32Array(0), { fusion: 'scaled', step: new Float32Array(0) }), 'ERR_SHAPE', '[gatedScatter] Expected step to have at least 1 channel but received 0');
  await refuses(gatedScatter(h, y, gate, rows, { fusion: 'scale' } as never), 'ERR_ARGUMENT', "[gatedScatter] Expected fusion to be one of 'interpolate', 'plain', 'scaled' but received \"scale\"; did you mean 'scaled'?");
  await refuses(gatedScatter(h, y, gate, rows, { fuse: 'plain' } as never), 'ERR_ARGUMENT', "[gatedScatter] Expected options among fusion, step, output, signal, device but received 'fuse'");
  await refuses(gatedScatterGrad(h, y, gate, rows, y), 'ERR_SHAPE', '[gatedScatterGrad] Expected dout to have as many as h = 6 elements but received 4');
});
