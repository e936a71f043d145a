// outer_product: a sum of few outer products: weight gradients of few rows, gradients through a narrow weight.
//   c[i, j] (+)= sum over k < K of a(i, k) b[k, j]
//   in   a (M, K) f32 with any strides, b (K, N) f32 or bf16, K <= 16        out  c (M, N) f32
//   how  a lane owns four columns and keeps its part of b in registers; f32, k in order, then the old c: the same bits on every run
//   cost blocks of 64 rows and 128 columns, 8 M N bytes (4 where c is not read) in 16-byte accesses, four rows in flight for each warp;
//        bound by memory
//   limits: 0 < K <= 16. Columns that are not aligned take one element at a time
#include "product.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kRows = 64;   // of a block
constexpr int kUnroll = 4;  // rows of c in flight

template <typename T, int kMost, int kVector>
__global__ void __launch_bounds__(kThreads) outer_product_kernel(Product p, int64_t column_blocks) {
  using Floats = Piece<float, kVector>;
  __align__(16) __shared__ float factor[kRows][kMost <= 4 ? kMost : kMost + 4];  // rows an odd number of 16 bytes apart: no bank conflicts
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, K = static_cast<int>(p.K);
  const int64_t first_row = blockIdx.x / column_blocks * kRows, column = (blockIdx.x % column_blocks * 32 + lane) * kVector;
  constexpr int kQuad = kMost < 4 ? kMost : 4;
  for (int i = threadIdx.x; i < kRows * (kMost / kQuad); i += kThreads) {
    const int row = i % kRows, k = i / kRows * kQuad;
    Piece<float, kQuad> value;
#pragma unroll
    for (int v = 0; v < kQuad; ++v) value.at[v] = k + v < K && first_row + row < p.M ? p.a[(first_row + row) * p.a_row + (k + v) * p.a_col] : 0.0f;
    *reinterpret_cast<Piece<float, kQuad>*>(&factor[row][k]) = value;
  }
  float b[kMost][kVector] = {};
  if (column < p.N) {
#pragma unroll
    for (int k = 0; k < kMost; ++k)
      if (k < K) load_floats(b[k], static_cast<const T*>(p.b) + k * p.b_row + column);
  }
  __syncthreads();
  if (column >= p.N) return;
  float* const c = p.c_MN + first_row * p.N + column;
  for (int start = warp; start < kRows && first_row + start < p.M; start += kWarps * kUnroll) {
    Floats old[kUnroll] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t row = start + u * kWarps;
      if (p.accumulate && first_row + row < p.M) old[u] = *reinterpret_cast<const Floats*>(c + row * p.N);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t row = start + u * kWarps;
      if (first_row + row >= p.M) break;
      Floats sum = {};
#pragma unroll
      for (int k = 0; k < kMost; ++k)
#pragma unroll
        for (int v = 0; v < kVector; ++v)
          if (k < K) sum.at[v] = fmaf(factor[row][k], b[k][v], sum.at[v]);
#pragma unroll
      for (int v = 0; v < kVector; ++v)
        if (p.accumulate) sum.at[v] += old[u].at[v];
      *reinterpret_cast<Floats*>(c + row * p.N) = sum;
    }
  }
}

template <typename T, int kMost, int kVector>
cudaError_t start(const Product& p, cudaStream_t stream) {
  const int64_t column_blocks = blocks_of(p.N, 32 * kVector), blocks = column_blocks * blocks_of(p.M, kRows);
  return launch(outer_product_kernel<T, kMost, kVector>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, p, column_blocks);
}

template <typename T>
cudaError_t start(const Product& p, cudaStream_t stream) {
  if (p.N % 4 != 0 || !is_aligned_16(p.c_MN) || !is_aligned_16(p.b)) return start<T, kFew, 1>(p, stream);
  if (p.K == 1) return start<T, 1, 4>(p, stream);
  if (p.K <= 4) return start<T, 4, 4>(p, stream);
  return start<T, kFew, 4>(p, stream);
}

}  // namespace

cudaError_t outer_product(const Product& p, cudaStream_t stream) { return p.b_is_bf16 ? start<bf16>(p, stream) : start<float>(p, stream); }

}  // namespace plumbline
