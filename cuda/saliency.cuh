#pragma once
// What the kernels of attention saliency share: key rows that lie in pages meet all query heads of their kv head in one read.
// Eight lanes hold a key row, 16 bytes each in turn, and a lane holds four rows: a warp reads whole 128-byte lines of 16 keys, with up
// to 16 loads in flight per lane, and one 16-byte read of q serves 16 multiply-adds.
#include <algorithm>
#include <vector>

#include "cuda_backend.h"
#include "dtype.cuh"
#include "reduce.cuh"

namespace plumbline {

constexpr int kSaliencyThreads = 128, kSaliencyWarps = kSaliencyThreads / 32;
constexpr int kSlab = 128;                                                     // floats of a row in registers
constexpr int kWarpKeys = 16, kStepKeys = kSaliencyWarps * kWarpKeys;
constexpr int kMostKeys = 256;                                                 // of a block; fewer where that leaves processors idle
constexpr int64_t kEnoughBlocks = 396;                                         // 3 for each of 132 processors

struct KeyPlace {  // keys or columns [begin, ...) of a sequence: the work of a block
  int32_t sequence, begin;
};

struct SaliencyHeads {  // query heads of a kv head, cut so that a cut's rows fit shared memory
  int32_t group, at_once, cuts, d, padded;
};
inline SaliencyHeads saliency_heads(const AttentionShape& shape, int64_t copies) {
  const int32_t group = shape.H / shape.Hkv, padded = (shape.d + kSlab - 1) / kSlab * kSlab;
  const int64_t fit = std::max<int64_t>(1, static_cast<int64_t>(kPlainSharedBytes - (8 << 10)) / (copies * padded * static_cast<int64_t>(sizeof(float))));
  const int32_t at_once = static_cast<int32_t>(std::min<int64_t>(group, std::min<int64_t>(fit, 32)));
  return {group, at_once, (group + at_once - 1) / at_once, shape.d, padded};
}

// Pieces of `keys` rows of each sequence; fewer rows where there would be too few blocks. count(b): rows of sequence b.
template <typename Count>
std::vector<KeyPlace> cut_keys(int32_t B, int64_t blocks_per_piece, const Count& count, int32_t* keys) {
  std::vector<KeyPlace> places;
  for (*keys = kMostKeys;; *keys /= 2) {
    places.clear();
    for (int32_t b = 0; b < B; ++b)
      for (int32_t at = 0, rows = count(b); at < rows; at += *keys) places.push_back({b, at});
    if (*keys == kStepKeys || static_cast<int64_t>(places.size()) * blocks_per_piece >= kEnoughBlocks) return places;
  }
}

PLUMBLINE_DEVICE float dot4(float4 a, float4 b, float sum) { return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum)))); }

// Floats [at, at + 4) of a row of d; zeros behind its end and of no row.
template <bool kVector>
PLUMBLINE_DEVICE float4 load_four(const float* row, int at, int d) {
  if (row == nullptr) return make_float4(0, 0, 0, 0);
  if (kVector) return at < d ? *reinterpret_cast<const float4*>(row + at) : make_float4(0, 0, 0, 0);
  return make_float4(at < d ? row[at] : 0, at + 1 < d ? row[at + 1] : 0, at + 2 < d ? row[at + 2] : 0, at + 3 < d ? row[at + 3] : 0);
}

// Four key rows of this lane's eight.
template <bool kVector>
struct KeyRows {
  const float* row[4];
  float4 x[4][4];  // [row][turn]
  PLUMBLINE_DEVICE void load(int slab, int d) {
    const int first = slab * kSlab + threadIdx.x % 8 * 4;
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) x[n][c] = load_four<kVector>(row[n], first + c * 32, d);
  }
};

// q . k for one head. Four sums over eight lanes in four exchanges: lane r of the eight ends with that of row r % 4.
template <bool kVector>
PLUMBLINE_DEVICE float score_row(const float* q, KeyRows<kVector>& keys, int d, int slabs) {
  float dot[4] = {0, 0, 0, 0};
  const int r = threadIdx.x % 8;
  for (int slab = 0; slab < slabs; ++slab) {
    if (slabs > 1) keys.load(slab, d);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float4 own = *reinterpret_cast<const float4*>(q + slab * kSlab + c * 32 + r * 4);
#pragma unroll
      for (int n = 0; n < 4; ++n) dot[n] = dot4(own, keys.x[n][c], dot[n]);
    }
  }
  const bool odd = r & 1, upper = r & 2;
  float low = odd ? dot[1] : dot[0], high = odd ? dot[3] : dot[2];
  low += __shfl_xor_sync(kFullMask, odd ? dot[0] : dot[1], 1);
  high += __shfl_xor_sync(kFullMask, odd ? dot[2] : dot[3], 1);
  float sum = upper ? high : low;
  sum += __shfl_xor_sync(kFullMask, upper ? low : high, 2);
  return sum + __shfl_xor_sync(kFullMask, sum, 4);
}

// Where the pages' rows lie; device memory.
struct PageView {
  float* const* page;
  const int32_t* page_start;
  int64_t head_stride, row_stride;
  int32_t page_rows;
  PLUMBLINE_DEVICE float* row(int32_t sequence, int32_t key, int32_t kv_head) const {
    return page[page_start[sequence] + key / page_rows] + key % page_rows * row_stride + kv_head * head_stride;
  }
};

// heads rows of q, scaled, padded with zeros.
template <bool kVector>
PLUMBLINE_DEVICE void load_queries(const float* q, int heads, int d, int padded, float scale, float* to) {
  for (int i = threadIdx.x * 4; i < heads * padded; i += kSaliencyThreads * 4) {
    const float4 x = load_four<kVector>(q + static_cast<int64_t>(i / padded) * d, i % padded, d);
    *reinterpret_cast<float4*>(to + i) = make_float4(x.x * scale, x.y * scale, x.z * scale, x.w * scale);
  }
}

// Rows of all pages, and of every layer above one another, start at 16 bytes.
inline bool has_vector_rows(const KeyValuePages& pages, float* const* data, int32_t B, int32_t d, int64_t layer_stride) {
  if (d % 4 != 0 || pages.head_stride % 4 != 0 || pages.row_stride % 4 != 0 || layer_stride % 4 != 0) return false;
  for (int32_t p = 0; p < pages.page_start_B1[B]; ++p)
    if (!is_aligned_16(data[p])) return false;
  return true;
}

}  // namespace plumbline
