/**
 * The CUDA backend through the JavaScript API, against the CPU and against the float64 goldens: on a GPU where there is one, else under
 * the interpreter of the very PTX (scripts/interpreter.cjs, which `npm test` prepares), else skipped, loudly.
 */
import { spawnSync, type SpawnSyncReturns } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { native, packageRoot } from '../../lib/native';

const root = packageRoot();
const interpreter = require(join(root, 'scripts', 'interpreter.cjs')) as { folder: string; environment(): NodeJS.ProcessEnv };
const hasGpu = native().cudaDevice().isUsable;
const hasInterpreter = existsSync(join(interpreter.folder, 'ready'));
const onDevice = hasGpu || hasInterpreter ? describe : describe.skip;
if (!hasGpu && !hasInterpreter) {
  process.stderr.write('\n*** SKIPPED: the CUDA backend is not tested. There is no GPU, and no interpreter of its code was prepared (see npm test). ***\n\n');
}

function program(file: string, ...args: string[]): SpawnSyncReturns<string> {
  const folder = hasGpu ? join(root, '.cache', 'dev') : join(interpreter.folder, 'dev');
  const env = hasGpu ? { ...process.env, PLUMBLINE_DEVICE: 'cuda' } : interpreter.environment();
  return spawnSync(process.execPath, [join(folder, file), ...args], { cwd: root, env, encoding: 'utf8', maxBuffer: 1 << 26 });
}

onDevice(`CUDA backend ${hasGpu ? 'on a GPU' : 'under the interpreter of its PTX'}`, () => {
  it('gives the results of the CPU, and the same bits on a second run, in every operation and in whole training steps', () => {
    const { status, stdout, stderr } = program('test/device/check.js');
    expect(stdout.split('\n').filter((line) => line.startsWith('DIFFERENT'))).toEqual([]);
    expect(stdout).toContain('all the same');
    expect(stderr).toBe('');       // the interpreter reports there what a device would not: bounds, races, memory never written, leaks
    expect(status).toBe(0);
  }, 600_000);

  it('passes the float64 goldens', () => {
    const { status, stdout, stderr } = program('test/parity/main.js', join(root, 'test', 'fixtures'));
    expect(stdout).toMatch(/\d+ files passed, 0 failed/);
    expect(stderr).toBe('');
    expect(status).toBe(0);
  }, 900_000);

  it('starts at most 3 kernels from saliency to the gathered rows and 4 from router scores to the scatter, whatever the batch', () => {
    const { status, stdout, stderr } = program('test/device/launches.js');
    expect(stderr).toBe('');
    expect(status).toBe(0);
    const { saliencyToGather, routeToScatter, single } = JSON.parse(stdout) as { saliencyToGather: number; routeToScatter: number; single: unknown };
    expect(saliencyToGather).toBeGreaterThan(0);
    expect(saliencyToGather).toBeLessThanOrEqual(3);
    expect(routeToScatter).toBeGreaterThan(0);
    expect(routeToScatter).toBeLessThanOrEqual(4);
    expect(single).toEqual({ saliencyToGather, routeToScatter });
  }, 300_000);

  (hasInterpreter && !hasGpu ? it : it.skip)('moves hardly more bytes than it must, in 16-byte accesses, without bank conflicts', () => {
    const { status, stdout } = spawnSync(process.execPath, [join(root, 'scripts', 'cuda-counters.cjs'), '--json'], { cwd: root, encoding: 'utf8', maxBuffer: 1 << 26 });
    const cases = JSON.parse(stdout) as { name: string; dram: number; limit: number; isGood: boolean }[];
    expect(cases.length).toBeGreaterThan(5);
    expect(cases.filter(({ isGood }) => !isGood)).toEqual([]);
    expect(status).toBe(0);
  }, 600_000);

  it('says in its report what it is', () => {
    const { status, stdout } = program('lib/cli/index.js', 'doctor', '--json');
    expect(status).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ chosen: 'cuda', cuda: { isBuilt: true, isUsable: true, reason: '' } });
  });
});

describe('without a usable device', () => {
  const addon = native();
  const none = hasGpu ? it.skip : it;

  none('the report has the reason and a remedy, and nothing throws', () => {
    const report = addon.cudaDevice();
    expect(report).toMatchObject({ isUsable: false, name: '', launches: 0 });
    expect(report.reason).toMatch(report.isBuilt ? /no NVIDIA driver was found.*: install the driver of your GPU, or use device 'cpu'/ : /install the CUDA toolkit/);
  });

  none('a device that was asked for is never replaced in silence', async () => {
    const { rmsNorm, Tensor } = await import('../../lib/kernels');
    const message = new RegExp(`^\\[rmsNorm\\] Expected a usable CUDA device but ${addon.cudaDevice().reason.slice(0, 20)}`);
    await expect(rmsNorm(new Float32Array(4), new Float32Array(2), { device: 'cuda' })).rejects.toMatchObject({ code: 'ERR_BACKEND_UNAVAILABLE', message: expect.stringMatching(message) });
    expect(() => new Tensor([1], { device: 'cuda' })).toThrow(expect.objectContaining({ code: 'ERR_BACKEND_UNAVAILABLE' }));
    expect(() => new addon.CancelToken('gpu' as 'cpu')).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }));
    expect(() => new addon.Tensor(1, 'cuda')).toThrow(expect.objectContaining({ code: 'ERR_BACKEND_UNAVAILABLE' }));
  });

  it('an unknown device is an error that names the choices', async () => {
    const { rmsNorm } = await import('../../lib/kernels');
    const call = rmsNorm(new Float32Array(4), new Float32Array(2), { device: 'gpu' as 'cpu' });
    await expect(call).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: `[rmsNorm] Expected device to be one of 'auto', 'cpu', 'cuda' but received "gpu"; did you mean 'cpu'?` });
  });

  it('the environment variable takes the place of the default, and a wrong one is said', async () => {
    const { deviceReport } = await import('../../lib/device');
    const { rmsNorm } = await import('../../lib/kernels');
    const before = process.env['PLUMBLINE_DEVICE'];
    try {
      process.env['PLUMBLINE_DEVICE'] = 'cpu';
      expect(deviceReport()).toMatchObject({ chosen: 'cpu', why: 'it was asked for (PLUMBLINE_DEVICE is cpu)' });
      expect(await rmsNorm(Float32Array.of(3, 4), Float32Array.of(1, 1), { device: 'auto', eps: 0 })).toHaveLength(2);
      if (!hasGpu) {
        process.env['PLUMBLINE_DEVICE'] = 'cuda';
        expect(deviceReport()).toMatchObject({ chosen: 'cuda', why: expect.stringMatching(/^nothing runs: .*unset PLUMBLINE_DEVICE \(PLUMBLINE_DEVICE is cuda\)$/) });
        await expect(rmsNorm(Float32Array.of(3, 4), Float32Array.of(1, 1), { device: 'auto' })).rejects.toMatchObject({ code: 'ERR_BACKEND_UNAVAILABLE' });
      }
      process.env['PLUMBLINE_DEVICE'] = 'tpu';
      expect(() => deviceReport()).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT', message: expect.stringContaining('the environment variable PLUMBLINE_DEVICE') }));
    } finally {
      process.env['PLUMBLINE_DEVICE'] = before;
    }
  });
});

it('holds code for every architecture that it names', () => {
  const lists = /PLUMBLINE_CUDA_ARCHITECTURES "([^"]+)"/.exec(readFileSync(join(root, 'CMakeLists.txt'), 'utf8'));
  for (const architecture of ['80', '86', '89', '90', '100', '120']) expect(lists?.[1]).toMatch(new RegExp(`\\b${architecture}\\b`));
});
