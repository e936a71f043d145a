import { join } from 'node:path';
import { LatentModel, makePreset, PLAIN } from '../../lib/index';
import { chooseTrainable } from '../../lib/train';

const TINY = join(__dirname, '../fixtures/tiny-qwen2/checkpoint');

test('what is trained: the extras of the preset, no threshold, the tower when asked', async () => {
  using model = await LatentModel.load(TINY, { preset: 'default' });
  const frozen = (): string[] => model.native.parameters().filter(({ trainable }) => !trainable).map(({ name }) => name).sort();
  const tower = model.native.parameters().map(({ name }) => name).filter((name) => name.startsWith('visual.')).sort();
  const unused = [
    'router.0.0.bias', 'router.0.0.weight', 'router.0.2.bias', 'router.0.2.weight', 'router.0.bias', 'router.0.threshold', 'router.0.weight',
    'router.1.0.bias', 'router.1.0.weight', 'router.1.2.bias', 'router.1.2.weight', 'router.1.threshold', 'step.3',
  ];
  chooseTrainable(model.native, { trainVision: true, preset: model.preset });
  expect(frozen()).toEqual(unused);
  chooseTrainable(model.native, { trainVision: false, preset: makePreset({ name: 'paper', replay: false, maxDepth: 3 }, 2) });
  expect(frozen()).toEqual([
    'router.0.0.bias', 'router.0.0.weight', 'router.0.2.bias', 'router.0.2.weight', 'router.0.bias', 'router.0.threshold', 'router.0.weight',
    'router.1.bias', 'router.1.threshold', 'router.1.weight', 'token_sr.0.bias', 'token_sr.0.weight', 'token_sr.2.bias', 'token_sr.2.weight', ...tower,
  ]);
  chooseTrainable(model.native, { trainVision: true, preset: PLAIN });
  expect(frozen()).toEqual(model.native.parameters().map(({ name }) => name).filter((name) => /^(router|step|token_sr)\./.test(name)).sort());
  chooseTrainable(model.native, { trainVision: true, preset: model.preset });
  expect(frozen()).toEqual(unused);
});
