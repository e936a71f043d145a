// gather_rms_norm: the rows that take another pass leave the hidden states (gated_scatter brings them back).
//        x = h[row] + step, y = w x rstd                                     (arXiv 2604.10500, RDS; algorithms 4.3 to 4.5)
//   in   h (T, C), rows of n tokens, distinct; cos, sin (T, d/2)             out  x, y (n, C), rstd (n), cos, sin (n, d/2)
//   how  a block takes one row, or four where there are many: each row is read once and waits in shared memory, at its own thread, for its
//        norm. f32 sums in a fixed order: the same bits on every run. NaN and inf spread over their row
//   cost block 128, shared 4 C bytes a row; 12 n C bytes, w and step stay in the caches; 8 loads of 16 bytes per thread in flight: bound by memory
//   limits: 16-byte accesses where C is a multiple of 4 and all rows are aligned, else 4; C < 2^30; rows beyond 96 KB are read again from x
#include "cuda_backend.h"
#include "lanes.cuh"
#include "reduce.cuh"
#include "routed_places.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int64_t kShortRow = 2048;  // beyond it a block takes only two of many rows, that a multiprocessor still holds eight blocks

struct GatherNorm {
  const float* h;
  const int32_t* row;  // null: few
  FewPlaces few;
  const float* step;
  const float* w;
  float eps;
  float *x, *y, *rstd;
  int64_t n, C;
  RotaryRows rotary;  // half 0: none
  bool wide_rotary;
};

template <int kWidth>
PLUMBLINE_DEVICE void gather_rotary(const GatherNorm& g, const int32_t* from_row, int64_t first, int rows) {
  using V = Lanes<kWidth>;
  const int half = static_cast<int>(g.rotary.half / kWidth);
  for (int j = threadIdx.x; j < rows * half; j += kThreads) {
    const int64_t at = j % half, from = from_row[j / half] * static_cast<int64_t>(half) + at, to = (first + j / half) * half + at;
    reinterpret_cast<V*>(g.rotary.cos_nh)[to] = reinterpret_cast<const V*>(g.rotary.cos_Th)[from];
    reinterpret_cast<V*>(g.rotary.sin_nh)[to] = reinterpret_cast<const V*>(g.rotary.sin_Th)[from];
  }
}

// x of the block's rows, and the squares of this thread's part of each.
template <typename V, int kRows>
PLUMBLINE_DEVICE void gather_rows(const GatherNorm& g, const int32_t* from_row, int64_t first, int rows, V* kept, bool is_kept_in_x, float (&squares)[kRows]) {
  constexpr int kLoads = 8 / kRows;
  const int width = static_cast<int>(g.C / V::kSize);
  const V* from[kRows];
  #pragma unroll
  for (int r = 0; r < kRows; ++r) from[r] = reinterpret_cast<const V*>(g.h + from_row[r] * g.C), squares[r] = 0.0f;
  for (int begin = threadIdx.x; begin < width; begin += kLoads * kThreads) {
    V value[kLoads][kRows], step[kLoads];
    #pragma unroll
    for (int l = 0; l < kLoads; ++l) {
      const int c = begin + l * kThreads;
      if (c >= width) continue;
      if (g.step) step[l] = reinterpret_cast<const V*>(g.step)[c];
      #pragma unroll
      for (int r = 0; r < kRows; ++r) value[l][r] = from[r][c];
    }
    #pragma unroll
    for (int l = 0; l < kLoads; ++l) {
      const int c = begin + l * kThreads;
      if (c >= width) continue;
      #pragma unroll
      for (int r = 0; r < kRows; ++r) {
        V v = value[l][r];
        if (g.step) v = lanewise<V::kSize>([&](int k) { return v.at[k] + step[l].at[k]; });
        #pragma unroll
        for (int k = 0; k < V::kSize; ++k) squares[r] = fmaf(v.at[k], v.at[k], squares[r]);
        if (!is_kept_in_x) kept[r * width + c] = v;
        if (r < rows) reinterpret_cast<V*>(g.x)[(first + r) * width + c] = v;
      }
    }
  }
}

template <int kWidth, int kRows, bool kShared>
__global__ void __launch_bounds__(kThreads, 5) gather_norm_kernel(GatherNorm g) {
  using V = Lanes<kWidth>;
  PLUMBLINE_SHARED(V, shared_rows);
  __shared__ float room[kRows][kWarps];
  __shared__ int32_t from_row[kRows];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kRows;
  const int width = static_cast<int>(g.C / kWidth);
  const int rows = g.n - first < kRows ? static_cast<int>(g.n - first) : kRows;
  if (threadIdx.x < kRows) from_row[threadIdx.x] = place_of(g.row, g.few, first + (static_cast<int>(threadIdx.x) < rows ? threadIdx.x : 0));
  __syncthreads();
  V* const kept = kShared ? shared_rows : reinterpret_cast<V*>(g.x) + first * width;
  float squares[kRows];
  gather_rows<V, kRows>(g, from_row, first, rows, kept, !kShared, squares);
  if (g.wide_rotary) gather_rotary<4>(g, from_row, first, rows);
  else gather_rotary<1>(g, from_row, first, rows);
  #pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float sum = warp_sum(squares[r]);
    if (threadIdx.x % 32 == 0) room[r][threadIdx.x / 32] = sum;
  }
  __syncthreads();
  float rstd[kRows];
  #pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float sum = (room[r][0] + room[r][1]) + (room[r][2] + room[r][3]);
    rstd[r] = 1.0f / sqrtf(sum / static_cast<float>(g.C) + g.eps);
    if (threadIdx.x == 0 && r < rows) g.rstd[first + r] = rstd[r];
  }
  for (int c = threadIdx.x; c < width; c += kThreads) {
    const V w = reinterpret_cast<const V*>(g.w)[c];
    #pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) continue;
      const V v = kept[r * width + c];
      reinterpret_cast<V*>(g.y)[(first + r) * width + c] = lanewise<kWidth>([&](int k) { return v.at[k] * rstd[r] * w.at[k]; });
    }
  }
}

template <int kWidth, int kRows, bool kShared>
cudaError_t launch_gather(const GatherNorm& g, cudaStream_t stream) {
  const size_t bytes = kShared ? static_cast<size_t>(kRows * g.C) * sizeof(float) : 0;
  return launch(gather_norm_kernel<kWidth, kRows, kShared>, dim3(blocks_of(g.n, kRows)), dim3(kThreads), bytes, stream, g);
}

}  // namespace

void CudaBackend::gather_rms_norm(const float* h_TC, const int32_t* row_n, const float* step_C, const float* w_C, float eps, float* x_nC, float* y_nC, float* rstd_n, int64_t n,
                                  int64_t C, const RotaryRows* rotary) {
  poll();
  if (n == 0) return;
  const auto fits = [&](int64_t rows) { return static_cast<size_t>(rows * C) * sizeof(float) <= kMostShared; };
  const bool wide = fits_four(C, h_TC, step_C, w_C, x_nC, y_nC), many = wide && n >= kManyRows * kEnoughBlocks && fits(2);
  Upload up(*this, "gather_rms_norm");
  const auto row = up.add(n > kFew ? row_n : nullptr, n);
  upload_places(up, n, !many ? 1 : C <= kShortRow ? kManyRows : 2, C);
  const RotaryRows tables = rotary ? *rotary : RotaryRows{nullptr, nullptr, nullptr, nullptr, 0};
  const bool wide_rotary = fits_four(tables.half, tables.cos_Th, tables.sin_Th, tables.cos_nh, tables.sin_nh);
  const GatherNorm g = {h_TC, up[row], few_places(row_n, n), step_C, w_C, eps, x_nC, y_nC, rstd_n, n, C, tables, wide_rotary};
  check(!fits(1)         ? (wide ? launch_gather<4, 1, false>(g, stream_) : launch_gather<1, 1, false>(g, stream_))
        : !wide          ? launch_gather<1, 1, true>(g, stream_)
        : many           ? (C <= kShortRow ? launch_gather<4, kManyRows, true>(g, stream_) : launch_gather<4, 2, true>(g, stream_))
                         : launch_gather<4, 1, true>(g, stream_),
        "gather_rms_norm");
}

}  // namespace plumbline
