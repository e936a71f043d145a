#pragma once
// Statistics of norms by class inside a kernel: a warp per class reduces a tile of norms, each block keeps one set per class, the last
// block to finish merges the sets. Every sum has a fixed shape: the same bits on every run. Histograms are integers, in any order.
#include "../src/core/backend.h"
#include "reduce.cuh"

namespace plumbline {

constexpr int kNormThreads = 256;
constexpr int kNormWarps = kNormThreads / 32;
constexpr int kNormTile = kNormThreads;  // norms that a block looks at together
constexpr int kNormBlocks = 512;         // at most: 31 warps per multiprocessor of an H100

template <typename Count>
struct alignas(16) NormSetOf {
  double mean, m2;
  float min, max;
  Count count, not_finite;
};
using NormSet = NormSetOf<int64_t>;
using BlockSet = NormSetOf<int32_t>;  // two loads of 16 bytes
struct NormClasses {
  NormStatistics* statistics_K;  // null: none wanted
  const uint8_t* class_T;        // null: all 0
  BlockSet* sets_KG;             // of each block of the grid
  int32_t* finished;             // 0, and so again afterwards
  int32_t classes;
  float scale;
};

PLUMBLINE_DEVICE bool is_finite_norm(float norm) { return fabsf(norm) <= 3.402823466e38f; }
PLUMBLINE_DEVICE int32_t norm_bin(float norm) {  // norm_bin_of_bits of core/backend.h, which is host code
  const int32_t bin = static_cast<int32_t>(__float_as_uint(norm) >> 21) - ((127 - 40) << 2);
  return bin < 0 ? 0 : bin >= kNormBins ? kNormBins - 1 : bin;
}

// a and b as one set (Chan, Golub, LeVeque 1979).
PLUMBLINE_DEVICE NormSet merge_sets(const NormSet& a, const NormSet& b) {
  const int64_t count = a.count + b.count, not_finite = a.not_finite + b.not_finite;
  if (a.count == 0) return {b.mean, b.m2, b.min, b.max, count, not_finite};
  if (b.count == 0) return {a.mean, a.m2, a.min, a.max, count, not_finite};
  const double share = static_cast<double>(b.count) / static_cast<double>(count), apart = b.mean - a.mean;
  return {a.mean + apart * share, a.m2 + b.m2 + apart * apart * static_cast<double>(a.count) * share, fminf(a.min, b.min), fmaxf(a.max, b.max), count, not_finite};
}

PLUMBLINE_DEVICE NormSet widened(const BlockSet& set) { return {set.mean, set.m2, set.min, set.max, set.count, set.not_finite}; }
PLUMBLINE_DEVICE BlockSet narrowed(const NormSet& set) {
  return {set.mean, set.m2, set.min, set.max, static_cast<int32_t>(set.count), static_cast<int32_t>(set.not_finite)};
}

// `each(i)` gives set i of n; all lanes of a warp receive the whole. Two passes: the mean, then deviations from it.
template <typename Each>
PLUMBLINE_DEVICE NormSet reduce_sets(int n, const Each& each) {
  const int lane = threadIdx.x % 32;
  double sum = 0, m2 = 0;
  float low = INFINITY, high = -INFINITY;
  int64_t count = 0, not_finite = 0;
#pragma unroll 4
  for (int i = lane; i < n; i += 32) {
    const BlockSet set = each(i);
    not_finite += set.not_finite, count += set.count;
    if (set.count == 0) continue;
    sum += set.mean * static_cast<double>(set.count);
    low = fminf(low, set.min), high = fmaxf(high, set.max);
  }
  sum = warp_sum(sum), count = warp_sum(count), not_finite = warp_sum(not_finite);
  if (count == 0) return {0, 0, 0, 0, 0, not_finite};
  const double mean = sum / static_cast<double>(count);
#pragma unroll 4
  for (int i = lane; i < n; i += 32) {
    const BlockSet set = each(i);
    if (set.count > 0) m2 += set.m2 + static_cast<double>(set.count) * (set.mean - mean) * (set.mean - mean);
  }
  low = -warp_reduce(-low, Maximum{});
  return {mean, warp_sum(m2), low, warp_reduce(high, Maximum{}), count, not_finite};
}

// The class of this thread's row of the tile. Asked for before the rows are read: the labels come over the bus, 1 to 2 us.
PLUMBLINE_DEVICE int class_of(const NormClasses& to, int64_t first, int rows) {
  return to.class_T && static_cast<int>(threadIdx.x) < rows ? to.class_T[first + threadIdx.x] : 0;
}

// Takes `rows` scaled norms and their classes (shared memory) into this block's sets; is_first: there are none yet. Histogram: of this
// block in shared memory, or null: straight into the statistics.
PLUMBLINE_DEVICE void add_tile(const NormClasses& to, const float* norms, const uint8_t* kinds, int rows, bool is_first, int32_t* histogram) {
  const int thread = threadIdx.x;
  if (thread < rows && is_finite_norm(norms[thread])) {
    const int k = kinds[thread];
    int32_t* bins = histogram ? histogram + k * kNormBins : to.statistics_K[k].histogram;
    atomicAdd(bins + norm_bin(norms[thread]), 1);
  }
  for (int k = thread / 32; k < to.classes; k += kNormWarps) {
    const NormSet tile = reduce_sets(rows, [&](int i) -> BlockSet {
      if (kinds[i] != k) return {0, 0, 0, 0, 0, 0};
      const bool is_finite = is_finite_norm(norms[i]);
      return {static_cast<double>(norms[i]), 0, norms[i], norms[i], is_finite, !is_finite};
    });
    BlockSet* set = to.sets_KG + static_cast<int64_t>(k) * gridDim.x + blockIdx.x;
    if (thread % 32 == 0) *set = narrowed(is_first ? tile : merge_sets(widened(*set), tile));
  }
}

// Behind the block's last tile. The block that finds all others done merges their sets into the statistics.
PLUMBLINE_DEVICE void finish_statistics(const NormClasses& to, const int32_t* histogram) {
  __shared__ int32_t before;
  __syncthreads();
  if (histogram)
    for (int i = threadIdx.x; i < to.classes * kNormBins; i += kNormThreads)
      if (histogram[i] != 0) atomicAdd(&to.statistics_K[i / kNormBins].histogram[i % kNormBins], histogram[i]);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) before = atomicAdd(to.finished, 1);
  __syncthreads();
  if (before + 1 != static_cast<int32_t>(gridDim.x)) return;
  __threadfence();
  if (threadIdx.x == 0) *to.finished = 0;
  for (int k = threadIdx.x / 32; k < to.classes; k += kNormWarps) {
    const BlockSet* sets = to.sets_KG + static_cast<int64_t>(k) * gridDim.x;
    NormStatistics& out = to.statistics_K[k];
    const bool is_first_lane = threadIdx.x % 32 == 0;  // alone in touching the statistics: shuffles order no memory
    NormSet old{};                                     // on its way while the sets are
    if (is_first_lane) old = {out.mean, out.m2, out.min, out.max, out.count, out.not_finite};
    const NormSet added = reduce_sets(static_cast<int>(gridDim.x), [&](int i) { return sets[i]; });
    if (!is_first_lane) continue;
    const NormSet all = merge_sets(old, added);
    out.mean = all.mean, out.m2 = all.m2, out.min = all.min, out.max = all.max, out.count = all.count, out.not_finite = all.not_finite;
  }
}

}  // namespace plumbline
