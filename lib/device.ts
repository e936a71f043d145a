/** Which device work runs on, and what is known of it. */
import * as check from './check';
import { fail, guarded } from './errors';
import { native } from './native';

export type DeviceName = 'cpu' | 'cuda';

/** 'auto': a CUDA device when a test kernel ran on it, else the CPU. */
export type DeviceChoice = 'auto' | DeviceName;

/** The probe's answer, which the addon keeps too; here it spares every operation the report. */
let isCudaUsable: boolean | undefined;

/** The environment variable that says what 'auto' means. */
export const DEVICE_VARIABLE = 'PLUMBLINE_DEVICE';

export interface CudaReport {
  /** The addon holds CUDA code. */
  isBuilt: boolean;
  /** A test kernel returned the right sum. */
  isUsable: boolean;
  /** Why it is not usable, and what to do; empty when it is. */
  reason: string;
  /** Name of the device; empty when none was found. */
  name: string;
  /** Compute capability, as '9.0'. */
  capability: string;
  multiprocessors: number;
  /** CUDA version that the driver supports and that the addon was built with, as 13000 for 13.0; 0: none. */
  driverVersion: number;
  runtimeVersion: number;
  memoryBytes: number;
  freeBytes: number;
  /** Kernels that this process started since the device was first used. */
  launches: number;
  /** Copies to the host, each of which waits for the device. */
  downloads: number;
}

export interface DeviceReport {
  /** What 'auto' means here and now. 'cuda' without a usable device, where the environment variable asks for it: every call is then refused. */
  chosen: DeviceName;
  /** Why. */
  why: string;
  cpu: { threads: number; isa: string; gemm: string };
  cuda: CudaReport;
}

/**
 * The device that a choice means.
 *
 * @throws {LibError} `ERR_ARGUMENT`; `ERR_BACKEND_UNAVAILABLE` with the reason and the remedy when 'cuda' was asked for and is not usable:
 *   it never becomes the CPU in silence.
 */
export function chooseDevice(op: string, choice: unknown): DeviceName {
  const asked = choice === undefined ? 'auto' : check.oneOf(op, 'device', choice as DeviceChoice, ['auto', 'cpu', 'cuda']);
  const wanted = asked === 'auto' ? defaultChoice(op) : asked;
  if (wanted === 'cpu') return 'cpu';
  if (isCudaUsable === true) return 'cuda';
  const cuda = guarded(() => native().cudaDevice());
  isCudaUsable = cuda.isUsable;
  if (cuda.isUsable) return 'cuda';
  if (wanted === 'cuda') fail('ERR_BACKEND_UNAVAILABLE', op, `Expected a usable CUDA device but ${cuda.reason}`);
  return 'cpu';
}

/**
 * What was found, and what 'auto' chooses. The first call starts the CUDA runtime where there is one.
 *
 * @example deviceReport().chosen;  // 'cpu' on a machine without a GPU
 * @throws {LibError} `ERR_NATIVE_LOAD`; `ERR_ARGUMENT` when the environment variable PLUMBLINE_DEVICE is none of auto, cpu, cuda.
 */
export function deviceReport(): DeviceReport {
  const cuda = guarded(() => native().cudaDevice());
  const { threads, isa, gemm } = native().buildInfo();
  const wanted = defaultChoice('deviceReport');
  const chosen = wanted === 'cuda' || (wanted === 'auto' && cuda.isUsable) ? 'cuda' : 'cpu';
  const asked = process.env[DEVICE_VARIABLE] === undefined ? '' : ` (${DEVICE_VARIABLE} is ${wanted})`;
  const refused = `nothing runs: ${cuda.reason}; or unset ${DEVICE_VARIABLE}`;
  const why = chosen === 'cuda' ? (cuda.isUsable ? `${cuda.name} ran a test kernel` : refused) : wanted === 'cpu' ? 'it was asked for' : cuda.reason;
  return { chosen, why: `${why}${asked}`, cpu: { threads, isa, gemm }, cuda };
}

function defaultChoice(op: string): DeviceChoice {
  const value = process.env[DEVICE_VARIABLE];
  return value === undefined || value === '' ? 'auto' : check.oneOf(op, `the environment variable ${DEVICE_VARIABLE}`, value as DeviceChoice, ['auto', 'cpu', 'cuda']);
}
