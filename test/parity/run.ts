/** Runs every golden file of a directory that this version supports. Used by `npm run parity` and by test/parity/parity.test.ts. */
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
import { runNormStatistics, runProfile, runSpectra } from './profile';

export interface FileResult {
  file: string;
  status: 'passed' | 'failed' | 'unsupported';
  /** Tensors compared, and the worst error as a share of the tolerance with its tensor. */
  tensors: number;
  worst: number;
  worstTensor: string;
  failures: string[];
  /** Expected tensors left out, by name (runs of numbers folded), or why the whole file was. */
  unsupported: string[];
}

/** s0.run3.last_row, s1.run0.last_row … are one entry. */
function foldNames(names: readonly string[]): string[] {
  return [...new Set(names.map((name) => name.replace(/\d+/g, '*')))];
}

function resultOf(file: string, report: Report, reason: string | undefined): FileResult {
  if (reason !== undefined) return { file, status: 'unsupported', tensors: 0, worst: 0, worstTensor: '', failures: [], unsupported: [reason] };
  const worst = report.compared.reduce((most, next) => (next.share > most.share ? next : most), { name: '', share: 0 });
  const failures = report.compared.filter(({ share }) => !(share <= 1)).map(({ name, share }) => `${name}: ${share.toPrecision(3)} of the tolerance`);
  failures.push(...report.leftOver().map((name) => `${name}: neither compared nor named as unsupported`));
  return {
    file, status: failures.length > 0 ? 'failed' : report.compared.length > 0 ? 'passed' : 'unsupported', tensors: report.compared.length,
    worst: worst.share, worstTensor: worst.name, failures, unsupported: foldNames(report.unsupported),
  };
}

type RunFile = (name: string, report: Report) => Promise<string | undefined>;

async function runVariantFiles(directory: string, variant: string, manifest: Manifest, run: RunFile, onResult: (result: FileResult) => void): Promise<void> {
  for (const [name, entry] of Object.entries(manifest.variants[variant]?.files ?? {})) {
    // operations lie beside the manifest, models' files in a folder of the variant's name
    const path = join(directory, variant === 'ops' ? '' : variant, entry.file);
    const report = new Report(new Golden(entry, path));
    let reason: string | undefined;
    try {
      reason = await run(name, report);
    } catch (error) {
      onResult({ file: `${variant}/${name}`.replace('ops/ops/', 'ops/'), status: 'failed', tensors: 0, worst: Infinity, worstTensor: '', failures: [String((error as Error).stack ?? error)], unsupported: [] });
      continue;
    }
    onResult(resultOf(variant === 'ops' ? name : `${variant}/${name}`, report, reason));
  }
}

const NOT_YET: Readonly<Record<string, string>> = Object.freeze({ probes: 'probes' });

async function runModelFile(name: string, report: Report, model: LatentModel, goldenOf: (file: string) => Golden, checkpoint: string): Promise<string | undefined> {
  const addon = native();
  switch (name) {
    case 'preprocess': await runPreprocess(report, addon); return undefined;
    case 'vision': await runVision(report, addon, model); return undefined;
    case 'positions': runPositions(report, model); return undefined;
    case 'generate': await runGenerate(report, model); return undefined;
    case 'profile': {
      for (const recompute of [false, true]) await runProfile(report, model, goldenOf('default_a'), recompute);
      return undefined;
    }
    case 'adamw': {
      const spec = toNativeSpec(model.config, parseImageSettings(undefined, model.config.vision), 'f32');
      await runAdamW(report, addon, spec, checkpoint, goldenOf('default_a'));
      return undefined;
    }
    default: {
      if (NOT_YET[name] !== undefined) return NOT_YET[name];
      // Everything kept, then with the activations recomputed in the backward pass.
      for (const recompute of [false, true]) await runCase(report, model, model.config.text, recompute);
      for (const recompute of [false, true]) await runLora(report, checkpoint, report.golden, recompute);
      return undefined;
    }
  }
}

/** Runs all files of a golden directory; `onResult` hears of each as it ends. */
export async function runDirectory(directory: string, onResult: (result: FileResult) => void): Promise<FileResult[]> {
  native().setDevice(chooseDevice('parity', undefined));
  const manifest = readManifest(directory);
  const results: FileResult[] = [];
  const keep = (result: FileResult): void => { results.push(result); onResult(result); };
  for (const variant of Object.keys(manifest.variants)) {
    if (variant === 'ops') {
      await runVariantFiles(directory, variant, manifest, async (name, report) => {
        if (name === 'ops/spectra') return runSpectra(report, native()).then(() => undefined);
        if (name === 'ops/gradient_norms') {
          runNormStatistics(report);
          return undefined;
        }
        const runner = OP_RUNNERS[name];
        if (runner === undefined) return 'operation';
        await runner(native().ops, report);
        return undefined;
      }, keep);
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
