/** Float64 comparison of the kernels: seeded inputs, gradients by central differences of the reference in the test. */

/** Numbers from about -2 to 2, the same for the same seed. */
export function random(length: number, seed: number): Float32Array {
  let state = (seed * 2654435761) >>> 0;
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state / 2 ** 32 - 0.5) * 4;
  });
}

/**
 * Compares a gradient with d(sum of dout * forward(x)) / dx in float64, at 24 places spread over x. The step's error is about
 * step^2 = 1e-10, its rounding 1e-16 / step = 1e-11.
 */
export function expectGradient(got: ArrayLike<number>, forward: (x: number[]) => number[], x: ArrayLike<number>, dout: ArrayLike<number>): void {
  expect(got.length).toBe(x.length);
  const step = 1e-5;
  const at = Array.from(x);
  const loss = (): number => forward(at).reduce((sum, value, i) => sum + value * dout[i]!, 0);
  const places = Array.from({ length: Math.min(24, x.length) }, (_, n) => Math.floor((n * (x.length - 1)) / Math.max(1, Math.min(24, x.length) - 1)));
  const want = places.map((i) => {
    const value = at[i]!;
    at[i] = value + step;
    const up = loss();
    at[i] = value - step;
    const down = loss();
    at[i] = value;
    return (up - down) / (2 * step);
  });
  expectClose(places.map((i) => got[i]!), want);
}

/**
 * Float32 against float64: 32 units in the last place of the largest value (2^-24 each). That is twice what sums of up to 1000
 * rounded products in 16 lanes lose.
 */
export function expectClose(got: ArrayLike<number>, want: ArrayLike<number>): void {
  expect(got.length).toBe(want.length);
  const scale = Array.from(want).reduce((most, value) => Math.max(most, Math.abs(value)), 1e-3);
  const worst = Array.from(want).reduce((most, value, i) => Math.max(most, Math.abs(got[i]! - value)), 0);
  expect(worst / scale).toBeLessThan(32 * 2 ** -24);
}

/** A call that must reject with this code and whole message. */
export async function refuses(call: Promise<unknown>, code: string, message: string): Promise<void> {
  const error: unknown = await call.then(() => 'no error', (reason: unknown) => reason);
  expect(error).toMatchObject({ name: 'LibError', code, message });
}

/** Offsets of segments of these lengths. */
export function offsets(lengths: readonly number[]): Int32Array {
  const cu = new Int32Array(lengths.length + 1);
  lengths.forEach((length, b) => { cu[b + 1] = cu[b]! + length; });
  return cu;
}
