// weighted_rows: out[r] = sum_i weight[i] from[from_row[i]], i in [cu[r], cu[r+1]).
//   grad dweight[i] = <dout[r], from[from_row[i]]>, dfrom[from_row[i]] += weight[i] dout[r]
//   in   from (rows, C), weight (n), f32; row lists: host        out  (R, C); dweight (n) overwritten, dfrom (rows, C) added to
//   how  f32, terms in the order of i; the terms of one row of dfrom are gathered by the host's stable sort, so that they meet in order
//        in one warp; a dot product by one warp in a fixed tree. NaN and infinities spread as in the formula
//   cost 1 launch; grad: 1 for each result. 8 warps a block, a warp per row and 512 columns (dot: per term); 16-byte loads; floor:
//        (n + R) C * 4 bytes; dweight: n + R rows read; dfrom: n rows read, each destination read and written once
//   limits: from_row in range; out must not overlap from
#include <algorithm>
#include <numeric>
#include <type_traits>
#include <vector>

#include "cuda_backend.h"
#include "weighted_rows.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

template <bool kVector>
__global__ void __launch_bounds__(kThreads) weighted_rows_kernel(const float* from, const int32_t* from_row, const float* weight, const int32_t* cu_R1, float* out_RC, int64_t chunks,
                                                                 int64_t units, int64_t C) {
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (unit >= units) return;
  const int64_t r = unit / chunks, column = unit % chunks * RowChunk<kVector>::kFloats;
  weigh_chunk<kVector>(from, C, column, cu_R1[r], cu_R1[r + 1], [&](int64_t i) { return RowTerm{weight[i], from_row[i]}; }, out_RC + r * C);
}

template <bool kVector>
__global__ void __launch_bounds__(kThreads) dweight_kernel(const float* from, const int32_t* from_row, const int32_t* row_of_n, const float* dout_RC, float* dweight, int64_t n, int64_t C) {
  using Piece = typename std::conditional<kVector, float4, float>::type;
  constexpr int kWidth = RowChunk<kVector>::kWidth;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (i >= n) return;
  const Piece* x = reinterpret_cast<const Piece*>(from + from_row[i] * C);
  const Piece* y = reinterpret_cast<const Piece*>(dout_RC + row_of_n[i] * C);
  float sum[kWidth] = {};
#pragma unroll 4
  for (int64_t c = threadIdx.x % 32; c < C / kWidth; c += 32) {
    const Piece a = x[c], b = y[c];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum[j] = fmaf(reinterpret_cast<const float*>(&a)[j], reinterpret_cast<const float*>(&b)[j], sum[j]);
  }
  float total = sum[0];
#pragma unroll
  for (int j = 1; j < kWidth; ++j) total += sum[j];
  total = warp_sum(total);
  if (threadIdx.x % 32 == 0) dweight[i] = total;
}

// Destination s takes the terms order[cu[s] .. cu[s+1]).
template <bool kVector>
__global__ void __launch_bounds__(kThreads) dfrom_kernel(const float* dout_RC, const int32_t* order_n, const int32_t* row_of_n, const int32_t* from_row, const int32_t* cu_S1,
                                                         const float* weight, float* dfrom, int64_t chunks, int64_t units, int64_t C) {
  using Piece = typename std::conditional<kVector, float4, float>::type;
  constexpr int kWidth = RowChunk<kVector>::kWidth;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (unit >= units) return;
  const int64_t s = unit / chunks, begin = cu_S1[s], end = cu_S1[s + 1], first = unit % chunks * RowChunk<kVector>::kFloats + threadIdx.x % 32 * kWidth;
  float* to = dfrom + from_row[order_n[begin]] * C;
  Piece sum[kChunkTurns] = {};
#pragma unroll
  for (int k = 0; k < kChunkTurns; ++k)
    if (first + k * 32 * kWidth < C) sum[k] = *reinterpret_cast<const Piece*>(to + first + k * 32 * kWidth);
  for (int64_t at = begin; at < end; ++at) {
    const int32_t i = order_n[at];
    const float w = weight[i];
    const float* row = dout_RC + row_of_n[i] * C + first;
    Piece x[kChunkTurns] = {};
#pragma unroll
    for (int k = 0; k < kChunkTurns; ++k)
      if (first + k * 32 * kWidth < C) x[k] = *reinterpret_cast<const Piece*>(row + k * 32 * kWidth);
#pragma unroll
    for (int k = 0; k < kChunkTurns; ++k)
#pragma unroll
      for (int j = 0; j < kWidth; ++j) reinterpret_cast<float*>(&sum[k])[j] = fmaf(w, reinterpret_cast<const float*>(&x[k])[j], reinterpret_cast<float*>(&sum[k])[j]);
  }
#pragma unroll
  for (int k = 0; k < kChunkTurns; ++k)
    if (first + k * 32 * kWidth < C) *reinterpret_cast<Piece*>(to + first + k * 32 * kWidth) = sum[k];
}

// The output row of each term.
std::vector<int32_t> rows_of_terms(const int32_t* cu_R1, int64_t R) {
  std::vector<int32_t> row(static_cast<size_t>(cu_R1[R]));
  for (int64_t r = 0; r < R; ++r) std::fill(row.begin() + cu_R1[r], row.begin() + cu_R1[r + 1], static_cast<int32_t>(r));
  return row;
}

int64_t chunks_of(bool is_vector, int64_t C) {
  const int64_t floats = is_vector ? RowChunk<true>::kFloats : RowChunk<false>::kFloats;
  return (C + floats - 1) / floats;
}

}  // namespace

void CudaBackend::weighted_rows(const float* from, const int32_t* from_row, const float* weight, const int32_t* cu_R1, float* out_RC, int64_t R, int64_t C) {
  poll();
  if (R == 0 || C == 0) return;
  Upload up(*this, "weighted_rows");
  const auto row = up.add(from_row, cu_R1[R]), cu = up.add(cu_R1, R + 1);
  up.send();
  const bool is_vector = C % 4 == 0 && is_aligned_16(from) && is_aligned_16(out_RC);
  const int64_t chunks = chunks_of(is_vector, C);
  check(launch(is_vector ? weighted_rows_kernel<true> : weighted_rows_kernel<false>, dim3(blocks_of(R * chunks, kWarps)), dim3(kThreads), 0, stream(), from, up[row], weight, up[cu], out_RC,
               chunks, R * chunks, C),
        "weighted_rows");
}

void CudaBackend::weighted_rows_grad(const float* from, const int32_t* from_row, const float* weight, const int32_t* cu_R1, const float* dout_RC, float* dweight, float* dfrom, int64_t R,
                                     int64_t C) {
  poll();
  const int64_t n = R == 0 ? 0 : cu_R1[R];
  if (n == 0 || C == 0) {
    if (n > 0 && dweight) fill(dweight, 0.0f, n);
    return;
  }
  const std::vector<int32_t> row_of = rows_of_terms(cu_R1, R);
  std::vector<int32_t> order, cu{0};
  if (dfrom) {
    order.resize(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t i, int32_t j) { return from_row[i] < from_row[j]; });
    for (int64_t i = 1; i <= n; ++i)
      if (i == n || from_row[order[i]] != from_row[order[i - 1]]) cu.push_back(static_cast<int32_t>(i));
  }
  Upload up(*this, "weighted_rows_grad");
  const auto row = up.add(from_row, n), out_row = up.add(row_of.data(), n), ordered = up.add(order.data(), static_cast<int64_t>(order.size()));
  const auto segment = up.add(cu.data(), static_cast<int64_t>(cu.size()));
  up.send();
  const bool is_aligned = C % 4 == 0 && is_aligned_16(dout_RC);
  if (dweight) {
    const bool is_vector = is_aligned && is_aligned_16(from);
    check(launch(is_vector ? dweight_kernel<true> : dweight_kernel<false>, dim3(blocks_of(n, kWarps)), dim3(kThreads), 0, stream(), from, up[row], up[out_row], dout_RC, dweight, n, C),
          "weighted_rows_grad");
  }
  if (!dfrom) return;
  const bool is_vector = is_aligned && is_aligned_16(dfrom);
  const int64_t chunks = chunks_of(is_vector, C), units = (static_cast<int64_t>(cu.size()) - 1) * chunks;
  check(launch(is_vector ? dfrom_kernel<true> : dfrom_kernel<false>, dim3(blocks_of(units, kWarps)), dim3(kThreads), 0, stream(), dout_RC, up[ordered], up[out_row], up[row], up[segment], weight,
               dfrom, chunks, units, C),
        "weighted_rows_grad");
}

}  // namespace plumbline
