/** Gather with RMSNorm, gated scatter, and ragged packing in float64. */
export function gatherRmsNorm(h: ArrayLike<number>, rows: ArrayLike<number>, weight: ArrayLike<number>, step: ArrayLike<number> | undefined, eps: number): { x: number[]; y: number[]; rstd: number[] } {
  const width = weight.length;
  const [x, y, rstd]: [number[], number[], number[]] = [[], [], []];
  for (const row of Array.from(rows)) {
    const own = Array.from({ length: width }, (_, c) => h[row * width + c]! + (step?.[c] ?? 0));
    const inverse = 1 / Math.sqrt(own.reduce((sum, value) => sum + value * value, 0) / width + eps);
    x.push(...own);
    y.push(...own.map((value, c) => value * inverse * weight[c]!));
    rstd.push(inverse);
  }
  return { x, y, rstd };
}

export function gatedScatter(h: ArrayLike<number>, y: ArrayLike<number>, gate: ArrayLike<number>, rows: ArrayLike<number>, fusion: string, step?: ArrayLike<number>): number[] {
  const out = Array.from(h);
  const width = rows.length === 0 ? 1 : y.length / rows.length;
  Array.from(rows).forEach((row, i) => {
    for (let c = 0; c < width; c++) {
      const [own, other] = [h[row * width + c]!, y[i * width + c]!];
      const added = fusion === 'interpolate' ? other - own : other * (fusion === 'scaled' ? 1 + (step?.[c] ?? 0) : 1);
      out[row * width + c] = own + gate[i]! * added;
    }
  });
  return out;
}
