// gated_scatter: the rows that took another pass come back to the hidden states (gather_rms_norm took them out).
//        h[row] = h + g (y - h) | h + g y | h + g y (1 + step)               (arXiv 2604.10500, RDS; algorithms 4.3 to 4.5)
//   in   y (n, C), rows and places in `gate` of n tokens, rows distinct      out  h (T, C), in place
//   how  a block takes a part of one row, or four rows where there are many. NaN and inf stay where they are
//   cost block 128; 12 n C bytes, step stays in the caches; 8 loads of 16 bytes per thread in flight: bound by memory
//   limits: 16-byte accesses where C is a multiple of 4 and all rows are aligned, else 4; C < 2^30
#include "cuda_backend.h"
#include "lanes.cuh"
#include "routed_places.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 128;
constexpr int kScatterLoads = 4;  // of each of y and h in flight per thread

struct Scatter {
  Fusion fusion;
  const float* y;
  const float* gate;
  const int32_t *at, *row;  // null: few
  FewPlaces few_at, few_row;
  const float* step;
  float* h;
  int64_t n, C;
};

PLUMBLINE_DEVICE float fuse(Fusion fusion, float g, float y, float h, float step) {
  if (fusion == Fusion::interpolate) return fmaf(g, y - h, h);
  return fmaf(g, fmaf(y, step, y), h);  // step 0: y itself
}

// kRows rows and, along y of the grid, a part of their channels.
template <int kWidth, int kRows>
__global__ void __launch_bounds__(kThreads, 7) gated_scatter_kernel(Scatter s) {
  using V = Lanes<kWidth>;
  constexpr int kLoads = kScatterLoads / kRows;
  __shared__ int32_t to_row[kRows], gate_at[kRows];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kRows;
  const int rows = s.n - first < kRows ? static_cast<int>(s.n - first) : kRows, width = static_cast<int>(s.C / kWidth);
  if (static_cast<int>(threadIdx.x) < rows) {
    to_row[threadIdx.x] = place_of(s.row, s.few_row, first + threadIdx.x);
    gate_at[threadIdx.x] = place_of(s.at, s.few_at, first + threadIdx.x);
  }
  __syncthreads();
  float gate[kRows];
  #pragma unroll
  for (int r = 0; r < kRows; ++r) gate[r] = r < rows ? s.gate[gate_at[r]] : 0.0f;
  for (int begin = static_cast<int>(blockIdx.y) * kLoads * kThreads + threadIdx.x; begin < width; begin += gridDim.y * kLoads * kThreads) {
    V from[kLoads][kRows], to[kLoads][kRows], step[kLoads];
    #pragma unroll
    for (int l = 0; l < kLoads; ++l) {
      const int c = begin + l * kThreads;
      step[l] = V{};
      if (c >= width) continue;
      #pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= rows) continue;
        from[l][r] = reinterpret_cast<const V*>(s.y)[(first + r) * width + c];
        to[l][r] = reinterpret_cast<const V*>(s.h)[static_cast<int64_t>(to_row[r]) * width + c];
      }
      if (s.step) step[l] = reinterpret_cast<const V*>(s.step)[c];
    }
    #pragma unroll
    for (int l = 0; l < kLoads; ++l) {
      const int c = begin + l * kThreads;
      if (c >= width) continue;
      #pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (r < rows)
          reinterpret_cast<V*>(s.h)[static_cast<int64_t>(to_row[r]) * width + c] =
              lanewise<kWidth>([&](int k) { return fuse(s.fusion, gate[r], from[l][r].at[k], to[l][r].at[k], step[l].at[k]); });
    }
  }
}

template <int kWidth, int kRows>
cudaError_t launch_scatter(const Scatter& s, cudaStream_t stream) {
  const unsigned parts = blocks_of(s.C, kWidth * (kScatterLoads / kRows) * kThreads, kRows == 1 ? 64 : 1);
  return launch(gated_scatter_kernel<kWidth, kRows>, dim3(blocks_of(s.n, kRows), parts), dim3(kThreads), 0, stream, s);
}

}  // namespace

void CudaBackend::gated_scatter(Fusion fusion, const float* y_nC, const float* gate, const int32_t* at_n, const float* step_C, float* h_TC, const int32_t* row_n, int64_t n,
                                int64_t C) {
  poll();
  if (n == 0) return;
  const float* step = fusion == Fusion::scaled ? step_C : nullptr;
  const bool wide = fits_four(C, y_nC, step, h_TC), many = wide && n >= kManyRows * kEnoughBlocks;
  Upload up(*this, "gated_scatter");
  const auto at = up.add(n > kFew ? at_n : nullptr, n), row = up.add(n > kFew ? row_n : nullptr, n);
  upload_places(up, n, many ? kManyRows : 1, C);
  const Scatter s = {fusion, y_nC, gate, up[at], up[row], few_places(at_n, n), few_places(row_n, n), step, h_TC, n, C};
  check(many ? launch_scatter<4, kManyRows>(s, stream_) : wide ? launch_scatter<4, 1>(s, stream_) : launch_scatter<1, 1>(s, stream_), "gated_scatter");
}

}  // namespace plumbline
