// ragged_attention: attention over packed sequences on the tensor cores.   out = softmax(scale q k^T + mask) v     (arXiv 2307.08691, alg. 1)
//   in   q (T, H, d), k and v (S, Hkv, d): f16 or bf16 (f32: attention.cu)   out  out (T, H, d) in the same type, lse (T, H) f32
//   how  products of 16-bit values summed in f32; the softmax is f32, online over tiles of keys; its weights are rounded to 16 bits for
//        the second product, not for lse. Fixed order; a sequence's bits do not depend on the batch. Rows without keys, NaN and
//        infinities as in attention
//   cost one launch for the batch, long tiles first: 4 warps for 128 virtual rows (64 where a slice has no more, or d > 128), 32 or 64 keys
//        at a time, the next ones on their way by cp.async. 4 d flop per (row, key) that meet: bound by the tensor cores
//   limits: d <= 256; zeros fill up to 64, 80, 96, 128 or 256. Rows that are no multiple of 16 bytes are loaded element by element
#include "attention_mma.cuh"
#include "attention_work.h"
#include "cuda_backend.h"
#include "../src/core/packed_pages.h"

namespace plumbline {
namespace {

template <int kD, int kM>
struct Tiles {
  static constexpr int kRows = 64 * kM, kKeys = kD <= 96 ? 64 : kD <= 128 ? 32 : 16, kStride = kD + 8;
  static constexpr size_t kBytes = (kRows + 4 * kKeys) * kStride * 2;
};

// Running softmax of two of a thread's rows (lane / 4 and lane / 4 + 8 of 16): peak in units of log2, this thread's share of the sum.
struct Softmax {
  float peak[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
};

// Scores become weights 2^(s - peak); what was gathered is scaled to the new peak.
template <int kD, int kKeys>
PLUMBLINE_DEVICE void softmax_rows(float (&s)[kKeys / 8][4], float factor, Softmax& softmax, float (&gathered)[kD / 8][4]) {
  float rescale[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float best = -INFINITY;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) s[n][i] *= factor, best = fmaxf(best, s[n][i]);
    best = fmaxf(best, __shfl_xor_sync(kFullMask, best, 1));
    best = fmaxf(best, __shfl_xor_sync(kFullMask, best, 2));
    const float top = fmaxf(best, softmax.peak[half]);
    const float base = top == -INFINITY ? 0.0f : top;  // all scores -inf so far: the weights must be 0, not NaN
    rescale[half] = exp2_approximate(softmax.peak[half] - base);
    float total = 0.0f;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) s[n][i] = exp2_approximate(s[n][i] - base), total += s[n][i];
    softmax.peak[half] = top;
    softmax.sum[half] = fmaf(softmax.sum[half], rescale[half], total);
  }
  if (!__any_sync(kFullMask, rescale[0] != 1.0f || rescale[1] != 1.0f)) return;
#pragma unroll
  for (int c = 0; c < kD / 8; ++c) gathered[c][0] *= rescale[0], gathered[c][1] *= rescale[0], gathered[c][2] *= rescale[1], gathered[c][3] *= rescale[1];
}

// Keys from visible[half] on are hidden.
template <int kKeys>
PLUMBLINE_DEVICE void hide_keys(float (&s)[kKeys / 8][4], int key, const int (&visible)[2]) {
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (key + 8 * n + static_cast<int>(threadIdx.x % 4) * 2 + i % 2 >= visible[i / 2]) s[n][i] = -INFINITY;
}

// 1 / sum of this thread's rows, which start at tile row `first`, and their lse into memory.
template <int kRows>
PLUMBLINE_DEVICE void finish_softmax(const Softmax& softmax, const RowTable<kRows>& row, int first, float (&inverse)[2], float* lse) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = softmax.sum[half];
    sum += __shfl_xor_sync(kFullMask, sum, 1);
    sum += __shfl_xor_sync(kFullMask, sum, 2);
    const int m = first + lane / 4 + 8 * half;
    const bool sees = row.visible[m] > 0;
    inverse[half] = sees ? 1.0f / sum : 0.0f;
    if (lane % 4 == 0 && row.head[m] >= 0) lse[row.head[m]] = sees ? (softmax.peak[half] + log2f(sum)) * kLn2 : -INFINITY;
  }
}

template <typename T, int kD, int kM>
__global__ void __launch_bounds__(kTileThreads) ragged_attention_kernel(PackedAttention p, const T* q, const T* k, const T* v, const TileWork* works, T* out, float* lse) {
  using S = Tiles<kD, kM>;
  PLUMBLINE_SHARED(T, q_tile);
  T* const key_tiles = q_tile + S::kRows * S::kStride;
  __shared__ RowTable<S::kRows> row;
  const TileWork work = works[blockIdx.x / p.Hkv];
  const int kv_head = static_cast<int>(blockIdx.x % p.Hkv), lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16 * kM;
  const Slice slice = p.slice(work.sequence, kv_head);
  const int64_t begin = static_cast<int64_t>(work.tile) * S::kRows, last = begin + S::kRows < slice.rows ? begin + S::kRows - 1 : slice.rows - 1;
  const int key_end = slice.visible(last), seen_by_all = slice.visible(begin);
  const auto load_stage = [&](int key) {
    T* const tile = key_tiles + key / S::kKeys % 2 * (2 * S::kKeys * S::kStride);
    load_keys<kD, S::kKeys>(tile, k, p, work.sequence, kv_head, key, key_end);
    load_keys<kD, S::kKeys>(tile + S::kKeys * S::kStride, v, p, work.sequence, kv_head, key, key_end);
    cp_async_commit();
  };
  row.describe(slice, begin, p.H, p.d, static_cast<int64_t>(p.H) * p.d);
  __syncthreads();
  load_rows<kD, S::kRows>(q_tile, q, row.head, p);
  load_stage(0);
  float gathered[kM][kD / 8][4] = {};
  Softmax softmax[kM];
  for (int key = 0; key < key_end; key += S::kKeys) {
    cp_async_wait<0>();
    __syncthreads();
    if (key + S::kKeys < key_end) load_stage(key + S::kKeys);
    const T* const k_tile = key_tiles + key / S::kKeys % 2 * (2 * S::kKeys * S::kStride);
    float s[kM][S::kKeys / 8][4];
    score_product<kD, kM, S::kKeys>(q_tile, warp_row, k_tile, s);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const int first = warp_row + 16 * m + lane / 4, visible[2] = {row.visible[first], row.visible[first + 8]};
      if (key + S::kKeys > seen_by_all) hide_keys<S::kKeys>(s[m], key, visible);
      softmax_rows<kD, S::kKeys>(s[m], p.scale * kLog2E, softmax[m], gathered[m]);
    }
    weighted_product<kD, kM, S::kKeys, kD>(s, k_tile + S::kKeys * S::kStride, gathered);
  }
  cp_async_wait<0>();
  __syncthreads();
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    float inverse[2];
    finish_softmax(softmax[m], row, warp_row + 16 * m, inverse, lse);
    store_rows<kD, kD>(gathered[m], inverse, q_tile, warp_row + 16 * m, out, p.d, p.is_vector, [&](int at) { return offset_of(row, at, p.d); });
  }
}

}  // namespace

void CudaBackend::ragged_attention(const RaggedAttention& shape, const void* q, const void* k, const void* v, void* out, float* lse_TH) {
  require_head_size("ragged_attention", shape.d);
  const PackedPages packed(shape);
  if (shape.dtype == DType::f32) {
    const std::vector<float*> k_pages = packed.pages_of(static_cast<const float*>(k)), v_pages = packed.pages_of(static_cast<const float*>(v));
    return attention(packed.attention(), static_cast<const float*>(q), packed.view(k_pages, v_pages), static_cast<float*>(out), lse_TH);
  }
  poll();
  const int32_t large = shape.d <= 128 ? 128 : 64;
  std::vector<TileWork> few, many;
  for (const TileWork& work : row_works(packed.attention(), 64)) {
    const int64_t rows = int64_t{shape.cu_q_B1[work.sequence + 1] - shape.cu_q_B1[work.sequence]} * (shape.H / shape.Hkv);
    if (rows <= 64 || large == 64) few.push_back(work);
    else if (work.tile % 2 == 0) many.push_back({work.sequence, work.tile / 2});
  }
  Upload up(*this, "ragged_attention");
  const auto cu_q = up.add(shape.cu_q_B1, shape.B + 1), cu_k = up.add(shape.cu_k_B1, shape.B + 1);
  const auto few_list = up.add(few.data(), static_cast<int64_t>(few.size())), many_list = up.add(many.data(), static_cast<int64_t>(many.size()));
  up.send();
  const bool is_vector = shape.d % 8 == 0 && is_aligned_16(q) && is_aligned_16(k) && is_aligned_16(v) && is_aligned_16(out);
  const PackedAttention arguments{up[cu_q], up[cu_k], shape.H, shape.Hkv, shape.d, shape.scale, shape.causal, is_vector};
  const auto run = [&](auto zero, auto size, auto tiles, const std::vector<TileWork>& works, const TileWork* list) {
    using T = decltype(zero);
    constexpr int kD = decltype(size)::value, kM = decltype(tiles)::value;
    check(launch(ragged_attention_kernel<T, kD, kM>, dim3(blocks_of(static_cast<int64_t>(works.size()) * shape.Hkv, 1)), dim3(kTileThreads), Tiles<kD, kM>::kBytes, stream(),
                 arguments, static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v), list, static_cast<T*>(out), lse_TH),
          "ragged_attention");
  };
  const auto run_both = [&](auto zero) {
    for_mma_head_size(shape.d, [&](auto size) {
      run(zero, size, HeadSize<1>{}, few, up[few_list]);
      if constexpr (decltype(size)::value <= 128) run(zero, size, HeadSize<2>{}, many, up[many_list]);
    });
  };
  if (shape.dtype == DType::f16) run_both(f16{});
  else run_both(bf16{});
}

}  // namespace plumbline
