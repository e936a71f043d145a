/** Selection, weights and window of one replay step, and the routing rules: sorts and brute force, straight from their definitions. */

/** Index order: score descending, index ascending, NaN last. */
export function bestFirst(scores: ArrayLike<number>, among: readonly number[]): number[] {
  return [...among].sort((a, b) => {
    const [x, y] = [scores[a]!, scores[b]!];
    if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
    return x === y || Number.isNaN(x) ? a - b : y > x ? 1 : -1;
  });
}

export interface Grid { rows: number; columns: number }

export interface Step { selected: number[]; weights: number[]; window: number[]; used: number[] }

/** One sequence: the scores of its pictures' grids one after the other. */
export function replayStep(scores: ArrayLike<number>, used: ArrayLike<number>, grids: readonly Grid[], patches: number, side: number, kind: 'mean-preserving' | 'softmax'): Step {
  const free = Array.from(used).flatMap((flag, i) => (flag === 0 ? [i] : []));
  const selected = bestFirst(scores, free).slice(0, patches);
  return {
    selected, weights: weightsOf(selected.map((i) => scores[i]!), kind), window: bestWindow(selected, grids, side),
    used: Array.from(used).map((flag, i) => (selected.includes(i) ? 1 : flag)),
  };
}

/** Equal where the sum or the top is not a finite (positive) number. */
function weightsOf(picked: readonly number[], kind: 'mean-preserving' | 'softmax'): number[] {
  if (kind === 'softmax') {
    const top = Math.max(...picked);
    const raw = Number.isFinite(top) ? picked.map((score) => Math.exp(score - top)) : picked.map(() => 1);
    const sum = raw.reduce((total, value) => total + value, 0);
    return raw.map((value) => value / sum);
  }
  const sum = picked.reduce((total, value) => total + value, 0);
  return picked.map((score) => (Number.isFinite(sum) && sum > 0 ? (picked.length * score) / sum : 1));
}

/** Picture, row, column, height, width, count of the first window with most selected cells; zeros when nothing is selected. */
export function bestWindow(selected: readonly number[], grids: readonly Grid[], side: number): number[] {
  let best = [0, 0, 0, 0, 0, 0];
  let first = 0;
  grids.forEach(({ rows, columns }, picture) => {
    const [tall, broad] = [Math.min(side, rows), Math.min(side, columns)];
    for (let r = 0; r + tall <= rows; r++) for (let c = 0; c + broad <= columns; c++) {
      const inside = selected.filter((i) => {
        const [row, column] = [Math.floor((i - first) / columns), (i - first) % columns];
        return i >= first && row >= r && row < r + tall && column >= c && column < c + broad;
      }).length;
      if (inside > best[5]!) best = [picture, r, c, tall, broad, inside];
    }
    first += rows * columns;
  });
  return best;
}

/** Whether a counts at least as much as b: NaN is the lowest, and equal to NaN. */
function atLeast(a: number, b: number): boolean {
  return Number.isNaN(b) || a >= b;
}

/** Rows of one sequence that are among the alpha best of 0..i, an equal earlier one first. */
export function prefixTopk(scores: ArrayLike<number>, alpha: number): number[] {
  const all = Array.from(scores);
  return [...all.keys()].filter((i) => all.slice(0, i).filter((earlier) => atLeast(earlier, all[i]!)).length < alpha);
}
