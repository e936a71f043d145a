// attention_grad: backward of attention, recomputed from lse.   p = e^(s - lse), ds = p (dout v^T - rowsum(dout out))
//                 dq = scale ds k, dk += scale ds^T q, dv += p^T dout                                  (arXiv 2205.14135, alg. 4)
//   in   q, pages, out, lse as in attention; dout (T, H d)       out  dq overwritten; dk, dv pages added to
//   how  f32 FFMA; one kernel per tile of keys for dk and dv, one per tile of rows for dq, each sum in order; no atomics: every row is
//        written by one block. NaN spreads as in attention
//   cost 14 d flop per (row, key) that meet, bound by FFMA. Blocks of 128 threads, 32 rows x 32 keys (16 x 16 at d > 128), 82 KB of shared
//        memory at d = 128
//   limits: those of attention
#include "attention_delta.cuh"
#include "attention_paged.h"
#include "attention_work.h"

namespace plumbline {
namespace {

struct GradRows {  // rows [T, H, d] and [T, H]
  const float *dout, *lse, *delta;
};
template <int kD, int kM, int kN>
struct Tiles {
  static constexpr int kRows = 16 * kM, kKeys = 8 * kN, kStride = kD + 4, kWeightStride = kKeys + 8;
  static constexpr size_t kBytes = (2 * (kRows + kKeys) * kStride + 2 * kRows * kWeightStride) * sizeof(float);
  float *q, *dout, *k, *v, *weights, *dscores;
  __device__ explicit Tiles(float* memory) {
    q = memory, dout = q + kRows * kStride, k = dout + kRows * kStride, v = k + kKeys * kStride;
    weights = v + kKeys * kStride, dscores = weights + kRows * kWeightStride;
  }
};

// Weights and the gradients of the scores of this tile, into shared memory; 0 where row and key do not meet.
template <int kD, int kM, int kN>
PLUMBLINE_DEVICE void weigh(const PagedAttention& p, const GradRows& rows, const Tiles<kD, kM, kN>& t, const RowTable<16 * kM>& row, int key) {
  const int tx = threadIdx.x % 8, ty = threadIdx.x / 8;
  float s[kM][kN], g[kM][kN];
  score_product<kD>(t.q, t.k, p.d, s);
  score_product<kD>(t.dout, t.v, p.d, g);
#pragma unroll
  for (int i = 0; i < kM; ++i) {
    const int m = ty + 16 * i;
    const bool valid = row.head[m] >= 0;
    const float lse = valid ? rows.lse[row.head[m]] : 0.0f, delta = valid ? rows.delta[row.head[m]] : 0.0f;
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      const bool meets = key + tx + 8 * j < row.visible[m];
      const float weight = meets ? expf(s[i][j] * p.scale - lse) : 0.0f;
      const int at = m * Tiles<kD, kM, kN>::kWeightStride + tx + 8 * j;
      t.weights[at] = weight;
      t.dscores[at] = meets ? weight * (g[i][j] - delta) : 0.0f;
    }
  }
}

template <int kD, int kM, int kN>
__global__ void __launch_bounds__(kTileThreads) attention_grad_query_kernel(PagedAttention p, GradRows rows, const TileWork* works, float* dq) {
  using Tile = Tiles<kD, kM, kN>;
  constexpr int kRows = Tile::kRows, kKeys = Tile::kKeys;
  PLUMBLINE_SHARED(float, memory);
  const Tile t(memory);
  __shared__ RowTable<kRows> row;
  const TileWork work = works[blockIdx.x / p.Hkv];
  const Slice slice = slice_of(p, work.sequence, static_cast<int>(blockIdx.x % p.Hkv));
  const int first_page = p.page_start_B1[work.sequence];
  const int64_t begin = static_cast<int64_t>(work.tile) * kRows, last = begin + kRows < slice.rows ? begin + kRows - 1 : slice.rows - 1;
  const int key_end = slice.visible(last);
  row.describe(slice, begin, p.H, p.d, p.q_row_stride);
  __syncthreads();
  load_rows<kD, kRows>(t.q, p.q, row.q, 1, p.d, p.is_vector);
  load_rows<kD, kRows>(t.dout, rows.dout, row.head, p.d, p.d, p.is_vector);
  float sum[kM][kD / 32][4] = {};
  for (int key = 0; key < key_end; key += kKeys) {
    load_keys<kD, kKeys>(t.k, p, p.k, slice, first_page, key, key_end);
    load_keys<kD, kKeys>(t.v, p, p.v, slice, first_page, key, key_end);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    weigh(p, rows, t, row, key);
    __syncthreads();
    row_product<kD, kM, kKeys>(t.dscores, t.k, sum);
    __syncthreads();
  }
  cp_async_wait<0>();
#pragma unroll
  for (int i = 0; i < kM; ++i) {
    const int64_t at = row.q[threadIdx.x / 8 + 16 * i];
#pragma unroll
    for (int j = 0; j < kD / 32; ++j)
      if (at >= 0) write4<false>(dq + at, sum[i][j], p.scale, threadIdx.x % 8 * 4 + 32 * j, p.d, p.is_vector);
  }
}

// y[keys kN/2 ty + i, columns 4 tx + 32 j ..] += weights[kRows, keys]^T x[kRows, columns]
template <int kD, int kRows, int kN>
PLUMBLINE_DEVICE void key_product(const float* weights, const float* x, float (&y)[kN / 2][kD / 32][4]) {
  const float* w_at = weights + threadIdx.x / 8 * (kN / 2);
  const float* x_at = x + threadIdx.x % 8 * 4;
#pragma unroll 4
  for (int m = 0; m < kRows; ++m) {
    float w[kN / 2];
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) w[i] = w_at[m * (8 * kN + 8) + i];
#pragma unroll
    for (int j = 0; j < kD / 32; ++j) {
      const float4 value = read4(x_at + m * (kD + 4) + 32 * j);
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) {
        y[i][j][0] = fmaf(w[i], value.x, y[i][j][0]);
        y[i][j][1] = fmaf(w[i], value.y, y[i][j][1]);
        y[i][j][2] = fmaf(w[i], value.z, y[i][j][2]);
        y[i][j][3] = fmaf(w[i], value.w, y[i][j][3]);
      }
    }
  }
}

template <int kD, int kN>
PLUMBLINE_DEVICE void add_to_pages(const PagedAttention& p, const Slice& slice, int first_page, int begin, float* const* pages, float factor, const float (&sum)[kN / 2][kD / 32][4]) {
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    const int key = begin + threadIdx.x / 8 * (kN / 2) + i;
    if (key >= slice.keys) continue;
    float* to = pages[first_page + key / p.page_rows] + slice.kv_head * p.head_stride + key % p.page_rows * p.row_stride;
#pragma unroll
    for (int j = 0; j < kD / 32; ++j) write4<true>(to, sum[i][j], factor, threadIdx.x % 8 * 4 + 32 * j, p.d, p.is_vector);
  }
}

template <int kD, int kM, int kN>
__global__ void __launch_bounds__(kTileThreads) attention_grad_key_kernel(PagedAttention p, GradRows rows, const TileWork* works, float* const* dk, float* const* dv) {
  using Tile = Tiles<kD, kM, kN>;
  constexpr int kRows = Tile::kRows, kKeys = Tile::kKeys;
  PLUMBLINE_SHARED(float, memory);
  const Tile t(memory);
  __shared__ RowTable<kRows> row;
  const TileWork work = works[blockIdx.x / p.Hkv];
  const Slice slice = slice_of(p, work.sequence, static_cast<int>(blockIdx.x % p.Hkv));
  const int first_page = p.page_start_B1[work.sequence];
  const int key = work.tile * kKeys;
  load_keys<kD, kKeys>(t.k, p, p.k, slice, first_page, key, slice.keys);
  load_keys<kD, kKeys>(t.v, p, p.v, slice, first_page, key, slice.keys);
  float dk_sum[kN / 2][kD / 32][4] = {}, dv_sum[kN / 2][kD / 32][4] = {};
  for (int64_t begin = slice.first_row(key) / kRows * kRows; begin < slice.rows; begin += kRows) {
    row.describe(slice, begin, p.H, p.d, p.q_row_stride);
    __syncthreads();
    load_rows<kD, kRows>(t.q, p.q, row.q, 1, p.d, p.is_vector);
    load_rows<kD, kRows>(t.dout, rows.dout, row.head, p.d, p.d, p.is_vector);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    weigh(p, rows, t, row, key);
    __syncthreads();
    key_product<kD, kRows, kN>(t.weights, t.dout, dv_sum);
    key_product<kD, kRows, kN>(t.dscores, t.q, dk_sum);
    __syncthreads();
  }
  cp_async_wait<0>();
  add_to_pages<kD, kN>(p, slice, first_page, key, dk, p.scale, dk_sum);
  add_to_pages<kD, kN>(p, slice, first_page, key, dv, 1.0f, dv_sum);
}

}  // namespace

void CudaBackend::attention_grad(const AttentionShape& shape, const float* q, const KeyValuePages& pages, const float* out_THd, const float* lse_TH,
                                 const float* dout_THd, float* dq, float* const* dk, float* const* dv) {
  poll();
  require_head_size("attention_grad", shape.d);
  if (shape.B == 0) return;
  const int64_t rows = int64_t{shape.cu_q_B1[shape.B]} * shape.H;
  for_head_size(shape.d, [&](auto size) {
    constexpr int kD = decltype(size)::value, kM = kD <= 128 ? 2 : 1, kN = kD <= 128 ? 4 : 2;
    using Tile = Tiles<kD, kM, kN>;
    const std::vector<TileWork> by_row = row_works(shape, Tile::kRows), by_key = key_works(shape, Tile::kKeys, false);
    PagedUpload paged(*this, "attention_grad", shape, q, pages);
    const auto dk_pages = paged.add_pages(dk), dv_pages = paged.add_pages(dv);
    for (const void* rows_of : {static_cast<const void*>(dout_THd), static_cast<const void*>(out_THd), static_cast<const void*>(dq)}) paged.add_rows(rows_of);
    const auto row_list = paged.upload.add(by_row.data(), static_cast<int64_t>(by_row.size()));
    const auto key_list = paged.upload.add(by_key.data(), static_cast<int64_t>(by_key.size()));
    paged.upload.send();
    float* delta = static_cast<float*>(scratch(static_cast<size_t>(rows) * sizeof(float)));
    const PagedAttention arguments = paged.arguments();
    const GradRows grad{dout_THd, lse_TH, delta};
    const auto grid = [&](const std::vector<TileWork>& list) { return dim3(blocks_of(static_cast<int64_t>(list.size()) * shape.Hkv, 1)); };
    check(launch_delta(dout_THd, out_THd, delta, rows, shape.d, arguments.is_vector, stream()), "attention_grad");
    check(launch(attention_grad_key_kernel<kD, kM, kN>, grid(by_key), dim3(kTileThreads), Tile::kBytes, stream(), arguments, grad, paged.upload[key_list], paged.upload[dk_pages], paged.upload[dv_pages]), "attention_grad");
    check(launch(attention_grad_query_kernel<kD, kM, kN>, grid(by_row), dim3(kTileThreads), Tile::kBytes, stream(), arguments, grad, paged.upload[row_list], dq), "attention_grad");
  });
}

}  // namespace plumbline
