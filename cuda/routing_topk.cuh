#pragma once
// Rule topk of route_tokens: the alpha best of each sequence.   by (score descending, index ascending)
//   in   scores (T), cu (B + 1), cu_routed (B + 1): counts are min(alpha, length), which the host knows
//        out  rows (cu_routed[B]), ascending; order, the same best first, or null; gates (T) or null
//   how  one block per sequence: the alpha-th best score by radix selection, eight bits at a time, then one pass that keeps what is
//        above it and the first of those that equal it. NaN is the lowest score, -0 equals 0. order: bitonic sort of distinct keys.
//        Integers only: the same result on every run
//   cost block 256, grid B, 10 KB shared; a sequence is read five times, from L2 after the first: not bound by memory but by the latency
//        of one block, some microseconds per 4,096 candidates
//   limits: room for keys of cu_routed[B] behind `keys` where alpha > kSortedShared and order is asked for
#include "route_gates.cuh"

namespace plumbline {
namespace {  // part of routing.cu

constexpr int kDigits = 256;
constexpr int kSortedShared = 1024;  // keys that are sorted in shared memory

struct BestRoute {
  const float* scores;
  const int32_t* cu;
  const int32_t* cu_routed;
  int32_t* rows;
  int32_t* order;
  uint64_t* keys;
  RouteGate gate;
  float* gates;
  bool is_aligned;
};

struct Selection {
  uint32_t order;  // of the worst score that is routed
  int32_t equal;   // so many of those that have it are
};

// Eight digits belong to a lane of the warp that adds them up: they lie in one bank, which is that lane's.
PLUMBLINE_DEVICE uint32_t place_of(uint32_t digit) { return digit % 8 * 32 + digit / 8; }

// Of digits counted in `count`, highest first: the one in which the `wanted`-th lies, and how many are wanted of it. By one warp.
PLUMBLINE_DEVICE void find_digit(const int32_t* count, int32_t wanted, int32_t* digit, int32_t* rest) {
  const int lane = threadIdx.x % 32, highest = kDigits - 1 - lane * 8;
  int own = 0;
  for (int j = 0; j < 8; ++j) own += count[place_of(highest - j)];
  int sum = own;
  for (unsigned by = 1; by < 32; by *= 2) {
    const int other = __shfl_up_sync(kFullMask, sum, by);
    if (lane >= static_cast<int>(by)) sum += other;
  }
  int before = sum - own;
  if (before >= wanted || sum < wanted) return;
  int at = highest;
  for (; before + count[place_of(at)] < wanted; --at) before += count[place_of(at)];
  *digit = at;
  *rest = wanted - before;
}

PLUMBLINE_DEVICE Selection select_best(const float* scores, int64_t first, int64_t end, int32_t wanted, bool is_aligned) {
  __shared__ int32_t count[kDigits];
  __shared__ int32_t digit, rest;
  uint32_t found = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < kDigits; i += kRouteThreads) count[i] = 0;
    __syncthreads();
    for (int64_t origin = first & ~int64_t{3}; origin < end; origin += kRouteTile)
      each_four(scores, origin, first, end, is_aligned, [&](int, int64_t, const Four& four) {
        for (int j = 0; j < 4; ++j) {
          const uint32_t order = route_order(four.score[j]);
          const bool counts = ((four.valid >> j) & 1u) && (shift == 24 || order >> (shift + 8) == found);
          if (counts) atomicAdd(&count[place_of((order >> shift) & 255u)], 1);
        }
      });
    __syncthreads();
    if (threadIdx.x < 32) find_digit(count, wanted, &digit, &rest);
    __syncthreads();
    found = found << 8 | static_cast<uint32_t>(digit);
    wanted = rest;
    __syncthreads();
  }
  return {found, wanted};
}

// Descending, in place, by the block: every comparison points the same way, so that n need not be a power of two.
PLUMBLINE_DEVICE void sort_descending(uint64_t* keys, int64_t n) {
  for (int level = 0; (int64_t{1} << level) < n; ++level)
    for (int bit = level; bit >= 0; --bit) {
      const int64_t distance = int64_t{1} << bit, pairs = ((n - 1) >> (level + 1) << level) + (int64_t{1} << level);
      for (int64_t pair = threadIdx.x; pair < pairs; pair += kRouteThreads) {
        const int64_t within = pair & (distance - 1), a = (pair >> bit << (bit + 1)) + within;
        const int64_t b = bit == level ? a + 2 * (distance - within) - 1 : a + distance;  // mirrored, then straight
        if (b >= n) continue;
        const uint64_t front = keys[a], back = keys[b];
        if (front < back) keys[a] = back, keys[b] = front;
      }
      __syncthreads();
    }
}

__global__ void __launch_bounds__(kRouteThreads) route_topk_kernel(BestRoute r) {
  __shared__ TileBits above, equal;
  __shared__ uint64_t sorted[kSortedShared];
  __shared__ float room[kRouteThreads / 32];
  const int64_t first = r.cu[blockIdx.x], end = r.cu[blockIdx.x + 1], start = r.cu_routed[blockIdx.x];
  const int32_t wanted = static_cast<int32_t>(r.cu_routed[blockIdx.x + 1] - start);
  if (r.gates) gates_of_sequence(r.gate, r.scores + first, end - first, r.gates + first, room);
  if (wanted == 0) return;
  const Selection selection = wanted < end - first ? select_best(r.scores, first, end, wanted, r.is_aligned) : Selection{0, wanted};
  uint64_t* keys = r.order == nullptr ? nullptr : wanted <= kSortedShared ? sorted : r.keys + start;
  int32_t routed = 0, taken = 0;  // so far: in all, and of those that equal the worst
  for (int64_t origin = first & ~int64_t{3}; origin < end; origin += kRouteTile) {
    each_four(r.scores, origin, first, end, r.is_aligned, [&](int load, int64_t, const Four& four) {
      unsigned is_above = 0, is_equal = 0;
      #pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t order = route_order(four.score[j]);
        is_above |= (order > selection.order ? 1u : 0u) << j;
        is_equal |= (order == selection.order ? 1u : 0u) << j;
      }
      put_bits(above.word, load, is_above & four.valid);
      put_bits(equal.word, load, is_equal & four.valid);
    });
    __syncthreads();
    if (threadIdx.x < 32) count_bits(equal);
    __syncthreads();
    for (int w = threadIdx.x; w < kRouteWords; w += kRouteThreads) {  // the first `equal` of the sequence join those above
      uint32_t word = equal.word[w];
      for (int32_t surplus = taken + equal.before[w] + __popc(word) - selection.equal; surplus > 0 && word; --surplus) word &= ~(1u << (31 - __clz(static_cast<int>(word))));
      above.word[w] |= word;
    }
    __syncthreads();
    if (threadIdx.x < 32) count_bits(above);
    __syncthreads();
    each_bit(above, [&](int32_t rank, int place) {
      const int64_t row = origin + place;
      r.rows[start + routed + rank] = static_cast<int32_t>(row);
      if (keys) keys[routed + rank] = static_cast<uint64_t>(route_order(r.scores[row])) << 32 | (0xffffffffu - static_cast<uint32_t>(row));
    });
    routed += above.total;
    taken += equal.total;
    __syncthreads();
  }
  if (!keys) return;
  sort_descending(keys, wanted);
  for (int32_t i = threadIdx.x; i < wanted; i += kRouteThreads) r.order[start + i] = static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(keys[i]));
}

}  // namespace
}  // namespace plumbline
