/** The README's example, run as it stands, with only its two paths exchanged for files made here. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import ts from 'typescript';
import * as plumbline from '../../lib';
import { demoPhases, stepsOf, type Phase } from '../../lib/cli/demoPhases';
import { demoConfig, DEMO_SIZES } from '../../lib/cli/demoSizes';

const ROOT = join(__dirname, '..', '..');
const README = readFileSync(join(ROOT, 'README.md'), 'utf8');
/** The folder that the demo leaves: the number is that of the steps of its training with replay and routing. */
const STEPS = stepsOf(demoPhases(DEMO_SIZES.small).copies.find(({ folder }) => folder === 'latent-both') as Phase);
const CHECKPOINT = `runs/demo-small-0/latent-both/checkpoint-${STEPS}`;

function example(): string {
  const block = /```ts\n([\s\S]*?)```/.exec(README)?.[1];
  if (block === undefined) throw new Error('README.md has no ts block');
  return block;
}

describe('README', () => {
  let folder: string;
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'plumbline-readme-'));
    plumbline.writeDigitGridTokenizer(join(folder, 'tokenizer'));
    const model = await plumbline.LatentModel.create(plumbline.newConfig(demoConfig(DEMO_SIZES.small)), { processor: join(folder, 'tokenizer'), latentSteps: 3, preset: { patches: 2, window: 2 } });
    await model.save(join(folder, 'model'));
    model.dispose();
    await plumbline.writePicturePng(plumbline.sampleAt({ seed: 1 }, 0).picture, join(folder, 'grid.png'));
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  test('the example is examples/generate.mts, which `npm run typecheck` checks', () => {
    expect(readFileSync(join(ROOT, 'examples', 'generate.mts'), 'utf8')).toBe(example());
    expect(example().trim().split('\n').length).toBeLessThanOrEqual(22);
  });

  test('the example runs', async () => {
    const source = example();
    for (const path of [CHECKPOINT, 'grid.png']) expect(source).toContain(`'${path}'`);
    const body = source.replace(/^import .*$/m, '').replace(CHECKPOINT, join(folder, 'model')).replace('grid.png', join(folder, 'grid.png'));
    const { outputText } = ts.transpileModule(`return (async () => {${body}})();`, { compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext } });
    const printed: unknown[] = [];
    const run = new Function('LatentModel', 'console', 'process', outputText) as (...scope: unknown[]) => Promise<void>;
    await run(plumbline.LatentModel, { log: (...values: unknown[]) => printed.push(values), error: () => undefined }, { stdout: { write: () => true } });
    expect(printed).toHaveLength(4);
  });
});
