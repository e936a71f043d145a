/** Softmax attention over packed rows in float64, from the definition: one query row and head at a time. */

export interface AttentionCase { queries: number[]; keys: number[]; heads: number; kvHeads: number; headDim: number; causal: boolean }

export function attentionReference(q: ArrayLike<number>, k: ArrayLike<number>, v: ArrayLike<number>, shape: AttentionCase): { out: number[]; lse: number[] } {
  const { heads, kvHeads, headDim: d, causal } = shape;
  const [out, lse]: [number[], number[]] = [[], []];
  let [firstQ, firstK] = [0, 0];
  shape.queries.forEach((queries, b) => {
    const keys = shape.keys[b]!;
    for (let i = 0; i < queries; i++) for (let h = 0; h < heads; h++) {
      const seen = causal ? keys - queries + i + 1 : keys;
      const kv = Math.floor((h * kvHeads) / heads);
      const keyAt = (j: number): number => ((firstK + j) * kvHeads + kv) * d;
      const queryAt = ((firstQ + i) * heads + h) * d;
      const scores = Array.from({ length: seen }, (_, j) => {
        let dot = 0;
        for (let c = 0; c < d; c++) dot += q[queryAt + c]! * k[keyAt(j) + c]!;
        return dot / Math.sqrt(d);
      });
      const top = Math.max(...scores);
      const sum = scores.reduce((a, s) => a + Math.exp(s - top), 0);
      lse.push(top + Math.log(sum));
      for (let c = 0; c < d; c++) out.push(scores.reduce((a, s, j) => a + (Math.exp(s - top) / sum) * v[keyAt(j) + c]!, 0));
    }
    firstQ += queries;
    firstK += keys;
  });
  return { out, lse };
}
