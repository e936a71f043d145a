// route_tokens, route_gates: which tokens take another pass through a layer, and how much of it they take in.
//        threshold: s > theta; prefix_topk: fewer than alpha of the earlier tokens of the sequence have a score >= s; topk: the alpha best
//        gates: sigmoid(s) | s | softmax of s over the sequence                                   (arXiv 2604.10500, RDS; algorithms 4.1, 4.2)
//   grad sigmoid: g (1 - g) dg; softmax: g (dg - sum_j g_j dg_j)
//   in   scores (T), cu (B + 1)        out  rows (capacity T), cu_routed (B + 1), order (capacity T, topk); gates (T)
//   how  one task per sequence, then its rows move to the front: the same bits for any number of threads. NaN is the lowest score (two
//        NaN are equal) and passes no threshold; ties go to the earlier token. prefix_topk keeps the alpha best scores so far, sorted:
//        cutting a sequence into chunks changes nothing
//   cost T compares; topk and prefix_topk log alpha, or alpha, more for each that enters the best
#include <cmath>

#include "score_heap.h"
#include "cpu_backend.h"
#include "tiles.h"

#define PLUMBLINE_INL "routing_inl.h"
#include "foreach_isa.h"

namespace plumbline {
namespace {

int32_t above_threshold(float threshold, const float* scores, int32_t first, int32_t end, int32_t* rows) {
  int32_t count = 0;
  for (int32_t i = first; i < end; ++i) {  // without a branch: `rows` has room for every candidate
    rows[count] = i;
    count += scores[i] > threshold;
  }
  return count;
}

bool is_better(float a, float b) { return a > b || (std::isnan(b) && !std::isnan(a)); }

int32_t best_so_far(int32_t alpha, const float* scores, int32_t first, int32_t end, float* best, int32_t& kept, int32_t* rows) {
  int32_t count = 0;
  if (alpha <= 0) return 0;
  for (int32_t i = first; i < end; ++i) {
    if (kept == alpha && !is_better(scores[i], best[alpha - 1])) continue;
    rows[count++] = i;
    if (kept < alpha) ++kept;
    int32_t place = kept - 1;
    for (; place > 0 && is_better(scores[i], best[place - 1]); --place) best[place] = best[place - 1];
    best[place] = scores[i];
  }
  return count;
}

int32_t best_of_all(int32_t alpha, const float* scores, int32_t first, int32_t end, int32_t* rows, int32_t* order) {
  const int32_t count = std::max(0, std::min(alpha, end - first));
  ScoreHeap best;
  best.start(count);
  for (int32_t i = first; i < end; ++i) best.offer(scores[i], i);
  if (order) best.sort();
  for (int32_t i = 0; i < count; ++i) rows[i] = best.index(i);
  if (order) std::copy_n(rows, count, order);
  std::sort(rows, rows + count);
  return count;
}

}  // namespace

void CpuBackend::route_tokens(const RouteTokens& route, const float* scores_T, int32_t* rows, int32_t* cu_routed_B1, int32_t* order,
                              RouteGate gate, float* gates_T) {
  if (gates_T) route_gates(gate, route.B, route.cu_B1, scores_T, gates_T);
  int32_t* own_order = route.rule == RouteRule::topk ? order : nullptr;
  parallel(route.B, [&](int64_t b, int32_t) {
    const int32_t first = route.cu_B1[b], end = route.cu_B1[b + 1];
    int32_t& count = cu_routed_B1[b + 1];
    switch (route.rule) {
      case RouteRule::threshold: count = above_threshold(*route.threshold, scores_T, first, end, rows + first); break;
      case RouteRule::prefix_topk:
        count = best_so_far(route.alpha, scores_T, first, end, route.best_B[b], route.best_count_B[b], rows + first);
        break;
      case RouteRule::topk: count = best_of_all(route.alpha, scores_T, first, end, rows + first, own_order ? own_order + first : nullptr);
    }
  });
  cu_routed_B1[0] = 0;
  for (int32_t b = 0; b < route.B; ++b) {  // towards the front, never over what is still to be moved
    const int32_t count = cu_routed_B1[b + 1], from = route.cu_B1[b], to = cu_routed_B1[b];
    std::memmove(rows + to, rows + from, static_cast<size_t>(count) * sizeof(int32_t));
    if (own_order) std::memmove(own_order + to, own_order + from, static_cast<size_t>(count) * sizeof(int32_t));
    cu_routed_B1[b + 1] = to + count;
  }
}

void CpuBackend::route_gates(RouteGate kind, int32_t B, const int32_t* cu_B1, const float* scores_T, float* gates_T) {
  const int64_t T = cu_B1[B];
  if (kind == RouteGate::raw) return copy(gates_T, scores_T, static_cast<size_t>(T) * sizeof(float));
  if (kind == RouteGate::sigmoid) {
    const Tiles tiles = tile_elements(T);
    return parallel(tiles.count, [&](int64_t tile, int32_t) {
      const int64_t i = tiles.begin(tile);
      PLUMBLINE_PICK(isa_, sigmoid_range)(scores_T + i, gates_T + i, tiles.end(tile) - i);
    });
  }
  parallel(B, [&](int64_t b, int32_t) {
    PLUMBLINE_PICK(isa_, softmax_range)(scores_T + cu_B1[b], gates_T + cu_B1[b], cu_B1[b + 1] - cu_B1[b]);
  });
}

void CpuBackend::route_gates_grad(RouteGate kind, int32_t B, const int32_t* cu_B1, const float* gates_T, const float* dgates_T,
                                  float* dscores_T) {
  const int64_t T = cu_B1[B];
  if (kind == RouteGate::raw) return copy(dscores_T, dgates_T, static_cast<size_t>(T) * sizeof(float));
  if (kind == RouteGate::sigmoid) {
    const Tiles tiles = tile_elements(T);
    return parallel(tiles.count, [&](int64_t tile, int32_t) {
      const int64_t i = tiles.begin(tile);
      PLUMBLINE_PICK(isa_, sigmoid_grad_range)(gates_T + i, dgates_T + i, dscores_T + i, tiles.end(tile) - i);
    });
  }
  parallel(B, [&](int64_t b, int32_t) {
    const int64_t i = cu_B1[b];
    PLUMBLINE_PICK(isa_, softmax_grad_range)(gates_T + i, dgates_T + i, dscores_T + i, cu_B1[b + 1] - i);
  });
}

}  // namespace plumbline
