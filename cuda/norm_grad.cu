// rms_norm_grad, layer_norm_grad.   dx = rstd (g - mean(g) - n mean(g n)), g = w dy, n = (x - mean) rstd; dw += sum_t dy n, db += sum_t dy
//   in   dy, x (T, C), w (C), mean, rstd (T), f32   out  dx (T, C) written or added to; dw, db (C) added to; norms of dx's rows (T)
//   how  a block walks over rows and keeps its columns' shares of dw and db in registers; the shares of all blocks are then added in
//        a fixed order (two stages, no atomics). f32 sums; the norms in f64 from the values being written. The grid follows the shape
//        alone: the same bits on every run and device. An RMS norm is the case mean = mean(g) = 0
//   cost 12 T C bytes (16 when adding), bound by memory; w once per block: below 7 % of the reads at T = 4,096. Second stage: blocks C
//        floats twice. Up to 512 channels one warp a row, then 128, 256 and 512 threads
//   limits: none; C % 4 != 0, unaligned rows and C > 8,192 (layer norm: 4,096) take a plain path that reads dy and x up to three times
#include "cuda_backend.h"
#include "dtype.cuh"
#include "norm_grad.cuh"

namespace plumbline {
namespace {

constexpr int kValues = 16;                // of each row in a thread
constexpr int64_t kMostBlocks = 528;       // 4 blocks of 128 threads on each multiprocessor of an H100

template <int kThreads>
struct Columns {  // kValues floats of a row in each thread, four side by side
  static PLUMBLINE_DEVICE int of(int i) { return (i / 4 * kThreads + static_cast<int>(threadIdx.x)) * 4; }
  static PLUMBLINE_DEVICE void load(float (&to)[kValues], const float* from, int C) {
#pragma unroll
    for (int i = 0; i < kValues; i += 4) {
      const float4 four = of(i) < C ? *reinterpret_cast<const float4*>(from + of(i)) : make_float4(0, 0, 0, 0);
      to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    }
  }
  static PLUMBLINE_DEVICE void store(const float (&from)[kValues], float* to, int C) {
#pragma unroll
    for (int i = 0; i < kValues; i += 4)
      if (of(i) < C) *reinterpret_cast<float4*>(to + of(i)) = make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
  }
};

// x becomes the normal values. Elements beyond C are 0 in dy and w and add nothing.
template <bool kCentred, int kThreads>
PLUMBLINE_DEVICE void row_gradient(const float (&dy)[kValues], float (&x)[kValues], const float (&w)[kValues], float mean, float rstd, int C, float* room, float (&dx)[kValues]) {
  float sums[kCentred ? 2 : 1] = {};      // of g (x - mean), and of g
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const float g = dy[i] * w[i];
    if (kCentred) x[i] -= mean, sums[kCentred ? 1 : 0] += g;
    sums[0] = fmaf(g, x[i], sums[0]);
    x[i] *= rstd;
  }
  sum_over_block<kThreads>(sums, room);
  const float mean_gx = sums[0] * rstd / static_cast<float>(C), mean_g = kCentred ? sums[kCentred ? 1 : 0] / static_cast<float>(C) : 0.0f;
#pragma unroll
  for (int i = 0; i < kValues; ++i) dx[i] = gradient_of(dy[i], w[i], x[i], rstd, mean_g, mean_gx);
}

template <bool kCentred, int kThreads>
__global__ void __launch_bounds__(kThreads) norm_grad_kernel(NormGrad g) {
  using Part = Columns<kThreads>;
  __shared__ float room[2][2 * kThreads / 32];
  __shared__ double norm_room[kThreads / 32];
  const int C = static_cast<int>(g.C);
  float w[kValues], dw[kValues] = {}, db[kCentred ? kValues : 1] = {};
  Part::load(w, g.w_C, C);
  int turn = 0;
  for (int64_t t = blockIdx.x; t < g.T; t += gridDim.x, turn ^= 1) {
    float dy[kValues], x[kValues], before[kValues], dx[kValues];
    Part::load(dy, g.dy_TC + t * C, C);
    Part::load(x, g.x_TC + t * C, C);
    if (g.accumulate) Part::load(before, g.dx_TC + t * C, C);
    row_gradient<kCentred, kThreads>(dy, x, w, kCentred ? g.mean_T[t] : 0.0f, g.rstd_T[t], C, room[turn], dx);
    double square[1] = {};
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      if (g.accumulate) dx[i] = before[i] + dx[i];
      dw[i] = fmaf(dy[i], x[i], dw[i]);
      if constexpr (kCentred) db[i] += dy[i];
      if (g.dx_norm_T && Part::of(i) < C) square[0] += static_cast<double>(dx[i]) * static_cast<double>(dx[i]);
    }
    Part::store(dx, g.dx_TC + t * C, C);
    if (g.dx_norm_T) {
      sum_over_block<kThreads>(square, norm_room);
      if (threadIdx.x == 0) g.dx_norm_T[t] = static_cast<float>(sqrt(square[0]));
    }
  }
  if (!g.partial) return;
  float* partial = g.partial + static_cast<int64_t>(blockIdx.x) * C * (kCentred ? 2 : 1);
  Part::store(dw, partial, C);
  if constexpr (kCentred) Part::store(db, partial + C, C);
}

// out[c] += the column's shares: 32 threads take every 32nd of them, and their sums are added in order.
__global__ void __launch_bounds__(1024) add_shares_kernel(const float* partial, int64_t shares, int64_t width, float* dw, float* db, int64_t C) {
  __shared__ float room[32][33];
  const int64_t c = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x % 32;
  const int first = threadIdx.x / 32;
  float sum = 0;
#pragma unroll 4
  for (int64_t s = first; s < shares; s += 32) sum += c < width ? partial[s * width + c] : 0.0f;
  room[first][threadIdx.x % 32] = sum;
  __syncthreads();
  float* out = c < C ? dw : db;
  if (first > 0 || c >= width || !out) return;
  for (int i = 1; i < 32; ++i) sum += room[i][threadIdx.x];
  out[c < C ? c : c - C] += sum;
}

template <bool kCentred, int kThreads>
cudaError_t launch_fast(const NormGrad& g, unsigned blocks, cudaStream_t stream) {
  return launch(norm_grad_kernel<kCentred, kThreads>, dim3(blocks), dim3(kThreads), 0, stream, g);
}

template <bool kCentred>
cudaError_t launch_grad(const NormGrad& g, unsigned blocks, cudaStream_t stream) {
  if (g.C <= 512) return launch_fast<kCentred, 32>(g, blocks, stream);
  if (g.C <= 2048) return launch_fast<kCentred, 128>(g, blocks, stream);
  if (kCentred || g.C <= 4096) return launch_fast<kCentred, 256>(g, blocks, stream);
  if constexpr (!kCentred) return launch_fast<false, 512>(g, blocks, stream);
}

// Each costs C floats of w and of shares: eight rows a block, where that leaves none of the multiprocessors of an H100 idle.
int64_t most_blocks(const NormGrad& g) {
  return std::min(std::max<int64_t>(g.T / 8, 132), g.C <= 2048 ? kMostBlocks : g.C <= 4096 ? kMostBlocks / 2 : kMostBlocks / 4);
}

template <bool kCentred>
void norm_grad(CudaBackend& backend, NormGrad g, float* dw_C, float* db_C, const char* op) {
  if (g.T == 0) return;
  const bool is_fast = g.C % 4 == 0 && g.C <= (kCentred ? 4096 : 8192) && is_aligned_16(g.dy_TC) && is_aligned_16(g.x_TC) && is_aligned_16(g.w_C) && is_aligned_16(g.dx_TC);
  const unsigned blocks = blocks_of(g.T, 1, is_fast ? most_blocks(g) : 64);
  const int64_t width = g.C * (kCentred ? 2 : 1);
  if (dw_C || db_C) g.partial = static_cast<float*>(backend.scratch(static_cast<size_t>(blocks * width) * sizeof(float)));
  backend.check(is_fast ? launch_grad<kCentred>(g, blocks, backend.stream()) : plain_norm_grad(g, kCentred, blocks, backend.stream()), op);
  if (!g.partial) return;
  backend.check(launch(add_shares_kernel, dim3(blocks_of(width, 32)), dim3(1024), 0, backend.stream(), g.partial, static_cast<int64_t>(blocks), width, dw_C, db_C, g.C), op);
}

}  // namespace

void CudaBackend::rms_norm_grad(const float* dy_TC, const float* x_TC, const float* w_C, const float* rstd_T, float* dx_TC, float* dw_C, float* dx_norm_T, int64_t T, int64_t C,
                                bool accumulate_dx) {
  poll();
  norm_grad<false>(*this, NormGrad{dy_TC, x_TC, w_C, nullptr, rstd_T, dx_TC, dx_norm_T, nullptr, T, C, accumulate_dx}, dw_C, nullptr, "rms_norm_grad");
}

void CudaBackend::layer_norm_grad(const float* dy_TC, const float* x_TC, const float* w_C, const float* mean_T, const float* rstd_T, float* dx_TC, float* dw_C, float* db_C, int64_t T,
                                  int64_t C, bool accumulate_dx) {
  poll();
  norm_grad<true>(*this, NormGrad{dy_TC, x_TC, w_C, mean_T, rstd_T, dx_TC, nullptr, nullptr, T, C, accumulate_dx}, dw_C, db_C, "layer_norm_grad");
}

}  // namespace plumbline
