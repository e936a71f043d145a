// gemv_sum: few weighted sums of the rows of a matrix: gradients of few rows through a weight, bias gradients, gradients of a narrow weight.
//   c[p, j] (+)= sum over d of a(p, d) b[d, j]        finish_product: c (+)= bias + partial products in order
//   in   a (P, K) f32 with any strides or ones, P <= 16; b (K, N) f32 or bf16        out  c (P, N) f32
//   how  a lane owns 16 bytes of columns, a warp every eighth row of its block's slice of K; sums of the warps, then of the slices, in order.
//        Slices by shape alone: the same bits on every run
//   cost b once, in 16-byte loads, four rows in flight for each warp; a through shared memory, read as broadcasts. Bound by memory up to
//        P = 8. Slices leave 8 P N bytes of traffic each, mostly in L2
//   limits: K > 0. Columns that are not aligned take one element at a time
#include "product.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kChunk = 128;              // rows whose factors are in shared memory
constexpr int kUnroll = 4;               // rows in flight
constexpr int64_t kWantedBlocks = 528;   // four for each of an H100's 132 multiprocessors
constexpr int64_t kLeastDepth = 64;      // of a slice

// Sums of the eight warps for one row of c. The second four columns of a lane lie apart, half a line further on: no bank conflicts.
template <int kVector>
struct Meeting {
  static constexpr int kQuads = (kVector + 3) / 4, kWidth = kVector < 4 ? kVector : 4, kQuadStride = 32 * kWidth + 16;
  float at[kWarps][kQuads * kQuadStride];
  PLUMBLINE_DEVICE static int index(int lane, int v) { return v / kWidth * kQuadStride + lane * kWidth + v % kWidth; }
};

template <typename T, int kMost, int kVector>
__global__ void __launch_bounds__(kThreads) gemv_sum_kernel(Product p, float* partial, int32_t slices) {
  __align__(16) __shared__ float factor[kChunk][kMost <= 4 ? kMost : kMost + 4];  // rows an odd number of 16 bytes apart: no bank conflicts
  __align__(16) __shared__ Meeting<kVector> meeting;
  constexpr int kColumns = 32 * kVector, kQuad = kMost < 4 ? kMost : 4;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, few = static_cast<int>(p.M);
  const int64_t slice = blockIdx.x % slices, first_column = blockIdx.x / slices * kColumns, column = first_column + lane * kVector;
  const int64_t begin = p.K * slice / slices, end = p.K * (slice + 1) / slices;
  const T* const b = static_cast<const T*>(p.b) + column;
  const bool has_columns = column < p.N;
  float sum[kMost][kVector] = {};
  for (int64_t chunk = begin; chunk < end; chunk += kChunk) {
    __syncthreads();
    for (int i = threadIdx.x; i < kChunk * (kMost / kQuad); i += kThreads) {
      const int d = i % kChunk, row = i / kChunk * kQuad;
      Piece<float, kQuad> value;
#pragma unroll
      for (int v = 0; v < kQuad; ++v)
        value.at[v] = row + v >= few || chunk + d >= end ? 0.0f : p.a ? p.a[(row + v) * p.a_row + (chunk + d) * p.a_col] : 1.0f;
      *reinterpret_cast<Piece<float, kQuad>*>(&factor[d][row]) = value;
    }
    __syncthreads();
    for (int d = warp; d < kChunk && chunk + d < end; d += kWarps * kUnroll) {
      Piece<T, kVector> piece[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t row = chunk + d + u * kWarps;
        if (has_columns && row < end && d + u * kWarps < kChunk) piece[u] = *reinterpret_cast<const Piece<T, kVector>*>(b + row * p.N);
        else piece[u] = {};
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const float* const f = factor[min(d + u * kWarps, kChunk - 1)];
#pragma unroll
        for (int row = 0; row < kMost; ++row)
#pragma unroll
          for (int v = 0; v < kVector; ++v) sum[row][v] = fmaf(f[row], to_float(piece[u].at[v]), sum[row][v]);
      }
    }
  }
#pragma unroll
  for (int row = 0; row < kMost; ++row) {
    if (row >= few) break;
    __syncthreads();
#pragma unroll
    for (int v = 0; v < kVector; ++v) meeting.at[warp][Meeting<kVector>::index(lane, v)] = sum[row][v];
    __syncthreads();
    if (threadIdx.x >= kColumns || first_column + threadIdx.x >= p.N) continue;
    float value = 0;
    for (int w = 0; w < kWarps; ++w) value += meeting.at[w][Meeting<kVector>::index(threadIdx.x / kVector, threadIdx.x % kVector)];
    const int64_t at = row * p.N + first_column + threadIdx.x;
    if (slices > 1) partial[slice * p.M * p.N + at] = value;
    else p.c_MN[at] = p.accumulate ? p.c_MN[at] + value : value;
  }
}

__global__ void finish_product_kernel(Product p, const float* partial, int32_t slices) {
  const int64_t size = p.M * p.N, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step) {
    float value = p.bias_N ? p.bias_N[i % p.N] : 0.0f;
    for (int s = 0; s < slices; ++s) value += partial[s * size + i];
    float* const c = p.c_MN + i / p.N * p.c_row + i % p.N;
    *c = p.accumulate ? *c + value : value;
  }
}

template <typename T>
bool is_vector(const Product& p) { return p.N % (16 / sizeof(T)) == 0 && is_aligned_16(p.b); }

template <typename T, int kMost, int kVector>
cudaError_t start(const Product& p, float* partial, int32_t slices, cudaStream_t stream) {
  const int64_t blocks = blocks_of(p.N, 32 * kVector) * static_cast<int64_t>(slices);
  return launch(gemv_sum_kernel<T, kMost, kVector>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, p, partial, slices);
}

template <typename T>
cudaError_t start(const Product& p, float* partial, int32_t slices, cudaStream_t stream) {
  constexpr int kVector = 16 / sizeof(T);
  if (!is_vector<T>(p)) return start<T, kFew, 1>(p, partial, slices, stream);
  if (p.M == 1) return start<T, 1, kVector>(p, partial, slices, stream);
  if (p.M <= 4) return start<T, 4, kVector>(p, partial, slices, stream);
  if (p.M <= 8) return start<T, 8, kVector>(p, partial, slices, stream);
  return start<T, kFew, kVector>(p, partial, slices, stream);
}

}  // namespace

int32_t gemv_sum_slices(const Product& p) {
  const int64_t columns = 32 * (p.b_is_bf16 ? is_vector<bf16>(p) ? 8 : 1 : is_vector<float>(p) ? 4 : 1), blocks = (p.N + columns - 1) / columns;
  const int64_t most = p.K / kLeastDepth, wanted = (kWantedBlocks + blocks - 1) / blocks;
  return static_cast<int32_t>(most < 1 ? 1 : most < wanted ? most : wanted);
}

cudaError_t gemv_sum(const Product& p, float* partial, int32_t slices, cudaStream_t stream) {
  return p.b_is_bf16 ? start<bf16>(p, partial, slices, stream) : start<float>(p, partial, slices, stream);
}

cudaError_t finish_product(const Product& p, const float* partial, int32_t slices, cudaStream_t stream) {
  return launch(finish_product_kernel, dim3(blocks_of(p.M * p.N, 256, 65536)), dim3(256), 0, stream, p, partial, slices);
}

}  // namespace plumbline
