/** A model whose sessions note what went through them. */
import type { LatentModel } from '../../lib/latentModel';
import type { ModelView } from '../../lib/model/reasoning';
import type { NativePass, NativePassResult, NativeReplayResult, NativeSession } from '../../lib/native';

export interface Recording extends ModelView {
  readonly endIds: readonly number[];
  passes: { pass: NativePass; result: NativePassResult }[];
  replays: { sequences: Int32Array; result: NativeReplayResult }[];
}

export function recording(model: LatentModel): Recording {
  const record: Recording = {
    native: model.native, geometry: model.geometry, preset: model.preset, endIds: [], passes: [], replays: [],
    openSession(options) {
      const session = model.openSession(options);
      return new Proxy(session, {
        get(target, name: keyof NativeSession) {
          if (name === 'extend') {
            return async (...args: Parameters<NativeSession['extend']>) => {
              const result = await target.extend(...args);
              record.passes.push({ pass: args[0], result });
              return result;
            };
          }
          if (name === 'replay') {
            return async (...args: Parameters<NativeSession['replay']>) => {
              const result = await target.replay(...args);
              record.replays.push({ sequences: args[0], result });
              return result;
            };
          }
          return (target[name] as (...args: unknown[]) => unknown).bind(target);
        },
      });
    },
  };
  return record;
}

/** Two values of the same shape whose numbers differ by at most `within`. */
export function expectClose(got: unknown, want: unknown, within: number, path = ''): void {
  if (typeof want === 'number' && typeof got === 'number') {
    if (!(Object.is(got, want) || Math.abs(got - want) <= within)) throw new Error(`${path}: ${got} is not ${want}`);
  } else if (typeof want === 'object' && want !== null) {
    expect([path, Object.keys(got as object)]).toEqual([path, Object.keys(want)]);
    for (const key of Object.keys(want)) expectClose(Reflect.get(got as object, key), Reflect.get(want, key), within, `${path}.${key}`);
  } else {
    expect([path, got]).toEqual([path, want]);
  }
}
