import { Tensor } from '../../lib/kernels';
import { native } from '../../lib/native';
import { refuses } from './support';

const tensors = (): number => native().liveObjects().tensors;

test('the example of the documentation', async () => {
  const tensor = await Tensor.from(Float32Array.of(1, 2, 3, 4, 5, 6), [2, 3]);
  expect(tensor.shape).toEqual([2, 3]);
  expect(tensor.size).toBe(6);
  await tensor.write(Float32Array.of(7), 5);
  expect(await tensor.read()).toEqual(Float32Array.of(1, 2, 3, 4, 5, 7));
  tensor.dispose();
  expect(Tensor.zeros([2, 3]).size).toBe(6);
});

test('zeros at first; a large one too; no elements, and no axes', async () => {
  for (const shape of [[3], [2, 1, 4], [1 << 20], [0, 5], []]) {
    const tensor = Tensor.zeros(shape);
    expect(tensor.size).toBe(shape.reduce((product, size) => product * size, 1));
    const values = await tensor.read();
    expect(values.length).toBe(tensor.size);
    expect(values.every((value) => value === 0)).toBe(true);
    tensor.dispose();
  }
});

test('it never gives out a view: two reads are two arrays, and what is written is copied at once', async () => {
  const data = Float32Array.of(1, 2, 3);
  const tensor = Tensor.zeros([3]);
  const write = tensor.write(data);
  data.fill(9);
  await write;
  const [one, two] = [await tensor.read(), await tensor.read()];
  one.fill(0);
  expect([...two]).toEqual([1, 2, 3]);
  expect([...await tensor.read()]).toEqual([1, 2, 3]);
  tensor.dispose();
});

test('the shape is a frozen copy', () => {
  const shape = [2, 3];
  const tensor = new Tensor(shape);
  shape[0] = 7;
  expect(tensor.shape).toEqual([2, 3]);
  expect(Object.isFrozen(tensor.shape)).toBe(true);
  expect(String(tensor)).toBe('[object Tensor]');
  tensor.dispose();
});

test('jobs see what was there when they were called', async () => {
  const tensor = await Tensor.from(Float32Array.of(1, 2), [2]);
  const before = tensor.read();
  const write = tensor.write(Float32Array.of(5), 1);
  const after = tensor.read();
  tensor.dispose();
  expect(await Promise.all([before, after])).toEqual([Float32Array.of(1, 2), Float32Array.of(1, 5)]);
  await write;
});

test('dispose is idempotent, `using` calls it, and later use is an error', async () => {
  const before = native().liveObjects();
  const tensor = Tensor.zeros([4]);
  expect(native().liveObjects()).toEqual({ ...before, tensors: before.tensors + 1, bytes: before.bytes + 16 });
  tensor[Symbol.dispose]();
  tensor.dispose();
  expect(native().liveObjects()).toEqual(before);
  await refuses(tensor.read(), 'ERR_DISPOSED', '[Tensor.read] Expected a living Tensor but received one that is disposed');
  await refuses(tensor.write(new Float32Array(1)), 'ERR_DISPOSED', '[Tensor.write] Expected a living Tensor but received one that is disposed');
  expect(tensor.shape).toEqual([4]);
});

test('misuse', async () => {
  const raises = (call: () => unknown, code: string, message: string): void => expect(call).toThrow(expect.objectContaining({ name: 'LibError', code, message }));
  raises(() => Tensor.zeros(3 as never), 'ERR_ARGUMENT', '[Tensor] Expected shape to be an array but received 3');
  raises(() => Tensor.zeros([2, -1]), 'ERR_RANGE', '[Tensor] Expected a size of shape to be an integer of at least 0 but received -1');
  raises(() => Tensor.zeros(new Array<number>(2)), 'ERR_ARGUMENT', '[Tensor] Expected a size of shape to be an integer of at least 0 but received undefined');
  raises(() => Tensor.zeros(['2'] as never), 'ERR_ARGUMENT', '[Tensor] Expected a size of shape to be an integer of at least 0 but received "2"');
  raises(() => Tensor.zeros([2 ** 30, 2 ** 30]), 'ERR_RANGE', '[Tensor] Expected shape to have at most 9007199254740991 elements but received sizes 1073741824 x 1073741824');
  raises(() => Tensor.zeros([2 ** 25, 2 ** 25]), 'ERR_OUT_OF_MEMORY', '[allocate] Expected 4503599627370496 bytes of memory but received none');
  await refuses(Tensor.from([1] as never, [1]), 'ERR_DTYPE', '[Tensor.from] Expected data to be a Float32Array but received Array(1)');
  await refuses(Tensor.from(new Float32Array(5), [2, 3]), 'ERR_SHAPE', '[Tensor.from] Expected data to have the product of shape = 6 elements but received 5');
  await refuses(Tensor.from(new Float32Array(1), [1], { singal: 1 } as never), 'ERR_ARGUMENT', "[Tensor.from] Expected options among signal, device but received 'singal'; did you mean 'signal'?");
  const tensor = Tensor.zeros([4]);
  await refuses(tensor.write(new Float64Array(1) as never), 'ERR_DTYPE', '[Tensor.write] Expected data to be a Float32Array but received Float64Array(1)');
  await refuses(tensor.write(new Float32Array(5)), 'ERR_SHAPE', '[Tensor.write] Expected data to have at most size - offset = 4 elements but received 5');
  await refuses(tensor.write(new Float32Array(2), 3), 'ERR_SHAPE', '[Tensor.write] Expected data to have at most size - offset = 1 elements but received 2');
  await refuses(tensor.write(new Float32Array(0), 5), 'ERR_RANGE', '[Tensor.write] Expected offset to be an integer from 0 to 4 but received 5');
  await refuses(tensor.write(new Float32Array(1), 0.5), 'ERR_RANGE', '[Tensor.write] Expected offset to be an integer from 0 to 4 but received 0.5');
  await refuses(tensor.read({ signal: 1 } as never), 'ERR_ARGUMENT', '[Tensor.read] Expected signal to be an AbortSignal but received 1');
  await tensor.write(new Float32Array(0), 4);
  tensor.dispose();
});

test('signals; a failed `from` leaves nothing behind', async () => {
  const before = tensors();
  const signal = AbortSignal.abort('enough');
  await expect(Tensor.from(new Float32Array(1), [1], { signal })).rejects.toBe('enough');
  const tensor = Tensor.zeros([1]);
  await expect(tensor.read({ signal })).rejects.toBe('enough');
  await expect(tensor.write(new Float32Array(1), 0, { signal })).rejects.toBe('enough');
  tensor.dispose();
  expect(tensors()).toBe(before);
});
