// route_tokens: which tokens take another pass through a layer, in one launch for the whole ragged batch.
//        threshold: s > theta; prefix_topk: fewer than alpha of the earlier tokens of the sequence have a score >= s; topk: the alpha best
//                                                                     (arXiv 2604.10500, RDS; algorithms 4.2)
//   in   scores (T) on the device, cu (B + 1)        out  rows, cu_routed, order, best scores so far: host; gates (T): device
//   how  a kernel per rule (routing_threshold.cuh, routing_topk.cuh, routing_prefix.cuh). The same indices as the CPU's
//   cost one upload, one launch (the threshold's second tile needs a memset before it) and one download, which waits for the device
//   limits: T < 2^31. Results lie side by side in the workspace: [cu_routed or numbers][rows][order][best scores]
#include <algorithm>
#include <cstring>

#include "cuda_backend.h"
#include "routing_prefix.cuh"
#include "routing_threshold.cuh"
#include "routing_topk.cuh"

namespace plumbline {
namespace {

// Parts of the workspace, one behind the other. Between parts of 4-byte elements there are no gaps: results leave as they lie.
class Layout {
 public:
  template <typename T>
  size_t add(int64_t count) {
    const size_t offset = (bytes_ + sizeof(T) - 1) / sizeof(T) * sizeof(T);
    bytes_ = offset + static_cast<size_t>(count) * sizeof(T);
    return offset;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

template <typename T>
T* part(void* base, size_t offset) { return reinterpret_cast<T*>(static_cast<char*>(base) + offset); }

struct Request {
  const RouteTokens& route;
  const float* scores;
  int32_t* rows;
  int32_t* cu_routed;
  int32_t* order;
  RouteGate gate;
  float* gates;
  int64_t T() const { return route.cu_B1[route.B]; }
};

void route_threshold(CudaBackend& backend, const Request& q) {
  const int64_t B = q.route.B, T = q.T(), tiles = blocks_of(T, kRouteTile);
  const bool with_softmax = q.gates && q.gate == RouteGate::softmax_sequence;
  CudaBackend::Upload up(backend, "route_tokens");
  const auto cu = up.add(q.route.cu_B1, B + 1);
  up.send();
  Layout layout;
  const size_t cu_routed = layout.add<int32_t>(B + 1), rows = layout.add<int32_t>(T), result_bytes = layout.bytes();
  const size_t state = layout.add<uint64_t>(tiles + 1);
  void* work = backend.scratch(layout.bytes());
  uint64_t* states = tiles > 1 ? part<uint64_t>(work, state) : nullptr;
  if (states) backend.check(cudaMemsetAsync(states, 0, static_cast<size_t>(tiles + 1) * sizeof(uint64_t), backend.stream()), "route_tokens");
  const ThresholdRoute r = {q.scores, q.route.threshold, up[cu], q.route.B, T, tiles, states, part<int32_t>(work, rows), part<int32_t>(work, cu_routed), q.gate,
                            q.gates, is_aligned_16(q.scores) && (!q.gates || is_aligned_16(q.gates))};
  const unsigned grid = static_cast<unsigned>(tiles + (with_softmax ? B : 0));
  backend.check(launch(route_threshold_kernel, dim3(grid), dim3(kRouteThreads), 0, backend.stream(), r), "route_tokens");
  std::vector<char> host(result_bytes);
  backend.download(host.data(), work, result_bytes);
  std::memcpy(q.cu_routed, host.data() + cu_routed, static_cast<size_t>(B + 1) * sizeof(int32_t));
  std::memcpy(q.rows, host.data() + rows, static_cast<size_t>(q.cu_routed[B]) * sizeof(int32_t));
}

void route_topk(CudaBackend& backend, const Request& q) {
  const int64_t B = q.route.B;
  q.cu_routed[0] = 0;
  int32_t longest = 0;
  for (int64_t b = 0; b < B; ++b) {
    const int32_t count = std::max(0, std::min(q.route.alpha, q.route.cu_B1[b + 1] - q.route.cu_B1[b]));
    q.cu_routed[b + 1] = q.cu_routed[b] + count;
    longest = std::max(longest, count);
  }
  const int64_t n = q.cu_routed[B];
  CudaBackend::Upload up(backend, "route_tokens");
  const auto cu = up.add(q.route.cu_B1, B + 1), cu_routed = up.add(q.cu_routed, B + 1);
  up.send();
  Layout layout;
  const size_t rows = layout.add<int32_t>(n), order = layout.add<int32_t>(q.order ? n : 0), result_bytes = layout.bytes();
  const size_t keys = layout.add<uint64_t>(q.order && longest > kSortedShared ? n : 0);
  void* work = backend.scratch(layout.bytes());
  const BestRoute r = {q.scores, up[cu], up[cu_routed], part<int32_t>(work, rows), q.order ? part<int32_t>(work, order) : nullptr, part<uint64_t>(work, keys), q.gate,
                       q.gates, is_aligned_16(q.scores)};
  backend.check(launch(route_topk_kernel, dim3(static_cast<unsigned>(B)), dim3(kRouteThreads), 0, backend.stream(), r), "route_tokens");
  if (n == 0) return;
  const size_t row_bytes = static_cast<size_t>(n) * sizeof(int32_t);
  if (!q.order) return backend.download(q.rows, work, row_bytes);
  std::vector<char> host(result_bytes);
  backend.download(host.data(), work, result_bytes);
  std::memcpy(q.rows, host.data() + rows, row_bytes);
  std::memcpy(q.order, host.data() + order, row_bytes);
}

// The best scores of all sequences that have candidates, packed: places for as many as there can be afterwards.
struct PackedBest {
  std::vector<int64_t> at;
  std::vector<float> seen;
  explicit PackedBest(const RouteTokens& route) : at(static_cast<size_t>(route.B) + 1, 0) {
    for (int64_t b = 0; b < route.B; ++b) {
      const int64_t n = route.cu_B1[b + 1] - route.cu_B1[b];
      at[static_cast<size_t>(b) + 1] = at[static_cast<size_t>(b)] + (n > 0 ? std::min<int64_t>(route.alpha, route.best_count_B[b] + n) : 0);
    }
    seen.resize(static_cast<size_t>(at.back()));
    for (int64_t b = 0; b < route.B; ++b)
      if (size(b) > 0) std::copy_n(route.best_B[b], route.best_count_B[b], seen.begin() + at[static_cast<size_t>(b)]);
  }
  int64_t size(int64_t b) const { return at[static_cast<size_t>(b) + 1] - at[static_cast<size_t>(b)]; }
};

void route_prefix(CudaBackend& backend, const Request& q) {
  const RouteTokens& route = q.route;
  const int64_t B = route.B, T = q.T();
  const PackedBest best(route);
  const int64_t listed = best.at.back();
  CudaBackend::Upload up(backend, "route_tokens");
  const auto cu = up.add(route.cu_B1, B + 1), seen_count = up.add(route.best_count_B, B);
  const auto list_at = up.add(best.at.data(), B + 1);
  const auto seen = up.add(best.seen.data(), listed);
  up.send();
  Layout layout;
  const size_t count = layout.add<int32_t>(B), rows = layout.add<int32_t>(T), list = layout.add<float>(listed), result_bytes = layout.bytes();
  const size_t spare = layout.add<float>(listed);
  void* work = backend.scratch(layout.bytes());
  const PrefixRoute r = {q.scores, up[cu], route.alpha, up[seen], up[seen_count], up[list_at], part<float>(work, list), part<float>(work, spare), part<int32_t>(work, rows),
                         part<int32_t>(work, count), q.gate, q.gates, is_aligned_16(q.scores)};
  backend.check(launch(route_prefix_kernel, dim3(static_cast<unsigned>(B)), dim3(kRouteThreads), 0, backend.stream(), r), "route_tokens");
  std::vector<char> host(result_bytes);
  backend.download(host.data(), work, result_bytes);
  const int32_t *counts = part<int32_t>(host.data(), count), *found = part<int32_t>(host.data(), rows);
  const float* lists = part<float>(host.data(), list);
  q.cu_routed[0] = 0;
  for (int64_t b = 0; b < B; ++b) {
    std::copy_n(found + route.cu_B1[b], counts[b], q.rows + q.cu_routed[b]);
    q.cu_routed[b + 1] = q.cu_routed[b] + counts[b];
    const int64_t size = best.size(b);
    if (size == 0) continue;
    std::copy_n(lists + best.at[static_cast<size_t>(b)], size, route.best_B[b]);
    route.best_count_B[b] = static_cast<int32_t>(size);
  }
}

}  // namespace

void CudaBackend::route_tokens(const RouteTokens& route, const float* scores_T, int32_t* rows, int32_t* cu_routed_B1, int32_t* order, RouteGate gate, float* gates_T) {
  poll();
  const Request request = {route, scores_T, rows, cu_routed_B1, route.rule == RouteRule::topk ? order : nullptr, gate, gates_T};
  const bool none = request.T() == 0 || (route.rule != RouteRule::threshold && route.alpha <= 0);
  if (none) {
    std::fill_n(cu_routed_B1, static_cast<int64_t>(route.B) + 1, 0);
    if (gates_T) route_gates(gate, route.B, route.cu_B1, scores_T, gates_T);
    return;
  }
  switch (route.rule) {
    case RouteRule::threshold: return route_threshold(*this, request);
    case RouteRule::topk: return route_topk(*this, request);
    case RouteRule::prefix_topk: return route_prefix(*this, request);
  }
}

}  // namespace plumbline
