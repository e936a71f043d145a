import fc from 'fast-check';
import { packRagged, unpackRagged } from '../../lib/kernels';
import { offsets, random, refuses } from './support';

test.each([[[3, 0, 5], 5, 4], [[1], 1, 1], [[0, 0], 3, 33], [[129, 1, 0, 127], 130, 31], [[2, 2], 2, 1000], [[40, 7], 41, 3584]])('lengths %p of %i, rows of %i', async (lengths, longest, width) => {
  const padded = random(lengths.length * longest * width, 1);
  const want = lengths.flatMap((length, b) => [...padded.subarray(b * longest * width, (b * longest + length) * width)]);
  const { packed, cuSeqlens } = await packRagged(padded, Int32Array.from(lengths), width);
  expect([...packed]).toEqual(want);
  expect(cuSeqlens).toEqual(offsets(lengths));
  const back = await unpackRagged(packed, cuSeqlens, width, { length: longest, fill: NaN });
  expect([...back]).toEqual([...padded].map((value, i) => (Math.floor(i / width) % longest < lengths[Math.floor(i / width / longest)]! ? value : NaN)));
});

test('there and back is the identity on what is not padding, for 1,000 random batches', async () => {
  await fc.assert(fc.asyncProperty(fc.array(fc.integer({ min: 0, max: 20 }), { maxLength: 6 }), fc.integer({ min: 1, max: 9 }), fc.integer({ min: 0, max: 3 }), async (lengths, width, more) => {
    const cu = offsets(lengths);
    const packed = random(cu.at(-1)! * width, 2);
    const padded = await unpackRagged(packed, cu, width, { length: Math.max(0, ...lengths) + more });
    expect(await packRagged(padded, Int32Array.from(lengths), width)).toEqual({ packed, cuSeqlens: cu });
  }), { numRuns: 1_000, seed: 9 });
});

test('the examples of the documentation', async () => {
  expect(await packRagged(Float32Array.of(1, 2, 3, 0), Int32Array.of(2, 1), 1)).toEqual({ packed: Float32Array.of(1, 2, 3), cuSeqlens: Int32Array.of(0, 2, 3) });
  expect([...await unpackRagged(Float32Array.of(1, 2, 3), Int32Array.of(0, 2, 3), 1, { fill: -1 })]).toEqual([1, 2, 3, -1]);
});

test('nothing at all; any fill', async () => {
  const none = new Float32Array(0);
  expect(await packRagged(none, new Int32Array(0), 3)).toEqual({ packed: none, cuSeqlens: Int32Array.of(0) });
  expect(await unpackRagged(none, Int32Array.of(0), 3)).toEqual(none);
  expect([...await unpackRagged(none, Int32Array.of(0, 0), 2, { length: 1, fill: -Infinity })]).toEqual([-Infinity, -Infinity]);
});

test('misuse', async () => {
  const x = random(6, 1);
  await refuses(packRagged(x, [1] as never, 1), 'ERR_DTYPE', '[packRagged] Expected lengths to be a Int32Array but received Array(1)');
  await refuses(packRagged(x, Int32Array.of(1), 0), 'ERR_RANGE', '[packRagged] Expected width to be an integer from 1 to 2147483647 but received 0');
  await refuses(packRagged(x, Int32Array.of(1), undefined as never), 'ERR_ARGUMENT', '[packRagged] Expected width to be an integer from 1 to 2147483647 but received undefined');
  await refuses(packRagged(x, new Int32Array(0), 1), 'ERR_SHAPE', '[packRagged] Expected padded to have lengths*width = 0 elements but received 6');
  await refuses(packRagged(x, Int32Array.of(1, 1), 2), 'ERR_SHAPE', '[packRagged] Expected padded to have a multiple of lengths*width = 4 elements but received 6');
  await refuses(packRagged(x, Int32Array.of(1, 4), 1), 'ERR_RANGE', '[packRagged] Expected length 1 to be an integer from 0 to 3 but received 4');
  await refuses(packRagged(x, Int32Array.of(-1, 3), 1), 'ERR_RANGE', '[packRagged] Expected length 0 to be an integer from 0 to 3 but received -1');
  await refuses(packRagged(new Float32Array(1), Int32Array.of(1), 1, { output: null } as never), 'ERR_ARGUMENT', "[packRagged] Expected output to be one of 'array', 'tensor' but received null");
  await refuses(packRagged([] as never, Int32Array.of(1), 1), 'ERR_DTYPE', '[packRagged] Expected padded to be a Float32Array or a Tensor but received Array(0)');
  await refuses(packRagged(x, Int32Array.of(1), 1, { fill: 1 } as never), 'ERR_ARGUMENT', "[packRagged] Expected options among output, signal, device but received 'fill'");
  await refuses(unpackRagged(x, Int32Array.of(0, 2), 2), 'ERR_SHAPE', '[unpackRagged] Expected packed to have rows*width = 4 elements but received 6');
  await refuses(unpackRagged(x, Int32Array.of(1, 3), 2), 'ERR_RANGE', '[unpackRagged] Expected cuSeqlens to start at 0 but received 1');
  await refuses(unpackRagged(x, Int32Array.of(0, 3), 2, { length: 2 }), 'ERR_RANGE', '[unpackRagged] Expected length to be an integer from 3 to 2147483647 but received 2');
  await refuses(unpackRagged(x, Int32Array.of(0, 1, 3), 2, { length: 2 ** 31 - 1 }), 'ERR_RANGE', '[unpackRagged] Expected at most 2147483647 padded rows but received 2 x 2147483647');
  await refuses(unpackRagged(random(16, 1), Int32Array.of(0, 1), 16, { length: 2 ** 31 - 1 }), 'ERR_RANGE', '[unpackRagged] Expected the result to have at most 8589934592 elements but received sizes 1 x 2147483647 x 16');
  await refuses(unpackRagged(x, Int32Array.of(0, 3), 2, { fill: '0' } as never), 'ERR_ARGUMENT', '[unpackRagged] Expected fill to be a number but received "0"');
  await refuses(unpackRagged(x, Int32Array.of(0, 3), 2, { lenght: 3 } as never), 'ERR_ARGUMENT', "[unpackRagged] Expected options among length, fill, output, signal, device but received 'lenght'; did you mean 'length'?");
});
