import { join } from 'node:path';
import { runDirectory, type FileResult } from './run';

const FIXTURES = join(__dirname, '..', 'fixtures');
const INTEGERS = new Set(['ops/resize', 'ops/topk', 'ops/window', 'ops/compaction', 'tiny-qwen2/positions', 'tiny-qwen2_5/positions']);

describe('parity with the float64 oracle (test/fixtures)', () => {
  let results: Map<string, FileResult>;
  beforeAll(async () => {
    results = new Map((await runDirectory(FIXTURES, () => undefined)).map((result) => [result.file, result]));
  }, 120_000);

  test.each([
    'ops/norm', 'ops/activation', 'ops/mrope', 'ops/attention', 'ops/cross_entropy', 'ops/resize', 'ops/saliency', 'ops/topk', 'ops/window',
    'ops/compaction', 'ops/gather_rms_norm', 'ops/gated_scatter', 'ops/gradient_norms', 'ops/spectra', 'tiny-qwen2/profile', 'tiny-qwen2/positions', 'tiny-qwen2/generate',
    'tiny-qwen2/plain', 'tiny-qwen2/latents', 'tiny-qwen2/latents_detached', 'tiny-qwen2/latents_last_stage',
    'tiny-qwen2/default_a', 'tiny-qwen2/default_soft_mix', 'tiny-qwen2/default_exhausted', 'tiny-qwen2/default_prefix_topk', 'tiny-qwen2/paper_a', 'tiny-qwen2/official_a', 'tiny-qwen2/probes',
    'tiny-qwen2_5/vision', 'tiny-qwen2_5/positions', 'tiny-qwen2_5/default_a', 'tiny-qwen2_5-nested/generate', 'tiny-qwen2-bf16/plain', 'tiny-qwen2-bf16/plain in bf16',
  ])('%s', (file) => {
    const result = results.get(file);
    expect(result?.failures).toEqual([]);
    expect(result?.status).toBe('passed');
    expect(result?.worst).toBeLessThanOrEqual(1);
    expect(result?.worst).toBeGreaterThan(INTEGERS.has(file) ? -1 : 0); // floats never agree exactly: something was computed
  });

  test('every file of the manifest ran', () => {
    expect([...results.values()].filter(({ status }) => status !== 'passed')).toEqual([]);
    expect([...results.values()].reduce((sum, { tensors }) => sum + tensors, 0)).toBeGreaterThan(3000);
  });
});
