#pragma once
// What the two paths of norm_grad.cu share.
#include "launch.cuh"
#include "reduce.cuh"

namespace plumbline {

struct NormGrad {
  const float *dy_TC, *x_TC, *w_C, *mean_T, *rstd_T;
  float *dx_TC, *dx_norm_T, *partial;      // partial (blocks, C) of dw, or (blocks, 2 C) with db; may be null
  int64_t T, C;
  bool accumulate;
};

// Sums over the block, in every thread. room: kCount values per warp; not the room of the use before, so that one barrier is enough.
template <int kThreads, int kCount, typename T>
PLUMBLINE_DEVICE void sum_over_block(T (&value)[kCount], T* room) {
  constexpr int kWarps = kThreads / 32;
#pragma unroll
  for (int k = 0; k < kCount; ++k) value[k] = warp_sum(value[k]);
  if constexpr (kWarps > 1) {
    if (threadIdx.x % 32 == 0)
      for (int k = 0; k < kCount; ++k) room[k * kWarps + threadIdx.x / 32] = value[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      value[k] = room[k * kWarps];
      for (int w = 1; w < kWarps; ++w) value[k] += room[k * kWarps + w];
    }
  }
}

PLUMBLINE_DEVICE float gradient_of(float dy, float w, float normal, float rstd, float mean_g, float mean_gx) {
  // dy w is rounded before the subtraction, as it was in the mean: with one channel the difference must be 0, and rstd may be 1000
  return rstd * ((dy * w - mean_g) - normal * mean_gx);
}

// dx and, where g.partial is not null, `slices` shares of dw (and db), for rows of any width and alignment: norm_grad_plain.cu.
cudaError_t plain_norm_grad(const NormGrad& g, bool is_centred, unsigned slices, cudaStream_t stream);

}  // namespace plumbline
