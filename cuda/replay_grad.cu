// select_patches_grad: the weights' gradient.   mean preserving: da_i = (rows dw_i - sum_j w_j dw_j) / sum a; softmax: da_i = w_i (dw_i -
//        sum_j w_j dw_j); 0 where the weights were equal because the scores gave none      (arXiv 2604.10500, SCF-VR; algorithms 3.3)
//   in   saliency (N), weight, dweight (cu_selected) f32; selected: host        out  dsaliency (N): added to
//   how  sums in f64: of scores in block order, of w dw by a warp in a fixed tree. A weight of 0 is a used token's, or underflowed
//   cost 1 launch, a warp a sequence; bound by latency
//   limits: a sequence's selected tokens are distinct
#include "cuda_backend.h"
#include "reduce.cuh"

namespace plumbline {
namespace {

struct GradCall {
  bool is_softmax, mix;
  const int32_t *cu_tokens_B1, *cu_selected_B1, *selected;
  const float *saliency_N, *weight, *dweight;
  float* dsaliency_N;
};

__global__ void __launch_bounds__(32) select_patches_grad_kernel(GradCall c) {
  const int b = blockIdx.x, place = c.cu_selected_B1[b], count = c.cu_selected_B1[b + 1] - place, lane = threadIdx.x;
  const float* saliency = c.saliency_N + c.cu_tokens_B1[b];
  double sum = 0, centre = 0;
  bool is_odd = false;  // a score that is not finite has a weight
  for (int i = lane; i < count; i += 32) {
    const float a = saliency[c.selected[place + i]], w = c.weight[place + i];
    if (w == 0.0f) continue;
    is_odd = is_odd || !(fabsf(a) <= 3.402823466e38f);
    centre += static_cast<double>(w) * static_cast<double>(c.dweight[place + i]);
  }
  if (!c.is_softmax)
#pragma unroll 8
    for (int i = 0; i < count; ++i) sum += static_cast<double>(saliency[c.selected[place + i]]);  // as select_patches adds them
  centre = warp_sum(centre);
  if (c.is_softmax ? __any_sync(kFullMask, is_odd) != 0 : !(sum > 0 && sum <= 1.7976931348623157e308)) return;
  const double rows = c.mix ? 1.0 : static_cast<double>(count);
  for (int i = lane; i < count; i += 32) {
    const double w = static_cast<double>(c.weight[place + i]), dw = static_cast<double>(c.dweight[place + i]);
    if (c.is_softmax && w == 0) continue;
    c.dsaliency_N[c.cu_tokens_B1[b] + c.selected[place + i]] += static_cast<float>(c.is_softmax ? w * (dw - centre) : (rows * dw - centre) / sum);
  }
}

}  // namespace

void CudaBackend::select_patches_grad(const ReplayRule& rule, const ReplayLayout& layout, const float* saliency_N, const int32_t* selected, const float* weight, const float* dweight,
                                      float* dsaliency_N) {
  poll();
  const int32_t B = layout.B;
  if (B == 0) return;
  Upload up(*this, "select_patches_grad");
  const auto tokens = up.add(layout.cu_tokens_B1, B + 1), places = up.add(layout.cu_selected_B1, B + 1), chosen = up.add(selected, layout.cu_selected_B1[B]);
  up.send();
  const GradCall call{rule.weights == ReplayWeights::softmax, rule.mix, up[tokens], up[places], up[chosen], saliency_N, weight, dweight, dsaliency_N};
  check(launch(select_patches_grad_kernel, dim3(static_cast<unsigned>(B)), dim3(32), 0, stream(), call), "select_patches_grad");
}

}  // namespace plumbline
