/** Attention of each sequence's last query row to columns, mean over heads; float64, straight from the definition (2604.10500, SCF-VR). */
export interface SaliencyShape { queries: number[]; keys: number[]; columns: number[][]; heads: number; kvHeads: number; headDim: number }

export function saliency(q: ArrayLike<number>, k: ArrayLike<number>, shape: SaliencyShape): number[] {
  const { heads, kvHeads, headDim } = shape;
  const out: number[] = [];
  let [rows, first] = [0, 0];
  shape.queries.forEach((queries, b) => {
    const keys = shape.keys[b]!;
    rows += queries;
    const mean = Array<number>(keys).fill(0);
    for (let h = 0; queries > 0 && h < heads; h++) {
      const scores = mean.map((_, j) => {
        let dot = 0;
        for (let c = 0; c < headDim; c++) dot += q[((rows - 1) * heads + h) * headDim + c]! * k[((first + j) * kvHeads + Math.floor((h * kvHeads) / heads)) * headDim + c]!;
        return dot / Math.sqrt(headDim);
      });
      const top = Math.max(...scores);
      const sum = scores.reduce((total, score) => total + Math.exp(score - top), 0);
      scores.forEach((score, j) => { mean[j]! += Math.exp(score - top) / sum / heads; });
    }
    out.push(...shape.columns[b]!.map((column) => mean[column]!));
    first += keys;
  });
  return out;
}

/** Log-sum-exp (Tq, heads) of the last rows; other rows hold NaN, which must not be read. */
export function lastRowLse(q: ArrayLike<number>, k: ArrayLike<number>, shape: SaliencyShape): Float32Array {
  const { heads, kvHeads, headDim } = shape;
  const lse = new Float32Array(q.length / headDim).fill(NaN);
  let [rows, first] = [0, 0];
  shape.queries.forEach((queries, b) => {
    rows += queries;
    for (let h = 0; queries > 0 && h < heads; h++) {
      let sum = 0;
      for (let j = first; j < first + shape.keys[b]!; j++) {
        let dot = 0;
        for (let c = 0; c < headDim; c++) dot += q[((rows - 1) * heads + h) * headDim + c]! * k[(j * kvHeads + Math.floor((h * kvHeads) / heads)) * headDim + c]!;
        sum += Math.exp(dot / Math.sqrt(headDim));
      }
      lse[(rows - 1) * heads + h] = Math.log(sum);
    }
    first += shape.keys[b]!;
  });
  return lse;
}
