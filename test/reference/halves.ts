/** 16-bit floats from their definitions: sign, exponent and mantissa, rounded to nearest, ties to even. */

function roundTo(value: number, mantissaBits: number, lowest: number): number {
  const octave = Math.max(lowest, Math.floor(Math.log2(Math.abs(value))));
  const unit = 2 ** (octave - mantissaBits);
  const [low, part] = [Math.floor(value / unit), value / unit - Math.floor(value / unit)];
  return (part > 0.5 || (part === 0.5 && low % 2 !== 0) ? low + 1 : low) * unit;
}

export function f16Value(bits: number): number {
  const [sign, exponent, mantissa] = [bits & 0x8000 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return mantissa === 0 ? sign * Infinity : NaN;
  return exponent === 0 ? sign * mantissa * 2 ** -24 : sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
}

/** Of a finite number that f16 can hold. */
export function f16Bits(value: number): number {
  const rounded = value === 0 ? 0 : Math.abs(roundTo(value, 10, -14));
  const sign = value < 0 ? 0x8000 : 0;
  if (rounded < 2 ** -14) return sign | (rounded * 2 ** 24);
  const octave = Math.floor(Math.log2(rounded));
  return sign | ((octave + 15) << 10) | ((rounded / 2 ** octave - 1) * 1024);
}

export function bf16Value(bits: number): number {
  return new Float32Array(Uint32Array.of(bits << 16).buffer)[0]!;
}

/** Of a finite normal number. */
export function bf16Bits(value: number): number {
  const rounded = value === 0 ? 0 : roundTo(value, 7, -126);
  return new Uint32Array(Float32Array.of(rounded).buffer)[0]! >>> 16;
}
