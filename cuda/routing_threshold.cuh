#pragma once
// Threshold rule of route_tokens: stable compaction of all sequences in one pass.   rows = { i : score_i > theta }, ascending
//                                                     (decoupled look-back: Merrill and Garland, NVR-2016-002)
//   in   scores (T), theta (1), cu (B + 1)        out  rows (T, the rest -1), cu_routed (B + 1); gates (T) or null
//   how  a tile of 4,096 candidates becomes 128 words; the tile publishes its count, then adds up those of the tiles before it, from
//        the nearest back to the first that knows its whole sum. Tiles are numbered in the order in which blocks start, so that whoever
//        is waited for runs. NaN passes no threshold. Integers only: the same result on every run
//   cost block 256, grid tiles (softmax gates: and one block per sequence), 1.3 KB shared; 4 bytes read per candidate, 4 written, 4 more
//        per gate: bound by memory. One tile (T <= 4,096) needs neither counter nor look-back
//   limits: state zeroed by the launcher; T < 2^31
#include "route_gates.cuh"

namespace plumbline {
namespace {  // part of routing.cu

struct ThresholdRoute {
  const float* scores;
  const float* threshold;
  const int32_t* cu;
  int32_t B;
  int64_t T, tiles;
  uint64_t* state;    // [tiles + 1], zero: the last word numbers the tiles. Null when there is one tile
  int32_t* rows;
  int32_t* cu_routed;
  RouteGate gate;
  float* gates;
  bool is_aligned;    // scores and gates to 16 bytes
};

constexpr uint64_t kHasCount = uint64_t{1} << 32, kHasSum = uint64_t{2} << 32;  // of a tile's state; the number is in the lower half

// By one warp: publishes the count of a tile and returns the sum of those before.
PLUMBLINE_DEVICE int32_t look_back(uint64_t* state, int64_t tile, int32_t own) {
  const int lane = threadIdx.x % 32;
  if (tile > 0 && lane == 0) store_relaxed(state + tile, kHasCount | static_cast<uint32_t>(own));
  int32_t sum = 0;
  for (int64_t nearest = tile - 1; nearest >= 0; nearest -= 32) {
    const int64_t other = nearest - lane;
    uint64_t word = kHasSum;  // before the first tile there is nothing
    do {
      if (other >= 0) word = load_relaxed(state + other);
    } while (__any_sync(kFullMask, (word >> 32) == 0));
    const unsigned known = __ballot_sync(kFullMask, (word & kHasSum) != 0);
    const int last = known ? __ffs(static_cast<int>(known)) - 1 : 31;
    sum += warp_sum(lane <= last ? static_cast<int32_t>(static_cast<uint32_t>(word)) : 0);
    if (known) break;
  }
  if (lane == 0) store_relaxed(state + tile, kHasSum | static_cast<uint32_t>(sum + own));
  return sum;
}

// First b with cu[b] > position, B + 1 if none.
PLUMBLINE_DEVICE int32_t first_beyond(const int32_t* cu, int32_t B, int64_t position) {
  int64_t low = 0, high = static_cast<int64_t>(B) + 1;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (cu[middle] > position) high = middle;
    else low = middle + 1;
  }
  return static_cast<int32_t>(low);
}

__global__ void __launch_bounds__(kRouteThreads) route_threshold_kernel(ThresholdRoute r) {
  __shared__ TileBits bits;
  __shared__ int64_t shared_tile;
  __shared__ int32_t shared_before;
  __shared__ float room[kRouteThreads / 32];
  if (blockIdx.x >= r.tiles) {  // these blocks do the softmax of a sequence
    const int64_t first = r.cu[blockIdx.x - r.tiles], end = r.cu[blockIdx.x - r.tiles + 1];
    return softmax_gates(r.scores + first, end - first, r.gates + first, room);
  }
  if (threadIdx.x == 0) shared_tile = r.state ? static_cast<int64_t>(atomicAdd(reinterpret_cast<unsigned long long*>(r.state + r.tiles), 1ull)) : 0;
  __syncthreads();
  const int64_t tile = shared_tile, origin = tile * kRouteTile;
  const float threshold = *r.threshold;
  const bool with_gates = r.gates && r.gate != RouteGate::softmax_sequence;
  each_four(r.scores, origin, 0, r.T, r.is_aligned, [&](int load, int64_t i, const Four& four) {
    unsigned above = 0;
    #pragma unroll
    for (int j = 0; j < 4; ++j) above |= (four.score[j] > threshold ? four.valid : 0u) & (1u << j);
    put_bits(bits.word, load, above);
    if (!with_gates) return;
    float gate[4];
    #pragma unroll
    for (int j = 0; j < 4; ++j) gate[j] = plain_gate(r.gate, four.score[j]);
    if (r.is_aligned && four.valid == 15u) {
      *reinterpret_cast<float4*>(r.gates + i) = make_float4(gate[0], gate[1], gate[2], gate[3]);
    } else {
      #pragma unroll
      for (int j = 0; j < 4; ++j)
        if ((four.valid >> j) & 1u) r.gates[i + j] = gate[j];
    }
  });
  // Sequences that start in (origin, origin + tile]; the first tile also has those that start at 0.
  const int32_t first = tile == 0 ? 0 : first_beyond(r.cu, r.B, origin), last = first_beyond(r.cu, r.B, origin + kRouteTile);
  __syncthreads();
  if (threadIdx.x < 32) {
    count_bits(bits);
    __syncwarp();
    const int32_t before = r.state ? look_back(r.state, tile, bits.total) : 0;
    if (threadIdx.x == 0) shared_before = before;
  }
  __syncthreads();
  int32_t* rows = r.rows + shared_before;
  each_bit(bits, [&](int32_t rank, int place) { rows[rank] = static_cast<int32_t>(origin + place); });
  // Every place of rows is written, from the end those that stay empty: the host fetches them all.
  const int64_t empty = (r.T - origin < kRouteTile ? r.T - origin : kRouteTile) - bits.total;
  int32_t* rest = r.rows + (r.T - 1 - (origin - shared_before));
  for (int64_t i = threadIdx.x; i < empty; i += kRouteThreads) rest[-i] = -1;
  for (int64_t b = first + static_cast<int64_t>(threadIdx.x); b < last; b += kRouteThreads)
    r.cu_routed[b] = shared_before + rank_of(bits, static_cast<int>(r.cu[b] - origin));
}

}  // namespace
}  // namespace plumbline
