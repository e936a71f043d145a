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
    report.skip(`${name}.saliency`);
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

/** Cuts box x1, y1, x2, y2 out of an RGB picture. */
function cut(image: Uint8Array, width: number, [x1, y1, x2, y2]: [number, number, number, number]): Uint8Array {
  const out = new Uint8Array((y2 - y1) * (x2 - x1) * 3);
  for (let y = y1; y < y2; y++) out.set(image.subarray((y * width + x1) * 3, (y * width + x2) * 3), (y - y1) * (x2 - x1) * 3);
  return out;
}

const resize: OpRunner = async (ops, report) => {
  const { golden } = report;
  for (const name of casesOf(report, 'size')) {
    const [height, width] = golden.shape(`in.${name}.image`) as [number, number];
    const [high, wide] = golden.i32(`in.${name}.size`) as unknown as [number, number];
    const image = golden.u8(`in.${name}.image`);
    if (golden.has(`in.${name}.box`)) {
      const box = [...golden.i32(`in.${name}.box`)] as [number, number, number, number];
      report.compare(`${name}.out`, await ops.resize(cut(image, width, box), box[3] - box[1], box[2] - box[0], high, wide, 'bilinear'));
    } else {
      report.compare(`${name}.out`, await ops.resize(image, height, width, high, wide, 'bicubic'));
    }
  }
};

export const OP_RUNNERS: Readonly<Record<string, OpRunner>> = Object.freeze({
  'ops/norm': norm, 'ops/activation': activation, 'ops/mrope': mrope, 'ops/attention': attention, 'ops/cross_entropy': crossEntropy, 'ops/resize': resize,
});
