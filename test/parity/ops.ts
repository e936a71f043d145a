/** Goldens of single operations, through the native operations that `plumbline/kernels` wraps. */
import type { NativeOps } from '../../lib/native';
import type { Report } from './goldens';

type OpRunner = (ops: NativeOps, report: Report) => Promise<void>;

/** Case names: `in.<case>.<tensor>`. */
function casesOf(report: Report, tensor: string): string[] {
  return report.golden.names('in.').filter((name) => name.endsWith(`.${tensor}`)).map((name) => name.slice(3, -tensor.length - 1));
}

const EPS = 1e-6;

const norm: OpRunner = async (ops, report) => {
  const { golden } = report;
  for (const name of casesOf(report, 'weight')) {
    const [x, weight, dout] = ['x', 'weight', 'dout'].map((t) => golden.f32(`in.${name}.${t}`)) as [Float32Array, Float32Array, Float32Array];
    if (name.startsWith('rms_')) {
      report.compare(`${name}.out`, await ops.rmsNorm(x, weight, EPS));
      const grad = await ops.rmsNormGrad(x, weight, dout, EPS);
      report.compare(`${name}.d_x`, grad.dx);
      report.compare(`${name}.d_weight`, grad.dweight);
    } else {
      const bias = golden.f32(`in.${name}.bias`);
      report.compare(`${name}.out`, await ops.layerNorm(x, weight, bias, EPS));
      const grad = await ops.layerNormGrad(x, weight, bias, dout, EPS);
      report.compare(`${name}.d_x`, grad.dx);
      report.compare(`${name}.d_weight`, grad.dweight);
      report.compare(`${name}.d_bias`, grad.dbias);
    }
  }
};

const activation: OpRunner = async (ops, report) => {
  const { golden } = report;
  for (const name of casesOf(report, 'gate')) {
    const [gate, up, dout] = ['gate', 'up', 'dout'].map((t) => golden.f32(`in.${name}.${t}`)) as [Float32Array, Float32Array, Float32Array];
    report.compare(`${name}.out`, await ops.swiglu(gate, up));
    const grad = await ops.swigluGrad(gate, up, dout);
    report.compare(`${name}.d_gate`, grad.dgate);
    report.compare(`${name}.d_up`, grad.dup);
  }
  for (const name of casesOf(report, 'x')) {
    const kind = name.startsWith('quick_gelu') ? 'quick_gelu' : 'gelu';
    const x = golden.f32(`in.${name}.x`);
    report.compare(`${name}.out`, await ops.activation(kind, x));
    report.compare(`${name}.d_x`, await ops.activationGrad(kind, x, golden.f32(`in.${name}.dout`)));
  }
};

const mrope: OpRunner = async (ops, report) => {
  const { golden } = report;
  for (const name of casesOf(report, 'section')) {
    const [, heads, headDim] = golden.shape(`in.${name}.x`) as [number, number, number];
    const turn = (x: Float32Array, inverse: boolean): Promise<Float32Array> =>
      ops.mrope(x, golden.i32(`in.${name}.positions`), golden.i32(`in.${name}.section`), heads, headDim, 1e6, inverse);
    report.compare(`${name}.out`, await turn(golden.f32(`in.${name}.x`), false));
    report.compare(`${name}.d_x`, await turn(golden.f32(`in.${name}.dout`), true));
  }
};

const attention: OpRunner = async (ops, report) => {
  const { golden } = report;
  for (const name of casesOf(report, 'q')) {
    const [, heads, headDim] = golden.shape(`in.${name}.q`) as [number, number, number];
    const [, kvHeads] = golden.shape(`in.${name}.k`) as [number, number, number];
    const input = {
      q: golden.f32(`in.${name}.q`), k: golden.f32(`in.${name}.k`), v: golden.f32(`in.${name}.v`),
      cuQ: golden.i32(`in.${name}.cu_q`), cuK: golden.i32(`in.${name}.cu_k`), heads, kvHeads, headDim, causal: true,
    };
    const { out, lse } = await ops.attention(input);
    report.compare(`${name}.out`, out);
    report.compare(`${name}.lse`, lse);
    const grad = await ops.attentionGrad(input, golden.f32(`in.${name}.dout`));
    report.compare(`${name}.d_q`, grad.dq);
    report.compare(`${name}.d_k`, grad.dk);
    report.compare(`${name}.d_v`, grad.dv);
    const columns = Int32Array.from(lengthsOf(input.cuK).flatMap((length) => [...Array(length).keys()]));
    report.compare(`${name}.saliency`, (await ops.attentionSaliency({ ...input, columns, cuColumns: input.cuK })).saliency);
  }
};

const saliency: OpRunner = async (ops, report) => {
  const { golden } = report;
  for (const name of casesOf(report, 'q')) {
    const [heads, headDim] = golden.shape(`in.${name}.q`) as [number, number];
    const [keys, kvHeads] = golden.shape(`in.${name}.k`) as [number, number, number];
    const columns = golden.i32(`in.${name}.columns`);
    const input = {
      q: golden.f32(`in.${name}.q`), k: golden.f32(`in.${name}.k`), cuQ: Int32Array.of(0, 1), cuK: Int32Array.of(0, keys),
      columns, cuColumns: Int32Array.of(0, columns.length), heads, kvHeads, headDim,
    };
    report.compare(`${name}.out`, (await ops.attentionSaliency(input)).saliency);
    const grad = await ops.attentionSaliencyGrad(input, golden.f32(`in.${name}.dout`));
    report.compare(`${name}.d_q`, grad.dq);
    report.compare(`${name}.d_k`, grad.dk);
  }
};

/** Offsets of the first `count` segments, and their values. */
function firstRows(values: Float32Array, indptr: Int32Array, count: number): { values: Float32Array; indptr: Int32Array } {
  return { values: values.subarray(0, indptr[count]), indptr: indptr.slice(0, count + 1) };
}

const lengthsOf = (offsets: Int32Array): number[] => [...offsets.subarray(1)].map((end, b) => end - (offsets[b] as number));

/** Each row is one picture of 1 x n cells. The last row holds NaN, for which the oracle has no prefix. */
const topk: OpRunner = async (ops, report) => {
  const { golden } = report;
  const [values, indptr] = [golden.f32('in.values'), golden.i32('in.indptr')];
  const lengths = lengthsOf(indptr);
  const pictures = lengths.filter((length) => length > 0);
  const cuPictures = Int32Array.from([0, ...lengths.keys()].map((_, b) => lengths.slice(0, b).filter((length) => length > 0).length));
  for (const name of golden.names('out.').filter((key) => key.endsWith('.counts')).map((key) => key.slice(4, -'.counts'.length))) {
    const k = Number(name.slice(1));
    const got = await ops.coherentWindow(values, {
      cuTokens: indptr, cuPictures, grids: Int32Array.from(pictures.flatMap((length) => [1, length])), patches: k, window: 1,
      weights: 'softmax', used: new Uint8Array(values.length),
    });
    report.compare(`${name}.counts`, lengthsOf(got.cuSelected));
    report.compare(`${name}.selected`, got.selected);
    const rows = firstRows(values, indptr, lengths.length - 1);
    const routed = await ops.routeTokens(rows.values, { rule: 'prefix-topk', cuSeqlens: rows.indptr, alpha: k, cuBest: new Int32Array(rows.indptr.length), best: new Float32Array(0) });
    report.compare(`${name}.prefix_counts`, lengthsOf(routed.cuRouted));
    const { cuRouted } = routed;
    report.compare(`${name}.prefix`, routed.rows.map((row, i) => row - (indptr[cuRouted.findLastIndex((start) => start <= i)] as number)));
  }
};

/** The marked cells score 1 and all are selected. Without marks a replay step has no block and no window: the first one, by definition. */
const window: OpRunner = async (ops, report) => {
  const { golden } = report;
  const [sizes, cells, indptr] = [golden.i32('in.sizes'), golden.i32('in.cells'), golden.i32('in.indptr')];
  const best: number[] = [];
  for (let n = 0; n + 1 < indptr.length; n++) {
    const [height, wide, side] = sizes.subarray(3 * n) as unknown as [number, number, number];
    const scores = new Float32Array(height * wide);
    const marked = cells.subarray(indptr[n], indptr[n + 1]);
    for (const cell of marked) scores[cell] = 1;
    const { windows } = await ops.coherentWindow(scores, {
      cuTokens: Int32Array.of(0, scores.length), cuPictures: Int32Array.of(0, 1), grids: Int32Array.of(height, wide), patches: Math.max(1, marked.length),
      window: side, weights: 'mean-preserving', used: Uint8Array.from(scores, () => (marked.length === 0 ? 1 : 0)),
    });
    if (marked.length === 0 && windows.some((value) => value !== 0)) throw new Error(`a window of nothing: ${windows.join()}`);
    best.push(...(marked.length === 0 ? [0, 0, Math.min(side, height), Math.min(side, wide), 0] : windows.subarray(1)));
  }
  report.compare('best', best);
};

const compaction: OpRunner = async (ops, report) => {
  const { golden } = report;
  const { rows, cuRouted } = await ops.routeTokens(golden.f32('in.scores'), { rule: 'threshold', cuSeqlens: golden.i32('in.cu_seqlens'), threshold: golden.f32('in.threshold')[0] as number });
  report.compare('rows', rows);
  report.compare('cu_routed', cuRouted);
};

const gatherRmsNorm: OpRunner = async (ops, report) => {
  const { golden } = report;
  for (const name of casesOf(report, 'rows')) {
    const [x, weight, step, dout] = ['x', 'weight', 'step', 'dout'].map((t) => golden.f32(`in.${name}.${t}`)) as [Float32Array, Float32Array, Float32Array, Float32Array];
    const rows = golden.i32(`in.${name}.rows`);
    report.compare(`${name}.out`, (await ops.gatherRmsNorm(x, rows, weight, step, EPS)).y);
    const grad = await ops.gatherRmsNormGrad(x, rows, weight, step, EPS, dout);
    report.compare(`${name}.d_x`, grad.dh);
    report.compare(`${name}.d_step`, grad.dstep);
    report.compare(`${name}.d_weight`, grad.dweight);
  }
};

/** Case 'interpolate' gives the score, whose sigmoid is the gate; case 'plain' the gate. */
const gatedScatter: OpRunner = async (ops, report) => {
  const { golden } = report;
  for (const name of ['interpolate', 'plain'] as const) {
    const [h, y, dout] = ['h', 'y', 'dout'].map((t) => golden.f32(`in.${name}.${t}`)) as [Float32Array, Float32Array, Float32Array];
    const [rows, width] = [golden.i32(`in.${name}.rows`), golden.shape(`in.${name}.h`)[1] as number];
    const gate = name === 'plain' ? golden.f32('in.plain.g') : golden.f32('in.interpolate.s').map((s) => 1 / (1 + Math.exp(-s)));
    report.compare(`${name}.out`, (await ops.gatedScatter(h, y, gate, rows, null, name, width)).out);
    const grad = await ops.gatedScatterGrad(h, y, gate, rows, null, name, width, dout);
    report.compare(`${name}.d_h`, grad.dh);
    report.compare(`${name}.d_y`, grad.dy);
    report.compare(name === 'plain' ? 'plain.d_g' : 'interpolate.d_s', name === 'plain' ? grad.dgate : grad.dgate.map((d, i) => d * (gate[i] as number) * (1 - (gate[i] as number))));
  }
};

const crossEntropy: OpRunner = async (ops, report) => {
  const { golden } = report;
  for (const name of casesOf(report, 'logits')) {
    const targets = golden.i32(`in.${name}.target`);
    const counted = targets.filter((target) => target >= 0).length;
    const upstream = golden.one(`in.${name}.dout`);
    const { losses, dlogits } = await ops.crossEntropy(golden.f32(`in.${name}.logits`), targets, upstream / counted);
    report.compare(`${name}.losses`, losses);
    report.compare(`${name}.out`, [losses.reduce((sum, loss) => sum + loss, 0) / counted]);
    report.compare(`${name}.d_logits`, dlogits);
  }
};

const CROP = { patch: 14, merge: 2, temporal: 1, mean: new Float32Array(3), std: Float32Array.of(1, 1, 1) };

const resize: OpRunner = async (ops, report) => {
  const { golden } = report;
  for (const name of casesOf(report, 'size')) {
    const [height, width] = golden.shape(`in.${name}.image`) as [number, number];
    const [high, wide] = golden.i32(`in.${name}.size`) as unknown as [number, number];
    const image = golden.u8(`in.${name}.image`);
    if (golden.has(`in.${name}.box`)) {
      const box = golden.i32(`in.${name}.box`);
      report.compare(`${name}.out`, (await ops.cropPatches(image, { ...CROP, height, width, box, toHeight: high, toWidth: wide })).pixels);
    } else {
      report.compare(`${name}.out`, await ops.resize(image, height, width, high, wide, 'bicubic'));
    }
  }
};

export const OP_RUNNERS: Readonly<Record<string, OpRunner>> = Object.freeze({
  'ops/norm': norm, 'ops/activation': activation, 'ops/mrope': mrope, 'ops/attention': attention, 'ops/cross_entropy': crossEntropy, 'ops/resize': resize,
  'ops/saliency': saliency, 'ops/topk': topk, 'ops/window': window, 'ops/compaction': compaction, 'ops/gather_rms_norm': gatherRmsNorm, 'ops/gated_scatter': gatedScatter,
});
