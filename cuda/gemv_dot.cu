// gemv_dot: products of many contiguous rows with few: linear at decode (w against up to 16 rows of x), router scores (x against few rows of w).
//   in   long rows (R, K) f32 or bf16, few rows (P, K) f32 or bf16, P <= 16, bias        out  f32, element (r, p) at r * out_row + p * out_few
//   how  a warp owns some rows and strides over K, lanes side by side; where the rows alone do not fill the device the warps of a block
//        share them and cut K. f32 sums: lane, butterfly over the warp, warps in order. Cut by shape alone: the same bits on every run
//   cost the long rows once, in 16-byte loads, two steps of four rows in flight for each warp; the few stay in L1. Bound by memory up to
//        P = 8 (f32 operations: P for each element of 2 or 4 bytes)
//   limits: K > 0. Rows that are not aligned take one element at a time
#include "product.cuh"
#include "reduce.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int64_t kWantedWarps = 4096;  // 31 for each of an H100's 132 multiprocessors

struct DotTask {
  const void *rows, *few;
  int64_t num_rows, K;
  int32_t num_few, split;  // split: warps that share a row
  const float* bias;
  bool bias_by_row, accumulate;
  float* out;
  int64_t out_row, out_few;
};

template <typename T, typename F, int kMost, int kRows, int kVector>
__global__ void __launch_bounds__(kThreads, 2) gemv_dot_kernel(DotTask task) {
  __shared__ float partial[kWarps][kMost * kRows];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, slice = warp % task.split, group = warp / task.split;
  const int block_rows = kWarps / task.split * kRows;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * block_rows + group * kRows;
  const T* row[kRows];
  for (int r = 0; r < kRows; ++r)  // past the end: the last row again, not stored
    row[r] = static_cast<const T*>(task.rows) + min(first_row + r, task.num_rows - 1) * task.K;
  const F* const few = static_cast<const F*>(task.few);
  float sum[kMost][kRows] = {};
  const int64_t step = static_cast<int64_t>(task.split) * 32 * kVector;
  for (int64_t k = (slice * 32 + lane) * kVector; k < task.K; k += 2 * step) {
    const bool has_second = k + step < task.K;
    Piece<T, kVector> piece[2][kRows];
#pragma unroll
    for (int u = 0; u < 2; ++u)
#pragma unroll
      for (int r = 0; r < kRows; ++r) piece[u][r] = *reinterpret_cast<const Piece<T, kVector>*>(row[r] + (u == 0 || has_second ? k + u * step : k));
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      if (u == 1 && !has_second) break;
#pragma unroll
      for (int p = 0; p < kMost; ++p) {
        if (p >= task.num_few) break;
        float x[kVector];
        load_floats(x, few + p * task.K + k + u * step);
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
          for (int v = 0; v < kVector; ++v) sum[p][r] = fmaf(to_float(piece[u][r].at[v]), x[v], sum[p][r]);
      }
    }
  }
#pragma unroll
  for (int p = 0; p < kMost; ++p)
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float whole = warp_sum(sum[p][r]);
      if (lane == 0) partial[warp][p * kRows + r] = whole;
    }
  __syncthreads();
  for (int i = threadIdx.x; i < task.num_few * block_rows; i += kThreads) {
    const int p = i / block_rows, r = i % block_rows;
    const int64_t at_row = static_cast<int64_t>(blockIdx.x) * block_rows + r;
    if (at_row >= task.num_rows) continue;
    float value = 0;
    for (int s = 0; s < task.split; ++s) value += partial[r / kRows * task.split + s][p * kRows + r % kRows];
    if (task.bias) value += task.bias[task.bias_by_row ? at_row : p];
    float* const out = task.out + at_row * task.out_row + p * task.out_few;
    *out = task.accumulate ? *out + value : value;
  }
}

template <typename T, typename F, int kMost, int kRows, int kVector>
cudaError_t start(DotTask task, cudaStream_t stream) {
  const int64_t groups = (task.num_rows + kRows - 1) / kRows, steps = (task.K + 32 * kVector - 1) / (32 * kVector);
  task.split = 1;
  while (task.split < kWarps && task.split < steps && groups * task.split < kWantedWarps) task.split *= 2;
  return launch(gemv_dot_kernel<T, F, kMost, kRows, kVector>, dim3(blocks_of(groups, kWarps / task.split)), dim3(kThreads), 0, stream, task);
}

template <typename T, typename F>
cudaError_t start(const DotTask& task, cudaStream_t stream) {
  constexpr int kVector = 16 / sizeof(T);
  if (task.K % 8 != 0 || !is_aligned_16(task.rows) || !is_aligned_16(task.few)) return start<T, F, kFew, 2, 1>(task, stream);
  if (task.num_few == 1) return start<T, F, 1, 4, kVector>(task, stream);
  if (task.num_few <= 4) return start<T, F, 4, 4, kVector>(task, stream);
  return start<T, F, kFew, 2, kVector>(task, stream);
}

}  // namespace

cudaError_t gemv_dot(const Product& p, cudaStream_t stream) {
  if (p.M <= kFew && (p.b_is_bf16 || p.M <= p.N)) {
    const DotTask task{p.b, p.a, p.N, p.K, static_cast<int32_t>(p.M), 1, p.bias_N, true, p.accumulate, p.c_MN, 1, p.N};
    return p.b_is_bf16 ? start<bf16, float>(task, stream) : start<float, float>(task, stream);
  }
  const DotTask task{p.a, p.b, p.M, p.K, static_cast<int32_t>(p.N), 1, p.bias_N, false, p.accumulate, p.c_MN, p.N, 1};
  return p.b_is_bf16 ? start<float, bf16>(task, stream) : start<float, float>(task, stream);
}

}  // namespace plumbline
