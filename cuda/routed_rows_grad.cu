// gated_scatter_grad: what the fused rows send back.
//        interpolate: dh (1 - g), dy = g dh, dg = <dh, y - base>; plain: dh, g dh, <dh, y>; scaled: dh, g dh (1 + step), <dh, y (1 + step)>,
//        dstep += sum over rows of g dh y                                                              (arXiv 2604.10500, RDS; algorithms 4.4, 4.5)
//   in   y (n, C), base (interpolate), gate, places and rows (n), step (C), dh (T, C)        out  dh in place; dy (n, C); dgate; dstep (C)
//   how  a block takes a row; where dstep is wanted, a slice of rows, whose sums per channel lie in shared memory, each at its own thread.
//        Then the slices are added: every eighth by one warp, in order, and the eight in order. f32; the same bits on every run
//   cost block 128, shared 4 C bytes (dstep); interpolate 20 n C bytes, plain and scaled 12; at most 256 slices of 8 C bytes more: bound by memory
//   limits: 16-byte accesses where C is a multiple of 4 and all rows are aligned, else 4; C < 2^30; sums beyond 96 KB stay in global memory
#include "cuda_backend.h"
#include "lanes.cuh"
#include "reduce.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kMostSlices = 256;
constexpr int kAddWarps = 8;

struct ScatterGrad {
  const float* y;
  const float* base;
  const float* gate;
  const int32_t* at;
  const float* step;
  float* dh;
  const int32_t* row;
  float* dy;
  float* dgate;
  float* partial;     // [slices, C], or null: no dstep
  int64_t n, C, rows;  // rows of a slice
  bool is_shared;     // sums of a slice are kept in shared memory
};

struct Share {
  float dy, dh, dgate, dstep;
};
template <Fusion kFusion>
PLUMBLINE_DEVICE Share share_of(float g, float dh, float y, float other) {  // other: base (interpolate) or step (scaled)
  const float dy = g * dh;
  if (kFusion == Fusion::interpolate) return {dy, dh - dy, dh * (y - other), 0.0f};
  if (kFusion == Fusion::plain) return {dy, dh, dh * y, 0.0f};
  return {fmaf(dy, other, dy), dh, dh * fmaf(y, other, y), dy * y};
}

// One row of a slice; returns this thread's part of dgate. sums: [width], or null.
template <int kWidth, Fusion kFusion>
PLUMBLINE_DEVICE float grad_of_row(const ScatterGrad& s, int64_t i, Lanes<kWidth>* sums, bool is_first) {
  using V = Lanes<kWidth>;
  constexpr int kLoads = 2;
  const int width = static_cast<int>(s.C / kWidth);
  const float g = s.gate[s.at[i]];
  const V* y = reinterpret_cast<const V*>(s.y) + i * width;
  const V* other = kFusion == Fusion::interpolate ? reinterpret_cast<const V*>(s.base) + static_cast<int64_t>(s.at[i]) * width : reinterpret_cast<const V*>(s.step);
  V* dh = reinterpret_cast<V*>(s.dh) + static_cast<int64_t>(s.row[i]) * width;
  V* dy = reinterpret_cast<V*>(s.dy) + i * width;
  float dgate = 0.0f;
  for (int begin = threadIdx.x; begin < width; begin += kLoads * kThreads) {
    V value[kLoads], gradient[kLoads], also[kLoads];
    #pragma unroll
    for (int l = 0; l < kLoads; ++l) {
      const int c = begin + l * kThreads;
      also[l] = V{};
      if (c >= width) continue;
      value[l] = y[c], gradient[l] = dh[c];
      if (kFusion != Fusion::plain) also[l] = other[c];
    }
    #pragma unroll
    for (int l = 0; l < kLoads; ++l) {
      const int c = begin + l * kThreads;
      if (c >= width) continue;
      V to_y, to_h, to_step;
      #pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const Share share = share_of<kFusion>(g, gradient[l].at[k], value[l].at[k], also[l].at[k]);
        to_y.at[k] = share.dy, to_h.at[k] = share.dh, to_step.at[k] = share.dstep;
        dgate += share.dgate;
      }
      dy[c] = to_y;
      if (kFusion == Fusion::interpolate) dh[c] = to_h;
      if (kFusion == Fusion::scaled && sums) {
        const V before = is_first ? V{} : sums[c];
        sums[c] = lanewise<kWidth>([&](int k) { return before.at[k] + to_step.at[k]; });
      }
    }
  }
  return dgate;
}

template <int kWidth, Fusion kFusion>
__global__ void __launch_bounds__(kThreads) gated_scatter_grad_kernel(ScatterGrad s) {
  using V = Lanes<kWidth>;
  PLUMBLINE_SHARED(V, shared_sums);
  __shared__ float room[kThreads / 32];
  const int width = static_cast<int>(s.C / kWidth);
  const int64_t first = blockIdx.x * s.rows, end = first + s.rows < s.n ? first + s.rows : s.n;
  V* const partial = s.partial ? reinterpret_cast<V*>(s.partial) + static_cast<int64_t>(blockIdx.x) * width : nullptr;
  V* const sums = s.is_shared ? shared_sums : partial;
  for (int64_t i = first; i < end; ++i) {
    const float dgate = block_sum<kThreads>(grad_of_row<kWidth, kFusion>(s, i, sums, i == first), room);
    if (threadIdx.x == 0) s.dgate[s.at[i]] = dgate;
  }
  if (!s.is_shared) return;
  for (int c = threadIdx.x; c < width; c += kThreads) partial[c] = shared_sums[c];
}

// dstep[c] += sum over slices of partial[slice, c]: a block has 32 channels.
__global__ void __launch_bounds__(32 * kAddWarps) add_step_slices_kernel(const float* partial, int64_t slices, float* dstep, int64_t C) {
  __shared__ float room[kAddWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  float sum = 0.0f;
  if (c < C) {
    #pragma unroll 4
    for (int64_t slice = warp; slice < slices; slice += kAddWarps) sum += partial[slice * C + c];
  }
  room[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || c >= C) return;
  float total = dstep[c];
  for (int w = 0; w < kAddWarps; ++w) total += room[w][lane];
  dstep[c] = total;
}

template <int kWidth>
cudaError_t launch_grad(Fusion fusion, const ScatterGrad& s, cudaStream_t stream) {
  const auto kernel = fusion == Fusion::interpolate ? gated_scatter_grad_kernel<kWidth, Fusion::interpolate>
                      : fusion == Fusion::plain     ? gated_scatter_grad_kernel<kWidth, Fusion::plain>
                                                    : gated_scatter_grad_kernel<kWidth, Fusion::scaled>;
  const size_t bytes = s.is_shared ? static_cast<size_t>(s.C) * sizeof(float) : 0;
  return launch(kernel, dim3(blocks_of(s.n, s.rows)), dim3(kThreads), bytes, stream, s);
}

}  // namespace

void CudaBackend::gated_scatter_grad(Fusion fusion, const float* y_nC, const float* base, const float* gate, const int32_t* at_n, const float* step_C, float* dh_TC,
                                     const int32_t* row_n, float* dy_nC, float* dgate, float* dstep_C, int64_t n, int64_t C) {
  poll();
  if (n == 0) return;
  const char* op = "gated_scatter_grad";
  Upload up(*this, op);
  const auto at = up.add(at_n, n), row = up.add(row_n, n);
  up.send();
  const bool with_dstep = fusion == Fusion::scaled && dstep_C;
  const int64_t rows = with_dstep ? (n + kMostSlices - 1) / kMostSlices : 1, slices = (n + rows - 1) / rows;
  const size_t row_bytes = static_cast<size_t>(C) * sizeof(float), sum_bytes = with_dstep ? static_cast<size_t>(slices) * row_bytes : 0;
  const size_t zero_bytes = fusion == Fusion::scaled && !step_C ? row_bytes : 0;  // a step that is not there
  float* zeros = zero_bytes + sum_bytes > 0 ? static_cast<float*>(scratch(zero_bytes + sum_bytes + 16)) : nullptr;
  float* partial = with_dstep ? zeros + (zero_bytes + 15) / 16 * 4 : nullptr;
  if (zero_bytes > 0) fill(zeros, 0.0f, C);
  const float* step = fusion != Fusion::scaled ? nullptr : step_C ? step_C : zeros;
  const float* own_base = fusion == Fusion::interpolate ? base : nullptr;
  const ScatterGrad s = {y_nC, own_base, gate, up[at], step, dh_TC, up[row], dy_nC, dgate, partial, n, C, rows, with_dstep && row_bytes <= kMostShared};
  const bool wide = fits_four(C, y_nC, own_base, step, dh_TC, dy_nC);
  check(wide ? launch_grad<4>(fusion, s, stream_) : launch_grad<1>(fusion, s, stream_), op);
  if (with_dstep) check(launch(add_step_slices_kernel, dim3(blocks_of(C, 32)), dim3(32 * kAddWarps), 0, stream_, partial, slices, dstep_C, C), op);
}

}  // namespace plumbline
