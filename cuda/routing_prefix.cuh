#pragma once
// Rule prefix_topk of route_tokens: token i is routed if fewer than alpha of the earlier tokens of its sequence have a score >= s_i.
//   in   scores (T), cu (B + 1); the best scores of earlier chunks, packed, best first, and their numbers (B)
//        out  rows, those of sequence b from cu[b] on, and their numbers (B); the best scores so far; gates (T) or null
//   how  one block per sequence. A tile of 4,096 is compared with the alpha-th best so far: what does not beat it is not routed and changes
//        nothing. The rest goes on in batches of 256, one to a thread: earlier scores >= s_i are those of the list (binary search) and
//        those of the batch before it (counted); the same counts say where each belongs in the list, which is merged into a second one.
//        NaN is the lowest score, -0 equals 0; the list keeps the bits of the scores. Comparisons only: the same result on every run
//   cost block 256, grid B, 26 KB shared; 4 bytes read per candidate. alpha (1 + ln (n / alpha)) candidates of n in random order reach
//        the batches, all of them where scores rise: 256^2 comparisons and the merge of alpha scores per batch, about 2 us
//   limits: lists of more than kListShared scores lie in global memory, spare: as much again
#include "route_gates.cuh"

namespace plumbline {
namespace {  // part of routing.cu

constexpr int kListShared = 2048;

struct PrefixRoute {
  const float* scores;
  const int32_t* cu;
  int32_t alpha;
  const float* seen;        // packed: sequence b from list_at[b] on, seen_count[b] of them
  const int32_t* seen_count;
  const int64_t* list_at;   // [B + 1]
  float* list;              // as `seen`, brought up to date
  float* spare;
  int32_t* rows;
  int32_t* count;
  RouteGate gate;
  float* gates;
  bool is_aligned;
};

// How many of the n scores, best first, are not worse than (is_strict: better than) `order`.
template <bool kIsStrict, typename T, typename Order>
PLUMBLINE_DEVICE int32_t count_better(const T* list, int32_t n, uint32_t order, const Order& order_of) {
  int32_t low = 0, high = n;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    const uint32_t other = order_of(list[middle]);
    if (kIsStrict ? other > order : other >= order) low = middle + 1;
    else high = middle;
  }
  return low;
}

struct Batch {                          // candidates that may be routed, in the order of positions
  alignas(16) uint32_t order[kRouteThreads];
  uint32_t sorted[kRouteThreads];       // best first
  int32_t routed[kRouteThreads / 32];   // per warp
};

// Scores of the batch that are not worse and come earlier; and all that rank before it.
struct Rank {
  int32_t earlier, all;
};
PLUMBLINE_DEVICE Rank rank_in(const Batch& batch, int size, int own, uint32_t order) {
  Rank rank{0, 0};
  for (int j = 0; j < size; j += 4) {   // beyond `size` the orders are 0 and come later: they count for nothing
    const uint4 v = *reinterpret_cast<const uint4*>(batch.order + j);
    const uint32_t other[4] = {v.x, v.y, v.z, v.w};
    #pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (j + k < own) rank.earlier += other[k] >= order;
      else rank.all += other[k] > order;
    }
  }
  rank.all += rank.earlier;
  return rank;
}

struct Lists {
  float *from, *to;
  int32_t kept;
};

// One batch: routed rows behind those that there are, the list brought up to date. Returns how many were routed.
PLUMBLINE_DEVICE int32_t route_batch(Batch& batch, Lists& lists, int32_t alpha, float score, int64_t row, int size, int32_t* rows) {
  const auto order_of = [](float s) { return route_order(s); };
  const auto same = [](uint32_t o) { return o; };
  const int own = threadIdx.x, lane = own % 32, warp = own / 32;
  const bool is_there = own < size;
  const uint32_t order = is_there ? route_order(score) : 0;
  batch.order[own] = order;
  __syncthreads();
  const Rank rank = is_there ? rank_in(batch, size, own, order) : Rank{0, 0};
  const int32_t above = is_there ? count_better<false>(lists.from, lists.kept, order, order_of) : alpha;
  const bool is_routed = above < alpha - rank.earlier;
  const unsigned routed = __ballot_sync(kFullMask, is_routed);
  if (lane == 0) batch.routed[warp] = __popc(routed);
  if (is_there) batch.sorted[rank.all] = order;
  if (is_there && above < alpha - rank.all) lists.to[above + rank.all] = score;
  __syncthreads();
  int32_t before = 0, total = 0;
  for (int w = 0; w < kRouteThreads / 32; ++w) {
    if (w == warp) before = total;
    total += batch.routed[w];
  }
  if (is_routed) rows[before + __popc(routed & ((1u << lane) - 1u))] = static_cast<int32_t>(row);
  for (int32_t i = own; i < lists.kept; i += kRouteThreads) {
    const float old = lists.from[i];
    const int32_t better = count_better<true>(batch.sorted, size, route_order(old), same);
    if (i < alpha - better) lists.to[i + better] = old;
  }
  float* const last = lists.from;
  lists.from = lists.to, lists.to = last;
  lists.kept = lists.kept < alpha - size ? lists.kept + size : alpha;
  __syncthreads();
  return total;
}

__global__ void __launch_bounds__(kRouteThreads) route_prefix_kernel(PrefixRoute r) {
  __shared__ TileBits bits;
  __shared__ Batch batch;
  __shared__ uint16_t place[kRouteTile];
  __shared__ float shared_list[2][kListShared];
  __shared__ float room[kRouteThreads / 32];
  const int64_t first = r.cu[blockIdx.x], end = r.cu[blockIdx.x + 1], at = r.list_at[blockIdx.x];
  if (r.gates) gates_of_sequence(r.gate, r.scores + first, end - first, r.gates + first, room);
  const int32_t size = static_cast<int32_t>(r.list_at[blockIdx.x + 1] - at);
  const bool is_shared = size <= kListShared;
  Lists lists{is_shared ? shared_list[0] : r.list + at, is_shared ? shared_list[1] : r.spare + at, first < end ? r.seen_count[blockIdx.x] : 0};
  for (int32_t i = threadIdx.x; i < lists.kept; i += kRouteThreads) lists.from[i] = r.seen[at + i];
  __syncthreads();
  int32_t routed = 0;
  for (int64_t origin = first & ~int64_t{3}; origin < end; origin += kRouteTile) {
    const bool is_full = lists.kept == r.alpha;
    const uint32_t worst = is_full ? route_order(lists.from[r.alpha - 1]) : 0;
    each_four(r.scores, origin, first, end, r.is_aligned, [&](int load, int64_t, const Four& four) {
      unsigned may = 0;
      #pragma unroll
      for (int j = 0; j < 4; ++j) may |= (!is_full || route_order(four.score[j]) > worst ? 1u : 0u) << j;
      put_bits(bits.word, load, may & four.valid);
    });
    __syncthreads();
    if (threadIdx.x < 32) count_bits(bits);
    __syncthreads();
    each_bit(bits, [&](int32_t rank, int where) { place[rank] = static_cast<uint16_t>(where); });
    const int32_t total = bits.total;
    __syncthreads();
    for (int32_t done = 0; done < total; done += kRouteThreads) {
      const int left = total - done, own = done + static_cast<int>(threadIdx.x);
      const int64_t row = origin + (own < total ? place[own] : 0);
      routed += route_batch(batch, lists, r.alpha, own < total ? r.scores[row] : 0.0f, row, left < kRouteThreads ? left : kRouteThreads, r.rows + first + routed);
    }
  }
  if (threadIdx.x == 0) r.count[blockIdx.x] = routed;
  for (int64_t i = first + routed + static_cast<int64_t>(threadIdx.x); i < end; i += kRouteThreads) r.rows[i] = -1;  // the host fetches all places
  if (lists.from == r.list + at) return;
  for (int32_t i = threadIdx.x; i < lists.kept; i += kRouteThreads) r.list[at + i] = lists.from[i];
}

}  // namespace
}  // namespace plumbline
