import { abortable } from '../../lib/abort';
import { native } from '../../lib/native';

/** About a minute of work when nothing stops it. */
const longJob = (token?: InstanceType<ReturnType<typeof native>['CancelToken']>) => native().bench('linear', [256, 512, 512, 0], 100_000, token);

test('a job that is aborted before it starts rejects with the reason and runs nothing', async () => {
  const start = jest.fn(() => Promise.resolve(1));
  await expect(abortable(AbortSignal.abort('early'), start)).rejects.toBe('early');
  expect(start).not.toHaveBeenCalled();
});

test('a running job stops within a second of the abort and rejects with the reason', async () => {
  const controller = new AbortController();
  const job = abortable(controller.signal, longJob);
  await new Promise((resolve) => setTimeout(resolve, 100));
  const start = performance.now();
  controller.abort('stop');
  await expect(job).rejects.toBe('stop');
  expect(performance.now() - start).toBeLessThan(1000);
});

test('a queued job rejects too, and the jobs around it run', async () => {
  const token = new (native().CancelToken)();
  const queued = new (native().CancelToken)();
  const first = longJob(token);
  const second = longJob(queued);
  const third = native().ops.activation('silu', Float32Array.of(0));
  queued.cancel();
  token.cancel();
  await expect(first).rejects.toMatchObject({ code: 'ABORTED', message: 'The operation was aborted' });
  await expect(second).rejects.toMatchObject({ code: 'ABORTED' });
  expect(Array.from(await third)).toEqual([0]);
});

test('an abort after the end changes nothing, and no listener stays behind', async () => {
  const controller = new AbortController();
  const remove = jest.spyOn(controller.signal, 'removeEventListener');
  const value = await abortable(controller.signal, (token) => native().ops.activation('silu', Float32Array.of(0), token));
  controller.abort();
  expect(Array.from(value)).toEqual([0]);
  expect(remove).toHaveBeenCalledTimes(1);
});

test('a failure is not hidden by a late abort', async () => {
  const controller = new AbortController();
  const job = abortable(controller.signal, async (token) => {
    const failing = native().ops.rmsNorm(new Float32Array(3), new Float32Array(2), 1e-6, token);
    controller.abort('late');
    return failing;
  });
  await expect(job).rejects.toMatchObject({ name: 'LibError', code: 'ERR_SHAPE', message: '[rmsNorm] Expected x to be rows of 2 but received 3 elements' });
});

test('an AbortSignal.timeout stops a job', async () => {
  await expect(abortable(AbortSignal.timeout(50), longJob)).rejects.toMatchObject({ name: 'TimeoutError' });
});

test('the event loop stays free while a job runs', async () => {
  const token = new (native().CancelToken)();
  const job = longJob(token);
  let ticks = 0;
  const timer = setInterval(() => { ticks += 1; }, 5);
  await new Promise((resolve) => setTimeout(resolve, 500));
  clearInterval(timer);
  token.cancel();
  await expect(job).rejects.toMatchObject({ code: 'ABORTED' });
  expect(ticks).toBeGreaterThan(20);
});

test('a rejection that happens on the job thread carries the stack of its caller', async () => {
  const token = new (native().CancelToken)();
  const namedCaller = () => longJob(token);
  const job = namedCaller();
  token.cancel();
  const error = await job.then(() => undefined, (reason: Error) => reason);
  expect(error?.stack).toMatch(/^Error: The operation was aborted\n[^]*namedCaller/);
});
