/** Which memory a training is weighed against. */
import { native } from '../../lib/native';
import { trainAll } from '../../lib/train';
import { endless, tinyModel } from './tinyModel';

test('of a model on a GPU it is the memory there that counts', async () => {
  using model = await tinyModel();
  const { native: weights, geometry, preset } = model;
  const report = jest.spyOn(native(), 'cudaDevice').mockReturnValue({ ...native().cudaDevice(), freeBytes: 20_000 });
  try {
    const there = { native: weights, geometry, preset, device: 'cuda' as const, openSession: model.openSession.bind(model), save: model.save.bind(model) };
    const options = { data: endless, stages: [{ name: 'words', shape: {}, steps: 1, learningRate: 1e-3 }], batchSize: 1 };
    await expect(trainAll(there, options)).rejects.toMatchObject({
      name: 'LibError', code: 'ERR_OUT_OF_MEMORY', message: expect.stringMatching(/^\[train\] Expected [\d.]+ MB of memory for gradients and optimiser state of 0\.0 million trainable parameters but received 0\.02 MB\. Close other programs, take a smaller model, or set maxMemoryBytes to go ahead all the same\.$/) as string,
    });
  } finally {
    report.mockRestore();
  }
});
