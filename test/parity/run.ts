/** Runs every golden file of a directory. Used by `npm run parity` and by test/parity/parity.test.ts. */
import { chooseDevice } from '../../lib/device';
import { join } from 'node:path';
import { openCheckpoint } from '../../lib/model/checkpoint';
import { toNativeSpec } from '../../lib/model/config';
import { parseImageSettings } from '../../lib/model/imageSettings';
import { LatentModel } from '../../lib/latentModel';
import { native } from '../../lib/native';
import { runCase } from './cases';
import { Golden, readManifest, Report, type Manifest } from './goldens';
import { runLora } from './lora';
import { hasCheckpoint, runAdamW, runGenerate, runPositions, runPreprocess, runVision } from './model';
import { OP_RUNNERS } from './ops';
import { runProbes } from './probes';
import { runNormStatistics, runProfile, runSpectra } from './profile';

export interface FileResult {
  file: string;
  status: 'passed' | 'failed';
  /** Tensors compared, and the worst error as a share of the tolerance with its tensor. */
  tensors: number;
  worst: number;
  worstTensor: string;
  failures: string[];
}

function resultOf(file: string, report: Report): FileResult {
  const worst = report.compared.reduce((most, next) => (next.share > most.share ? next : most), { name: '', share: 0 });
  const failures = report.compared.filter(({ share }) => !(share <= 1)).map(({ name, share }) => `${name}: ${share.toPrecision(3)} of the tolerance`);
  failures.push(...report.leftOver().map((name) => `${name}: not compared`));
  if (report.compared.length === 0) failures.push('nothing was compared');
  return { file, status: failures.length > 0 ? 'failed' : 'passed', tensors: report.compared.length, worst: worst.share, worstTensor: worst.name, failures };
}

type RunFile = (name: string, report: Report) => Promise<void>;

async function runVariantFiles(directory: string, variant: string, manifest: Manifest, run: RunFile, onResult: (result: FileResult) => void): Promise<void> {
  for (const [name, entry] of Object.entries(manifest.variants[variant]?.files ?? {})) {
    // operations lie beside the manifest, models' files in a folder of the variant's name
    const path = join(directory, variant === 'ops' ? '' : variant, entry.file);
    const report = new Report(new Golden(entry, path));
    try {
      await run(name, report);
    } catch (error) {
      onResult({ file: `${variant}/${name}`.replace('ops/ops/', 'ops/'), status: 'failed', tensors: 0, worst: Infinity, worstTensor: '', failures: [String((error as Error).stack ?? error)] });
      continue;
    }
    onResult(resultOf(variant === 'ops' ? name : `${variant}/${name}`, report));
  }
}

async function runModelFile(name: string, report: Report, model: LatentModel, goldenOf: (file: string) => Golden, checkpoint: string): Promise<void> {
  const addon = native();
  switch (name) {
    case 'preprocess': return runPreprocess(report, addon);
    case 'vision': return runVision(report, addon, model);
    case 'positions': return runPositions(report, model);
    case 'generate': return runGenerate(report, model);
    case 'probes': return runProbes(report, model);
    case 'profile': {
      for (const recompute of [false, true]) await runProfile(report, model, goldenOf('default_a'), recompute);
      return;
    }
    case 'adamw': {
      const spec = toNativeSpec(model.config, parseImageSettings(undefined, model.config.vision), 'f32');
      return runAdamW(report, addon, spec, checkpoint, goldenOf('default_a'));
    }
    default: {
      // Everything kept, then with the activations recomputed in the backward pass.
      for (const recompute of [false, true]) await runCase(report, model, model.config.text, recompute);
      for (const recompute of [false, true]) await runLora(report, checkpoint, report.golden, recompute);
    }
  }
}

async function runOperation(name: string, report: Report): Promise<void> {
  if (name === 'ops/spectra') return runSpectra(report, native());
  if (name === 'ops/gradient_norms') return runNormStatistics(report);
  const runner = OP_RUNNERS[name];
  if (runner === undefined) throw new Error(`no operation is compared with ${name}`);
  await runner(native().ops, report);
}

/** Runs all files of a golden directory; `onResult` hears of each as it ends. */
export async function runDirectory(directory: string, onResult: (result: FileResult) => void): Promise<FileResult[]> {
  native().setDevice(chooseDevice('parity', undefined));
  const manifest = readManifest(directory);
  const results: FileResult[] = [];
  const keep = (result: FileResult): void => { results.push(result); onResult(result); };
  for (const variant of Object.keys(manifest.variants)) {
    if (variant === 'ops') {
      await runVariantFiles(directory, variant, manifest, runOperation, keep);
      continue;
    }
    const checkpoint = join(directory, variant, 'checkpoint');
    if (!hasCheckpoint(checkpoint)) throw new Error(`${checkpoint} has no config.json`);
    const { dtype: stored } = await openCheckpoint(checkpoint);
    const files = manifest.variants[variant]?.files ?? {};
    const goldenOf = (file: string): Golden => {
      const entry = files[file];
      if (entry === undefined) throw new Error(`${variant} has no golden file ${file}`);
      return new Golden(entry, join(directory, variant, entry.file));
    };
    // The goldens of a bf16 checkpoint are computed from its rounded weights, and sums are f32 always: both storages hold the same model.
    for (const dtype of stored === 'bf16' ? (['f32', 'bf16'] as const) : (['f32'] as const)) {
      const model = await LatentModel.load(checkpoint, { dtype });
      try {
        await runVariantFiles(directory, variant, manifest, (name, report) => runModelFile(name, report, model, goldenOf, checkpoint), (result) => {
          keep(dtype === 'bf16' ? { ...result, file: `${result.file} in bf16` } : result);
        });
      } finally {
        model.dispose();
      }
    }
  }
  if (results.length === 0) throw new Error(`${directory} holds no golden files`);
  return results;
}
