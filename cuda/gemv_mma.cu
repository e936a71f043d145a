// gemv_mma: linear for 5 to 16 rows of x, on the tensor cores: f32 operations for so many rows would take longer than the weights' bytes.
//   y = x w^T + bias
//   in   x (M, K) f32, w (N, K) f32 or bf16, 4 < M <= 16        out  y f32
//   how  the arithmetic of gemm.cu, split in registers. A warp owns 8, 16 or 32 rows of w; lane 4 g + q holds k = 8 q .. 8 q + 7 of 32 for row g, which
//        serve as fragments as they were loaded: the order of k within a product is free as long as both operands agree. Where the rows do
//        not fill the device the warps of a block share them and cut K; their sums are added in order: the same bits on every run
//   cost w once in 16-byte loads, the next 32 k in flight during the products of these; x from L1. 20 KB of shared memory. Bound by memory
//   limits: K > 0, a multiple of 8; x and w aligned to 16 bytes
#include "product.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kDepth = 32;
constexpr int kInFlight = 4;             // 8 x 32 parts of w that a warp waits for: 2 KB (bf16) or 4 KB
constexpr int kMostRows = 32, kStride = kMostRows + 8;  // of partial sums: the eight rows of a fragment and their pairs touch every bank once
constexpr int64_t kWantedBlocks = 132;
constexpr int64_t kWantedWarps = 2048;  // 15 for each of an H100's 132 multiprocessors

// A lane's eight elements of a row of w, as loaded, and as parts.
template <typename T>
struct Eight;
template <>
struct Eight<bf16> {
  static constexpr int kParts = 1;
  uint4 words;
  PLUMBLINE_DEVICE void load(const bf16* from) { words = *reinterpret_cast<const uint4*>(from); }
  PLUMBLINE_DEVICE void split(uint32_t (&part)[1][4]) const { part[0][0] = words.x, part[0][1] = words.y, part[0][2] = words.z, part[0][3] = words.w; }
};
template <>
struct Eight<float> {
  static constexpr int kParts = kPlanes;
  float x[8];
  PLUMBLINE_DEVICE void load(const float* from) { load_floats(x, from); }
  PLUMBLINE_DEVICE void split(uint32_t (&part)[kPlanes][4]) const { split_floats(x, part); }
};

// total[16 rows of x, 8 rows of w] += their product over 32 k.
template <int kParts>
PLUMBLINE_DEVICE void multiply(const uint32_t (&x)[2][kPlanes][4], const uint32_t (&w)[kParts][4], float (&total)[4]) {
  float sum[4] = {};
#pragma unroll
  for (int order = 2; order >= 0; --order)  // small products first
#pragma unroll
    for (int part_x = order; part_x >= 0; --part_x) {
      const int part_w = order - part_x;
      if (part_w >= kParts) continue;
#pragma unroll
      for (int s = 0; s < 4; s += 2) {
        const uint32_t a[4] = {x[0][part_x][s], x[1][part_x][s], x[0][part_x][s + 1], x[1][part_x][s + 1]};
        mma_bf16(sum, a, w[part_w][s], w[part_w][s + 1]);
      }
    }
#pragma unroll
  for (int e = 0; e < 4; ++e) total[e] += sum[e];
}

template <typename T, int kTiles>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 2 : 1) gemv_mma_kernel(Product p, int32_t split) {
  __align__(16) __shared__ float partial[kWarps][kFew][kStride];
  constexpr int kRows = 8 * kTiles, kSteps = kInFlight / kTiles;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4, slice = warp % split;
  const int block_rows = kWarps / split * kRows;
  const int64_t block_row = static_cast<int64_t>(blockIdx.x) * block_rows, first_row = block_row + warp / split * kRows;
  const T* const w = static_cast<const T*>(p.b);
  const T* row[kTiles];
  for (int t = 0; t < kTiles; ++t) row[t] = w + min(first_row + t * 8 + g, p.N - 1) * p.K;  // past the end: the last row again, not stored
  const auto load = [&](int t, int64_t k) {
    Eight<T> eight = {};
    if (k < p.K) eight.load(row[t] + k);
    return eight;
  };
  float total[kTiles][4] = {};
  const int64_t step = split * kDepth;
  Eight<T> next[kSteps][kTiles];
#pragma unroll
  for (int s = 0; s < kSteps; ++s)
#pragma unroll
    for (int t = 0; t < kTiles; ++t) next[s][t] = load(t, slice * kDepth + q * 8 + s * step);
  for (int64_t start = slice * kDepth; start < p.K; start += kSteps * step)
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int64_t k = start + s * step + q * 8;
      uint32_t x[2][kPlanes][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float values[8] = {};
        if (g + 8 * half < p.M && k < p.K) load_floats(values, p.a + (g + 8 * half) * p.K + k);
        split_floats(values, x[half]);
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        uint32_t parts[Eight<T>::kParts][4];
        next[s][t].split(parts);
        next[s][t] = load(t, k + kSteps * step);
        multiply(x, parts, total[t]);
      }
    }
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<float2*>(&partial[warp][g + 8 * half][t * 8 + 2 * q]) = make_float2(total[t][2 * half], total[t][2 * half + 1]);
  __syncthreads();
  for (int i = threadIdx.x; i < p.M * block_rows; i += kThreads) {
    const int m = i / block_rows, r = i % block_rows;
    const int64_t row = block_row + r;
    if (row >= p.N) continue;
    float value = 0;
    for (int s = 0; s < split; ++s) value += partial[r / kRows * split + s][m][r % kRows];
    if (!is_finite(value)) value = plain_sum<T>(p, m, row, 0, p.K);
    if (p.bias_N) value += p.bias_N[row];
    float* const to = p.c_MN + m * p.c_row + row;
    *to = p.accumulate ? *to + value : value;
  }
}

template <typename T, int kTiles>
cudaError_t start(const Product& p, cudaStream_t stream) {
  constexpr int kRows = 8 * kTiles;
  const int64_t groups = (p.N + kRows - 1) / kRows, steps = (p.K + kDepth - 1) / kDepth;
  int32_t split = 1;
  while (split < kWarps && split < steps && groups * split < kWantedWarps) split *= 2;
  return launch(gemv_mma_kernel<T, kTiles>, dim3(blocks_of(groups, kWarps / split)), dim3(kThreads), 0, stream, p, split);
}

template <typename T>
cudaError_t start(const Product& p, cudaStream_t stream) {  // the most rows for a warp that leave a block for each multiprocessor
  if (p.N >= kWantedBlocks * 32) return start<T, 4>(p, stream);
  if (p.N >= kWantedBlocks * 16) return start<T, 2>(p, stream);
  return start<T, 1>(p, stream);
}

}  // namespace

bool gemv_mma_takes(const Product& p) { return p.M > 4 && p.M <= kFew && p.K % 8 == 0 && is_aligned_16(p.a) && is_aligned_16(p.b); }

cudaError_t gemv_mma(const Product& p, cudaStream_t stream) { return p.b_is_bf16 ? start<bf16>(p, stream) : start<float>(p, stream); }

}  // namespace plumbline
