/** The README's examples, run as they stand, with only their paths exchanged for files made here. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import ts from 'typescript';
import * as plumbline from '../../lib';
import { demoPhases, stepsOf, type Phase } from '../../lib/cli/demoPhases';
import { demoConfig, DEMO_SIZES } from '../../lib/cli/demoSizes';
import { writeCheckpoint, writeRecordFiles } from '../cli/trainFixture';

const ROOT = join(__dirname, '..', '..');
const README = readFileSync(join(ROOT, 'README.md'), 'utf8');
/** The folder that the demo leaves: the number is that of the steps of its training with replay and routing. */
const STEPS = stepsOf(demoPhases(DEMO_SIZES.small).copies.find(({ folder }) => folder === 'latent-both') as Phase);
const CHECKPOINT = `runs/demo-small-0/latent-both/checkpoint-${STEPS}`;

function example(number: number): string {
  const block = [...README.matchAll(/```ts\n([\s\S]*?)```/g)][number]?.[1];
  if (block === undefined) throw new Error(`README.md has no ts block ${number}`);
  return block;
}

/** Runs an example; returns what it printed. */
async function runExample(number: number, paths: Readonly<Record<string, string>>): Promise<unknown[]> {
  let body = example(number).replace(/^import .*$/m, '');
  for (const [path, real] of Object.entries(paths)) {
    expect(body).toContain(`'${path}'`);
    body = body.replace(path, real);
  }
  const { outputText } = ts.transpileModule(`return (async () => {${body}})();`, { compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext } });
  const printed: unknown[] = [];
  const scope = { ...plumbline, console: { log: (...values: unknown[]) => printed.push(values), error: () => undefined }, process: { stdout: { write: () => true } } };
  await (new Function(...Object.keys(scope), outputText) as (...values: unknown[]) => Promise<void>)(...Object.values(scope));
  return printed;
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

  test.each([[0, 'generate'], [1, 'adapter']] as const)('example %i is examples/%s.mts, which `npm run typecheck` checks', (number, name) => {
    expect(readFileSync(join(ROOT, 'examples', `${name}.mts`), 'utf8')).toBe(example(number));
    expect(example(number).trim().split('\n').length).toBeLessThanOrEqual(22);
  });

  test('the first example runs', async () => {
    expect(await runExample(0, { [CHECKPOINT]: join(folder, 'model'), 'grid.png': join(folder, 'grid.png') })).toHaveLength(4);
  });

  test('the example of an adapter runs', async () => {
    writeCheckpoint(join(folder, 'base'));
    await writeRecordFiles(join(folder, 'data'));
    const out = { adapter: join(folder, 'my-adapter'), model: join(folder, 'my-model') };
    const printed = await runExample(1, { 'Qwen2-VL-2B-Instruct': join(folder, 'base'), 'train.jsonl': join(folder, 'data', 'train.jsonl'), 'my-adapter': out.adapter, 'my-model': out.model });
    expect(printed).toHaveLength(1);
    for (const file of [join(out.adapter, 'adapter_model.safetensors'), join(out.model, 'model.safetensors')]) expect(existsSync(file)).toBe(true);
  });
});
