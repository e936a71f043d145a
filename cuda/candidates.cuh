#pragma once
// A tile of candidates as bits: what the three rules of route_tokens share. Bits are kept in the order of positions, so that ranks come
// from a population count and rows are written side by side.
#include "dtype.cuh"
#include "reduce.cuh"

namespace plumbline {

constexpr int kRouteThreads = 256;
constexpr int kRouteTile = 4096;               // candidates: 16 to a thread, four 16-byte loads
constexpr int kRouteWords = kRouteTile / 32;   // four to a lane of the warp that counts them
constexpr int kRouteLoads = kRouteTile / (4 * kRouteThreads);

struct alignas(16) TileBits {
  uint32_t word[kRouteWords];
  int32_t before[kRouteWords];                 // bits set in the words before
  int32_t total;
};

// Ascends with the score: NaN lowest, -0 equal to 0. The same order as the CPU's.
PLUMBLINE_DEVICE uint32_t route_order(float score) {
  if (score != score) return 0;
  const uint32_t bits = __float_as_uint(score + 0.0f);
  return (bits >> 31) ? ~bits : bits | 0x80000000u;
}

struct Four {
  float score[4];
  unsigned valid;  // bit j: candidate i + j is one of the range
};
// Candidates i .. i + 3 of [first, end); is_aligned: address of scores + i is a multiple of 16.
PLUMBLINE_DEVICE Four load_four(const float* scores, int64_t i, int64_t first, int64_t end, bool is_aligned) {
  Four four{{0.0f, 0.0f, 0.0f, 0.0f}, 0};
  if (is_aligned && i >= first && i + 4 <= end) {
    const float4 v = *reinterpret_cast<const float4*>(scores + i);
    return Four{{v.x, v.y, v.z, v.w}, 15u};
  }
  #pragma unroll
  for (int j = 0; j < 4; ++j)
    if (i + j >= first && i + j < end) four.score[j] = scores[i + j], four.valid |= 1u << j;
  return four;
}

// Calls each(load, i, four) for the thread's fours of the tile at `origin`, all loads first.
template <typename Each>
PLUMBLINE_DEVICE void each_four(const float* scores, int64_t origin, int64_t first, int64_t end, bool is_aligned, const Each& each) {
  const int64_t i = origin + static_cast<int64_t>(threadIdx.x / 32) * (kRouteLoads * 128) + threadIdx.x % 32 * 4;
  Four four[kRouteLoads];
  #pragma unroll
  for (int load = 0; load < kRouteLoads; ++load) four[load] = load_four(scores, i + load * 128, first, end, is_aligned);
  #pragma unroll
  for (int load = 0; load < kRouteLoads; ++load) each(load, i + load * 128, four[load]);
}

// Called by whole warps for each load: the lanes' four bits become words in the order of positions.
PLUMBLINE_DEVICE void put_bits(uint32_t* words, int load, unsigned bits) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t word = bits << (lane % 8 * 4);
  word |= __shfl_xor_sync(kFullMask, word, 1);
  word |= __shfl_xor_sync(kFullMask, word, 2);
  word |= __shfl_xor_sync(kFullMask, word, 4);
  if (lane % 8 == 0) words[(warp * kRouteLoads + load) * 4 + lane / 8] = word;
}

// By one warp, between barriers: fills `before` and `total`.
PLUMBLINE_DEVICE void count_bits(TileBits& bits) {
  const int lane = threadIdx.x % 32;
  const uint4 word = reinterpret_cast<const uint4*>(bits.word)[lane];
  const int a = __popc(word.x), b = a + __popc(word.y), c = b + __popc(word.z), own = c + __popc(word.w);
  int sum = own;
  #pragma unroll
  for (unsigned by = 1; by < 32; by *= 2) {
    const int other = __shfl_up_sync(kFullMask, sum, by);
    if (lane >= static_cast<int>(by)) sum += other;
  }
  const int start = sum - own;
  int4 before;
  before.x = start, before.y = start + a, before.z = start + b, before.w = start + c;
  reinterpret_cast<int4*>(bits.before)[lane] = before;
  if (lane == 31) bits.total = sum;
}

// Bits set before place `at` of the tile; at <= kRouteTile.
PLUMBLINE_DEVICE int32_t rank_of(const TileBits& bits, int at) {
  if (at == kRouteTile) return bits.total;
  return bits.before[at / 32] + __popc(bits.word[at / 32] & ((1u << (at % 32)) - 1u));
}

// Calls each(rank, place) for every bit of the tile; neighbours in rank are neighbours in the warp.
template <typename Each>
PLUMBLINE_DEVICE void each_bit(const TileBits& bits, const Each& each) {
  const unsigned lane = threadIdx.x % 32;
  for (int w = threadIdx.x / 32; w < kRouteWords; w += kRouteThreads / 32) {
    const uint32_t word = bits.word[w];
    const int32_t rank = bits.before[w] + __popc(word & ((1u << lane) - 1u));  // by all lanes: the warp stays together
    if ((word >> lane) & 1u) each(rank, w * 32 + static_cast<int>(lane));
    __syncwarp();
  }
}

}  // namespace plumbline
