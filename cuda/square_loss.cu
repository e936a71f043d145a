// square_loss: mean squared difference of paired rows.   loss_r = 1/C sum_c (a - b)^2,  da = 2 scale (a - b) / C  (arXiv 2604.10500, L_SR)
//   in   a, b (R, C) f32       out  loss (R); da added to, db overwritten with the negative
//   how  one block a row, f64 sums in a fixed order; deterministic. NaN and inf spread within their row
//   cost a handful of rows a step: one read of a and b; 4-byte accesses, coalesced
//   limits: none
#include "cuda_backend.h"
#include "reduce.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) square_loss_kernel(const float* a_RC, const float* b_RC, float* loss_R, int64_t C) {
  __shared__ double room[kThreads / 32];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * C;
  double sum = 0;
  for (int64_t c = threadIdx.x; c < C; c += kThreads) {
    const double off = static_cast<double>(a_RC[row + c]) - static_cast<double>(b_RC[row + c]);
    sum += off * off;
  }
  sum = block_sum<kThreads>(sum, room);
  if (threadIdx.x == 0) loss_R[blockIdx.x] = static_cast<float>(sum / static_cast<double>(C));
}

__global__ void __launch_bounds__(kThreads) square_loss_grad_kernel(const float* a_RC, const float* b_RC, const float* scale_R, float* da_RC, float* db_RC, int64_t C) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * C;
  const float factor = 2.0f * scale_R[blockIdx.x] / static_cast<float>(C);
  for (int64_t c = row + threadIdx.x; c < row + C; c += kThreads) {
    const float part = factor * (a_RC[c] - b_RC[c]);
    da_RC[c] += part;
    if (db_RC) db_RC[c] = -part;
  }
}

}  // namespace

void CudaBackend::square_loss(const float* a_RC, const float* b_RC, float* loss_R, int64_t R, int64_t C) {
  poll();
  check(launch(square_loss_kernel, dim3(blocks_of(R, 1)), dim3(kThreads), 0, stream(), a_RC, b_RC, loss_R, C), "square_loss");
}

void CudaBackend::square_loss_grad(const float* a_RC, const float* b_RC, const float* scale_R, float* da_RC, float* db_RC, int64_t R, int64_t C) {
  poll();
  check(launch(square_loss_grad_kernel, dim3(blocks_of(R, 1)), dim3(kThreads), 0, stream(), a_RC, b_RC, scale_R, da_RC, db_RC, C), "square_loss_grad");
}

}  // namespace plumbline
