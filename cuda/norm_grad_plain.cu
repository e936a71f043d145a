// The gradients of norm_grad.cu for rows of any width and alignment: odd or unaligned C, or C > 8,192.
//   how  one block a row for dx, reading the row twice; then the shares of dw and db by columns, reading it once more
//   cost 28 T C bytes from memory or cache; 4-byte accesses, coalesced
//   limits: slices <= 65,535
#include "norm_grad.cuh"

namespace plumbline {
namespace {

constexpr int kPlainThreads = 256;

// dx of rows of any width and alignment: one block a row, which it reads twice.
template <bool kCentred>
__global__ void __launch_bounds__(kPlainThreads) norm_grad_plain_kernel(NormGrad g) {
  __shared__ float room[2][2 * kPlainThreads / 32];
  __shared__ double norm_room[kPlainThreads / 32];
  const int64_t C = g.C;
  int turn = 0;
  for (int64_t t = blockIdx.x; t < g.T; t += gridDim.x, turn ^= 1) {
    const float *dy = g.dy_TC + t * C, *x = g.x_TC + t * C, mean = kCentred ? g.mean_T[t] : 0.0f, rstd = g.rstd_T[t];
    float sums[2] = {};
    for (int64_t c = threadIdx.x; c < C; c += kPlainThreads) {
      const float product = dy[c] * g.w_C[c];
      sums[0] = fmaf(product, x[c] - mean, sums[0]);
      if (kCentred) sums[1] += product;
    }
    sum_over_block<kPlainThreads>(sums, room[turn]);
    const float mean_gx = sums[0] * rstd / static_cast<float>(C), mean_g = sums[1] / static_cast<float>(C);
    double square[1] = {};
    for (int64_t c = threadIdx.x; c < C; c += kPlainThreads) {
      float* to = g.dx_TC + t * C + c;
      const float out = gradient_of(dy[c], g.w_C[c], (x[c] - mean) * rstd, rstd, mean_g, mean_gx), value = g.accumulate ? *to + out : out;
      *to = value;
      square[0] += static_cast<double>(value) * static_cast<double>(value);
    }
    if (!g.dx_norm_T) continue;
    sum_over_block<kPlainThreads>(square, norm_room);
    if (threadIdx.x == 0) g.dx_norm_T[t] = static_cast<float>(sqrt(square[0]));
  }
}

// Shares of dw and db for that path: block row y takes the rows y, y + slices, ...
template <bool kCentred>
__global__ void __launch_bounds__(kPlainThreads) norm_shares_kernel(NormGrad g) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kPlainThreads + threadIdx.x, C = g.C;
  if (c >= C) return;
  float dw = 0, db = 0;
  for (int64_t t = blockIdx.y; t < g.T; t += gridDim.y) {
    const float dy = g.dy_TC[t * C + c];
    dw = fmaf(dy, (g.x_TC[t * C + c] - (kCentred ? g.mean_T[t] : 0.0f)) * g.rstd_T[t], dw);
    db += dy;
  }
  float* partial = g.partial + static_cast<int64_t>(blockIdx.y) * C * (kCentred ? 2 : 1);
  partial[c] = dw;
  if (kCentred) partial[C + c] = db;
}

template <bool kCentred>
cudaError_t launch_plain(const NormGrad& g, unsigned slices, cudaStream_t stream) {
  const cudaError_t status = launch(norm_grad_plain_kernel<kCentred>, dim3(blocks_of(g.T, 1)), dim3(kPlainThreads), 0, stream, g);
  if (status != cudaSuccess || !g.partial) return status;
  return launch(norm_shares_kernel<kCentred>, dim3(blocks_of(g.C, kPlainThreads), slices), dim3(kPlainThreads), 0, stream, g);
}

}  // namespace

cudaError_t plain_norm_grad(const NormGrad& g, bool is_centred, unsigned slices, cudaStream_t stream) {
  return is_centred ? launch_plain<true>(g, slices, stream) : launch_plain<false>(g, slices, stream);
}

}  // namespace plumbline
