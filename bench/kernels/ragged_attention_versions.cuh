#pragma once
// Ragged attention, versions 2 and 3: tiles. Their products are cuda/'s, their order and their softmax are plain.
#include "../../cuda/attention_tile.cuh"
#include "../../cuda/attention_work.h"
#include "ragged_attention_naive.cuh"

namespace plumbline_bench {

// 2: tiles of 32 rows and 32 keys in shared memory as f32, ordinary multiply-adds, a tile of keys waiting for the one before.
struct FloatTiles {
  static constexpr int kRows = 32, kKeys = 32, kStride = kD + 4, kWeights = kKeys + 8;
  static constexpr size_t kBytes = ((kRows + 2 * kKeys) * kStride + kRows * kWeights) * sizeof(float);
};

template <typename T>
__global__ void __launch_bounds__(kTileThreads) tile_attention_kernel(PackedAttention p, AttentionRows<T> in, const TileWork* works) {
  using S = FloatTiles;
  PLUMBLINE_SHARED(float, q_tile);
  float *const k_tile = q_tile + S::kRows * S::kStride, *const v_tile = k_tile + S::kKeys * S::kStride, *const weights = v_tile + S::kKeys * S::kStride;
  __shared__ RowTable<S::kRows> row;
  const TileWork work = works[blockIdx.x / p.Hkv];
  const int kv_head = static_cast<int>(blockIdx.x % p.Hkv), tx = threadIdx.x % 8, ty = threadIdx.x / 8;
  const Slice slice = p.slice(work.sequence, kv_head);
  const int64_t begin = static_cast<int64_t>(work.tile) * S::kRows, last = begin + S::kRows < slice.rows ? begin + S::kRows - 1 : slice.rows - 1;
  const int key_end = slice.visible(last);
  const auto load = [&](float* tile, const T* from, int rows, const auto& at) {
    for (int i = threadIdx.x; i < rows * kD; i += kTileThreads) {
      const int64_t offset = at(i / kD);
      tile[i / kD * S::kStride + i % kD] = offset < 0 ? 0.0f : to_float(from[offset + i % kD]);
    }
  };
  row.describe(slice, begin, p.H, p.d, 0);
  __syncthreads();
  load(q_tile, in.q, S::kRows, [&](int m) { return row.head[m] * kD; });
  float gathered[2][kD / 32][4] = {}, peak[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  for (int key = 0; key < key_end; key += S::kKeys) {
    const auto key_at = [&](int m) { return key + m < key_end ? p.key_at(work.sequence, kv_head, key + m) : int64_t{-1}; };
    load(k_tile, in.k, S::kKeys, key_at);
    load(v_tile, in.v, S::kKeys, key_at);
    __syncthreads();
    float s[2][4];
    score_product<kD, 2, 4>(q_tile, k_tile, kD, s);
    for (int i = 0; i < 2; ++i) {
      const int m = ty + 16 * i;
      float top = peak[i], total = 0;
      for (int j = 0; j < 4; ++j) s[i][j] = key + tx + 8 * j < row.visible[m] ? s[i][j] * p.scale : -INFINITY, top = fmaxf(top, s[i][j]);
      for (int bits = 4; bits > 0; bits /= 2) top = fmaxf(top, __shfl_xor_sync(kFullMask, top, bits));
      const float base = top == -INFINITY ? 0.0f : top, rescale = expf(peak[i] - base);
      for (int j = 0; j < 4; ++j) s[i][j] = expf(s[i][j] - base), total += s[i][j], weights[m * S::kWeights + tx + 8 * j] = s[i][j];
      peak[i] = top, sum[i] = fmaf(sum[i], rescale, total);
      for (int j = 0; j < kD / 32; ++j)
        for (int n = 0; n < 4; ++n) gathered[i][j][n] *= rescale;
    }
    __syncthreads();
    row_product<kD, 2, S::kKeys>(weights, v_tile, gathered);
    __syncthreads();
  }
  for (int i = 0; i < 2; ++i) {
    for (int bits = 4; bits > 0; bits /= 2) sum[i] += __shfl_xor_sync(kFullMask, sum[i], bits);
    const int64_t head = row.head[ty + 16 * i];
    if (head < 0) continue;
    for (int j = 0; j < kD / 32; ++j)
      for (int n = 0; n < 4; ++n) in.out[head * kD + 32 * j + 4 * tx + n] = from_float<T>(gathered[i][j][n] / sum[i]);
    if (tx == 0) in.lse[head] = peak[i] + logf(sum[i]);
  }
}

// 3: tensor cores; 64 rows and 64 keys, every tile of keys loaded between two barriers.
struct HalfTiles {
  static constexpr int kRows = 64, kKeys = 64, kStride = kD + 8;
  static constexpr size_t kBytes = (kRows + 2 * kKeys) * kStride * 2;
};

template <typename T>
__global__ void __launch_bounds__(kTileThreads) mma_attention_kernel(PackedAttention p, AttentionRows<T> in, const TileWork* works) {
  using S = HalfTiles;
  PLUMBLINE_SHARED(T, q_tile);
  T *const k_tile = q_tile + S::kRows * S::kStride, *const v_tile = k_tile + S::kKeys * S::kStride;
  __shared__ RowTable<S::kRows> row;
  const TileWork work = works[blockIdx.x / p.Hkv];
  const int kv_head = static_cast<int>(blockIdx.x % p.Hkv), lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16;
  const Slice slice = p.slice(work.sequence, kv_head);
  const int64_t begin = static_cast<int64_t>(work.tile) * S::kRows, last = begin + S::kRows < slice.rows ? begin + S::kRows - 1 : slice.rows - 1;
  const int key_end = slice.visible(last);
  row.describe(slice, begin, p.H, p.d, 0);
  __syncthreads();
  load_rows<kD, S::kRows>(q_tile, in.q, row.head, p);
  float gathered[1][kD / 8][4] = {}, peak[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  for (int key = 0; key < key_end; key += S::kKeys) {
    load_keys<kD, S::kKeys>(k_tile, in.k, p, work.sequence, kv_head, key, key_end);
    load_keys<kD, S::kKeys>(v_tile, in.v, p, work.sequence, kv_head, key, key_end);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    float s[1][S::kKeys / 8][4];
    plumbline::score_product<kD, 1, S::kKeys>(q_tile, first, k_tile, s);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int visible = row.visible[first + lane / 4 + 8 * half];
      float top = peak[half], total = 0;
#pragma unroll
      for (int e = 0; e < S::kKeys / 4; ++e) {
        float& x = s[0][e / 2][2 * half + e % 2];
        x = key + e / 2 * 8 + lane % 4 * 2 + e % 2 < visible ? x * p.scale : -INFINITY, top = fmaxf(top, x);
      }
      top = fmaxf(top, __shfl_xor_sync(kFullMask, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kFullMask, top, 2));
      const float base = top == -INFINITY ? 0.0f : top, rescale = expf(peak[half] - base);
#pragma unroll
      for (int e = 0; e < S::kKeys / 4; ++e) {
        float& x = s[0][e / 2][2 * half + e % 2];
        x = expf(x - base), total += x;
      }
      peak[half] = top, sum[half] = fmaf(sum[half], rescale, total);
#pragma unroll
      for (int c = 0; c < kD / 8; ++c) gathered[0][c][2 * half] *= rescale, gathered[0][c][2 * half + 1] *= rescale;
    }
    weighted_product<kD, 1, S::kKeys, kD>(s, v_tile, gathered);
    __syncthreads();
  }
  float inverse[2];
  for (int half = 0; half < 2; ++half) {
    for (int bits = 1; bits < 4; bits *= 2) sum[half] += __shfl_xor_sync(kFullMask, sum[half], bits);
    const int64_t head = row.head[first + lane / 4 + 8 * half];
    inverse[half] = 1.0f / sum[half];
    if (lane % 4 == 0 && head >= 0) in.lse[head] = peak[half] + logf(sum[half]);
  }
  store_rows<kD, kD>(gathered[0], inverse, q_tile, first, in.out, kD, true, [&](int m) { return row.head[m] < 0 ? int64_t{-1} : row.head[m] * kD; });
}

}  // namespace plumbline_bench
