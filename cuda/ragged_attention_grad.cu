// ragged_attention_grad: backward of ragged_attention on the tensor cores.   p = e^(s - lse), ds = p (dout v^T - rowsum(dout out))
//                 dq = scale ds k, dk = scale ds^T q, dv = p^T dout                                        (arXiv 2307.08691, alg. 2)
//   in   q, k, v, out, lse as in ragged_attention; dout (T, H, d)       out  dq, dk, dv, all overwritten
//   how  sums in f32, p and ds rounded to 16 bits for their products. A block per tile of keys for dk and dv, meeting the rows of all heads
//        of the group in order; a block per tile of rows for dq; no atomics. p^T never leaves the registers: s^T = k q^T is laid out as
//        the left operand of the next product. f32: attention_grad on zeroed dk, dv
//   cost three launches; 14 d flop per (row, key) that meet: bound by the tensor cores and the shared memory that feeds them. 4 warps of 16
//        keys (rows), meeting 32 rows (keys) at a time; the next ones are on their way by cp.async
//   limits: those of ragged_attention; d > 128: one stage, and dk, dv in two halves of the columns
#include "attention_delta.cuh"
#include "attention_mma.cuh"
#include "attention_work.h"
#include "cuda_backend.h"
#include "../src/core/packed_pages.h"

namespace plumbline {
namespace {

template <typename T>
struct GradInput {
  const T *q, *k, *v, *dout;
  const float *lse_TH, *delta_TH;
};

// `own`: rows of the tiles that stay, `met`: of those that pass by.
template <int kD>
struct Tiles {
  static constexpr int kOwn = 64, kMet = kD <= 128 ? 32 : 16, kStages = kD <= 128 ? 2 : 1, kParts = kD <= 128 ? 1 : 2, kWidth = kD / kParts, kStride = kD + 8;
  static constexpr size_t kBytes = (2 * kOwn + 2 * kStages * kMet) * kStride * 2;
};

// What a tile of rows is known by beside its vectors: lse in units of log2.
template <int kRows>
struct RowStatistics {
  float lse[kRows], delta[kRows];
};

// Scores and the gradients of the weights, [keys, rows], become weights and gradients of the scores; 0 where they do not meet.
template <int kRows>
PLUMBLINE_DEVICE void softmax_grad(float (&weight)[kRows / 8][4], float (&dscore)[kRows / 8][4], int key, const RowTable<kRows>& row, const RowStatistics<kRows>& statistics,
                                   float factor) {
#pragma unroll
  for (int n = 0; n < kRows / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int m = 8 * n + static_cast<int>(threadIdx.x % 4) * 2 + i % 2;
      const bool meets = key + i / 2 * 8 < row.visible[m];
      weight[n][i] = meets ? exp2_approximate(fmaf(weight[n][i], factor, -statistics.lse[m])) : 0.0f;
      dscore[n][i] = meets ? weight[n][i] * (dscore[n][i] - statistics.delta[m]) : 0.0f;
    }
}

template <typename T, int kD>
__global__ void __launch_bounds__(kTileThreads) ragged_attention_grad_key_kernel(PackedAttention p, GradInput<T> in, const TileWork* works, T* dk, T* dv) {
  using S = Tiles<kD>;
  constexpr int kRows = S::kMet, kKeys = S::kOwn, kWidth = S::kWidth;
  PLUMBLINE_SHARED(T, k_tile);
  T* const v_tile = k_tile + kKeys * S::kStride;
  T* const row_tiles = v_tile + kKeys * S::kStride;
  __shared__ RowTable<kRows> row[2];
  __shared__ RowStatistics<kRows> statistics[2];
  const TileWork work = works[blockIdx.x / (p.Hkv * S::kParts)];
  const int part = static_cast<int>(blockIdx.x % S::kParts), kv_head = static_cast<int>(blockIdx.x / S::kParts % p.Hkv);
  const int lane = threadIdx.x % 32, warp_key = threadIdx.x / 32 * 16, key = work.tile * kKeys;
  const Slice slice = p.slice(work.sequence, kv_head);
  const int64_t first = slice.first_row(key) / kRows * kRows;
  const auto load_tile = [&](int table, int stage) {
    T* const tile = row_tiles + stage * (2 * kRows * S::kStride);
    load_rows<kD, kRows>(tile, in.q, row[table].head, p);
    load_rows<kD, kRows>(tile + kRows * S::kStride, in.dout, row[table].head, p);
    cp_async_commit();
  };
  const auto fetch_statistics = [&](int table) {
    const int64_t at = threadIdx.x < kRows ? row[table].head[threadIdx.x] : -1;
    return at < 0 ? make_float2(0.0f, 0.0f) : make_float2(in.lse_TH[at] * kLog2E, in.delta_TH[at]);
  };
  const auto keep_statistics = [&](int table, float2 pair) {
    if (threadIdx.x < kRows) statistics[table].lse[threadIdx.x] = pair.x, statistics[table].delta[threadIdx.x] = pair.y;
  };
  load_keys<kD, kKeys>(k_tile, in.k, p, work.sequence, kv_head, key, slice.keys);
  load_keys<kD, kKeys>(v_tile, in.v, p, work.sequence, kv_head, key, slice.keys);
  row[0].describe(slice, first, p.H, p.d, 0);
  __syncthreads();
  load_tile(0, 0);
  keep_statistics(0, fetch_statistics(0));
  float dk_sum[1][kWidth / 8][4] = {}, dv_sum[1][kWidth / 8][4] = {};
  int table = 0;
  for (int64_t begin = first; begin < slice.rows; begin += kRows, table ^= 1) {
    cp_async_wait<0>();
    row[table ^ 1].describe(slice, begin + kRows, p.H, p.d, 0);
    __syncthreads();
    if (S::kStages == 2) load_tile(table ^ 1, table ^ 1);
    const float2 next = fetch_statistics(table ^ 1);  // on its way during the products
    const T* const q_tile = row_tiles + (S::kStages == 2 ? table : 0) * (2 * kRows * S::kStride);
    const T* const dout_tile = q_tile + kRows * S::kStride;
    float weight[1][kRows / 8][4], dscore[1][kRows / 8][4];
    score_product<kD, 1, kRows>(k_tile, warp_key, q_tile, weight);
    score_product<kD, 1, kRows>(v_tile, warp_key, dout_tile, dscore);
    softmax_grad(weight[0], dscore[0], key + warp_key + lane / 4, row[table], statistics[table], p.scale * kLog2E);
    weighted_product<kD, 1, kRows, kWidth>(weight, dout_tile + part * kWidth, dv_sum);
    weighted_product<kD, 1, kRows, kWidth>(dscore, q_tile + part * kWidth, dk_sum);
    keep_statistics(table ^ 1, next);
    __syncthreads();
    if (S::kStages == 1) load_tile(table ^ 1, 0);
  }
  cp_async_wait<0>();
  __syncthreads();
  const int width = p.d - part * kWidth < kWidth ? p.d - part * kWidth : kWidth;
  const auto at = [&](int m) { return key + m < slice.keys ? p.key_at(work.sequence, kv_head, key + m) + part * kWidth : -1; };
  const float dk_factor[2] = {p.scale, p.scale}, dv_factor[2] = {1.0f, 1.0f};
  store_rows<kD, kWidth>(dk_sum[0], dk_factor, k_tile, warp_key, dk, width, p.is_vector, at);
  store_rows<kD, kWidth>(dv_sum[0], dv_factor, v_tile, warp_key, dv, width, p.is_vector, at);
}

template <typename T, int kD>
__global__ void __launch_bounds__(kTileThreads) ragged_attention_grad_query_kernel(PackedAttention p, GradInput<T> in, const TileWork* works, T* dq) {
  using S = Tiles<kD>;
  constexpr int kRows = S::kOwn, kKeys = S::kMet;
  PLUMBLINE_SHARED(T, q_tile);
  T* const dout_tile = q_tile + kRows * S::kStride;
  T* const key_tiles = dout_tile + kRows * S::kStride;
  __shared__ RowTable<kRows> row;
  const TileWork work = works[blockIdx.x / p.Hkv];
  const int kv_head = static_cast<int>(blockIdx.x % p.Hkv), lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
  const Slice slice = p.slice(work.sequence, kv_head);
  const int64_t begin = static_cast<int64_t>(work.tile) * kRows, last = begin + kRows < slice.rows ? begin + kRows - 1 : slice.rows - 1;
  const int key_end = slice.visible(last);
  const auto load_stage = [&](int key) {
    T* const tile = key_tiles + key / kKeys % S::kStages * (2 * kKeys * S::kStride);
    load_keys<kD, kKeys>(tile, in.k, p, work.sequence, kv_head, key, key_end);
    load_keys<kD, kKeys>(tile + kKeys * S::kStride, in.v, p, work.sequence, kv_head, key, key_end);
    cp_async_commit();
  };
  row.describe(slice, begin, p.H, p.d, 0);
  __syncthreads();
  load_rows<kD, kRows>(q_tile, in.q, row.head, p);
  load_rows<kD, kRows>(dout_tile, in.dout, row.head, p);
  load_stage(0);
  float lse[2], delta[2], sum[1][kD / 8][4] = {};
  int visible[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int m = warp_row + lane / 4 + 8 * half;
    visible[half] = row.visible[m];
    lse[half] = row.head[m] < 0 ? 0.0f : in.lse_TH[row.head[m]] * kLog2E;
    delta[half] = row.head[m] < 0 ? 0.0f : in.delta_TH[row.head[m]];
  }
  for (int key = 0; key < key_end; key += kKeys) {
    cp_async_wait<0>();
    __syncthreads();
    if (S::kStages == 2 && key + kKeys < key_end) load_stage(key + kKeys);
    const T* const k_tile = key_tiles + key / kKeys % S::kStages * (2 * kKeys * S::kStride);
    float weight[1][kKeys / 8][4], dscore[1][kKeys / 8][4];
    score_product<kD, 1, kKeys>(q_tile, warp_row, k_tile, weight);
    score_product<kD, 1, kKeys>(dout_tile, warp_row, k_tile + kKeys * S::kStride, dscore);
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool meets = key + 8 * n + lane % 4 * 2 + i % 2 < visible[i / 2];
        dscore[0][n][i] = meets ? exp2_approximate(fmaf(weight[0][n][i], p.scale * kLog2E, -lse[i / 2])) * (dscore[0][n][i] - delta[i / 2]) : 0.0f;
      }
    weighted_product<kD, 1, kKeys, kD>(dscore, k_tile, sum);
    if (S::kStages == 1) {
      __syncthreads();
      if (key + kKeys < key_end) load_stage(key + kKeys);
    }
  }
  cp_async_wait<0>();
  __syncthreads();
  const float factor[2] = {p.scale, p.scale};
  store_rows<kD, kD>(sum[0], factor, q_tile, warp_row, dq, p.d, p.is_vector, [&](int m) { return offset_of(row, m, p.d); });
}

}  // namespace

void CudaBackend::ragged_attention_grad(const RaggedAttention& shape, const void* q, const void* k, const void* v, const void* out, const float* lse_TH,
                                        const void* dout, void* dq, void* dk, void* dv) {
  require_head_size("ragged_attention_grad", shape.d);
  const PackedPages packed(shape);
  if (shape.dtype == DType::f32) {
    fill(static_cast<float*>(dk), 0.0f, key_size(shape));
    fill(static_cast<float*>(dv), 0.0f, key_size(shape));
    const auto pages = [&](const void* rows) { return packed.pages_of(static_cast<const float*>(rows)); };
    const std::vector<float*> k_pages = pages(k), v_pages = pages(v), dk_pages = pages(dk), dv_pages = pages(dv);
    return attention_grad(packed.attention(), static_cast<const float*>(q), packed.view(k_pages, v_pages), static_cast<const float*>(out), lse_TH, static_cast<const float*>(dout),
                          static_cast<float*>(dq), dk_pages.data(), dv_pages.data());
  }
  poll();
  if (shape.B == 0) return;
  const std::vector<TileWork> by_row = row_works(packed.attention(), 64), by_key = key_works(packed.attention(), 64, true);
  Upload up(*this, "ragged_attention_grad");
  const auto cu_q = up.add(shape.cu_q_B1, shape.B + 1), cu_k = up.add(shape.cu_k_B1, shape.B + 1);
  const auto row_list = up.add(by_row.data(), static_cast<int64_t>(by_row.size())), key_list = up.add(by_key.data(), static_cast<int64_t>(by_key.size()));
  up.send();
  bool is_vector = shape.d % 8 == 0;
  for (const void* rows : {q, k, v, out, dout, static_cast<const void*>(dq), static_cast<const void*>(dk), static_cast<const void*>(dv)}) is_vector = is_vector && is_aligned_16(rows);
  const int64_t rows = int64_t{shape.cu_q_B1[shape.B]} * shape.H;
  float* delta = static_cast<float*>(scratch(static_cast<size_t>(rows) * sizeof(float)));
  const PackedAttention arguments{up[cu_q], up[cu_k], shape.H, shape.Hkv, shape.d, shape.scale, shape.causal, is_vector};
  const auto grid = [&](const std::vector<TileWork>& list, int parts) { return dim3(blocks_of(static_cast<int64_t>(list.size()) * shape.Hkv * parts, 1)); };
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const GradInput<T> in{static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v), static_cast<const T*>(dout), lse_TH, delta};
    const dim3 block(kTileThreads);
    check(launch_delta(in.dout, static_cast<const T*>(out), delta, rows, shape.d, is_vector, stream()), "ragged_attention_grad");
    for_mma_head_size(shape.d, [&](auto size) {
      constexpr int kD = decltype(size)::value;
      using S = Tiles<kD>;
      check(launch(ragged_attention_grad_key_kernel<T, kD>, grid(by_key, S::kParts), block, S::kBytes, stream(), arguments, in, up[key_list], static_cast<T*>(dk), static_cast<T*>(dv)), "ragged_attention_grad");
      check(launch(ragged_attention_grad_query_kernel<T, kD>, grid(by_row, 1), block, S::kBytes, stream(), arguments, in, up[row_list], static_cast<T*>(dq)), "ragged_attention_grad");
    });
  };
  if (shape.dtype == DType::f16) run(f16{});
  else run(bf16{});
}

}  // namespace plumbline
