/** `plumbline doctor`: what this machine has, what is missing, and what to do about it. */
import { deviceReport, type DeviceReport } from '../device';
import { availableMemory } from '../model/memory';
import { native } from '../native';

const gigabytes = (bytes: number): string => `${(bytes / 1e9).toFixed(1)} GB`;
const version = (number: number): string => (number === 0 ? 'none' : `${Math.floor(number / 1000)}.${Math.floor((number % 1000) / 10)}`);

function cudaLines({ cuda }: DeviceReport): string[] {
  if (!cuda.isUsable) return [`CUDA        not usable: ${cuda.reason}`];
  return [
    `CUDA        ${cuda.name}, compute capability ${cuda.capability}, ${cuda.multiprocessors} multiprocessors, ${gigabytes(cuda.freeBytes)} of ${gigabytes(cuda.memoryBytes)} free`,
    `            driver for CUDA ${version(cuda.driverVersion)}, built with ${version(cuda.runtimeVersion)}`,
  ];
}

export function doctorText(report: DeviceReport): string {
  const { version: own, compiler } = native().buildInfo();
  const { threads, isa, gemm } = report.cpu;
  return [
    `plumbline   ${own}, Node ${process.version} on ${process.platform}-${process.arch}, addon built by ${compiler}`,
    `CPU         ${threads} threads, instruction set ${isa}, GEMM by ${gemm === 'portable' ? 'our own code: install libdnnl-dev and run npm run build for a faster one' : gemm}`,
    `memory      ${gigabytes(availableMemory())} available`,
    ...cudaLines(report),
    `work runs   on ${report.chosen}: ${report.why}`,
  ].join('\n');
}

export function doctor({ json }: { json: boolean }): void {
  const report = deviceReport();
  process.stdout.write(json ? `${JSON.stringify({ ...native().buildInfo(), ...report, availableBytes: availableMemory() }, null, 2)}\n` : `${doctorText(report)}\n`);
}
