#pragma once
// The best candidates of one sequence by a block: order (score descending, index ascending, NaN last), as ScoreHeap of the CPU.
// A candidate's key holds its score's order above its index, so that no two are alike. Up to kSmall keys: each finds its place by counting
// the greater ones. More: digits of 8 bits from the top find the lowest key wanted, the keys above it are packed and sorted.
#include "../src/core/backend.h"
#include "reduce.cuh"

namespace plumbline {

using SortKey = unsigned long long;

// Ascends with the score; NaN is the lowest, -0 equals 0.
PLUMBLINE_DEVICE unsigned score_order(float score) {
  if (score != score) return 0;
  const unsigned bits = __float_as_uint(score + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
PLUMBLINE_DEVICE int key_index(SortKey key) { return static_cast<int>(0xffffffffu - static_cast<unsigned>(key)); }
PLUMBLINE_DEVICE unsigned key_order(SortKey key) { return static_cast<unsigned>(key >> 32); }

struct Candidates {
  const float* saliency;
  const uint8_t* used;
  int count;
  bool reselect_used;
  SortKey* kept;  // room for all keys, or null
  PLUMBLINE_DEVICE SortKey key(int i) const {  // 0: not in the running
    if (used[i] && !reselect_used) return 0;
    const unsigned order = score_order(used[i] ? -__uint_as_float(0x7f800000u) : saliency[i]);
    return static_cast<SortKey>(order) << 32 | (0xffffffffu - static_cast<unsigned>(i));
  }
};

template <int kThreads_, int kSmall_>
struct Selection {
  static constexpr int kThreads = kThreads_, kSmall = kSmall_, kBins = 256;
  SortKey few[kSmall];
  int bins[kBins];
  int digit, above, size, packed;
  SortKey maxima[kThreads / 32];

  // sorted = the first `count` of few[0 .. n), n <= kSmall, greatest first. Begins and ends with a barrier.
  PLUMBLINE_DEVICE void sort_few(int n, int count, SortKey* sorted) {
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += kThreads) {
      const SortKey own = few[i];
      int place = 0;
#pragma unroll 8
      for (int j = 0; j < n; ++j) place += few[j] > own;
      if (own != 0 && place < count) sorted[place] = own;
    }
    __syncthreads();
  }

  // keys[0 .. count), greatest first; room up to the next power of two. Begins and ends with a barrier.
  PLUMBLINE_DEVICE void sort_many(int count, SortKey* keys) {
    int room = 1;
    while (room < count) room *= 2;
    for (int i = count + threadIdx.x; i < room; i += kThreads) keys[i] = 0;
    __syncthreads();
    for (int run = 2; run <= room; run *= 2)
      for (int step = run / 2; step > 0; step /= 2) {
        for (int pair = threadIdx.x; pair < room / 2; pair += kThreads) {
          const int i = pair / step * step * 2 + pair % step, j = i + step;
          const SortKey a = keys[i], b = keys[j];
          if ((a < b) == ((i & run) == 0)) keys[i] = b, keys[j] = a;
        }
        __syncthreads();
      }
  }

  PLUMBLINE_DEVICE void sort(int count, SortKey* sorted) {  // of `few` or in place
    if (count <= kSmall) sort_few(count, count, sorted);
    else sort_many(count, sorted);
  }

  // Finds the digit at `shift` of the wanted-th greatest key among those counted in bins; the first warp.
  PLUMBLINE_DEVICE void find_digit(int wanted) {
    constexpr int kEach = kBins / 32;
    const int top = kBins - 1 - threadIdx.x * kEach;
    int own = 0;
    for (int j = 0; j < kEach; ++j) own += bins[top - j];
    int before = own;
    for (unsigned by = 1; by < 32; by *= 2) {
      const int left = __shfl_up_sync(kFullMask, before, by);
      if (threadIdx.x >= by) before += left;
    }
    before -= own;
    if (before >= wanted || before + own < wanted) return;
    int bin = top;
    while (before + bins[bin] < wanted) before += bins[bin--];
    digit = bin, above = before, size = bins[bin];
  }

  // The `count` best of many candidates, in `to`, in any order.
  PLUMBLINE_DEVICE void pack_best(const Candidates& candidates, int count, SortKey* to) {
    SortKey prefix = 0, mask = 0;
    int wanted = count;
    SortKey* const kept = candidates.kept;
    const auto key_of = [&](int i) { return kept ? kept[i] : candidates.key(i); };
    if (kept)  // each thread reads back what it wrote
      for (int i = threadIdx.x; i < candidates.count; i += kThreads) kept[i] = candidates.key(i);
    for (int shift = 56; shift >= 0; shift -= 8) {
      for (int i = threadIdx.x; i < kBins; i += kThreads) bins[i] = 0;
      if (threadIdx.x == 0) packed = 0;
      __syncthreads();
      for (int i = threadIdx.x; i < candidates.count; i += kThreads) {
        const SortKey key = key_of(i);
        if ((key & mask) == prefix) atomicAdd(&bins[key >> shift & 255], 1);
      }
      __syncthreads();
      if (threadIdx.x < 32) find_digit(wanted);
      __syncthreads();
      prefix |= static_cast<SortKey>(digit) << shift;
      mask |= SortKey{255} << shift;
      wanted -= above;
      if (size == wanted) break;  // the whole bin is wanted
    }
    for (int i = threadIdx.x; i < candidates.count; i += kThreads) {
      const SortKey key = key_of(i);
      if ((key & mask) < prefix) continue;
      const int at = atomicAdd(&packed, 1);
      if (at < count) to[at] = key;
    }
  }

  PLUMBLINE_DEVICE void choose(const Candidates& candidates, int count, SortKey* sorted) {
    if (candidates.count <= kSmall) {
      for (int i = threadIdx.x; i < candidates.count; i += kThreads) few[i] = candidates.key(i);
      return sort_few(candidates.count, count, sorted);
    }
    pack_best(candidates, count, count <= kSmall ? few : sorted);
    sort(count, sorted);
  }

  // (official) Ascending by index, those of the lowest score at the end.
  PLUMBLINE_DEVICE void order_by_index(int count, SortKey* sorted) {
    const unsigned lowest = key_order(sorted[count - 1]);
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const SortKey key = sorted[i];
      (count <= kSmall ? few : sorted)[i] = static_cast<SortKey>(key_order(key) > lowest) << 63 | static_cast<unsigned>(key);
    }
    sort(count, sorted);
  }
};

}  // namespace plumbline
