#pragma once
// All that a sequence leaves behind for its later rows: keys and values of the ordinary passes, and per routed layer and extra pass
// keys and values of its own and, for rule prefix-topk, the best scores so far. One id names a sequence in all of them.
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "key_value_cache.h"
#include "reasoning_spec.h"
#include "spec.h"

namespace plumbline {

struct PrefixBest {             // the alpha best scores of a sequence so far, best first
  std::vector<float> values;    // [alpha]
  int32_t count = 0;
};

// One extra pass of one routed layer.
struct RouteCache {
  RouteCache(Backend& backend, const TextSpec& text, bool with_gradients) : keys_values(backend, 1, text.kv_heads, text.head_dim, with_gradients) {}
  KeyValueCache keys_values;
  std::unordered_map<int32_t, PrefixBest> best;
};

class CacheSet {
 public:
  CacheSet(Backend& backend, const TextSpec& text, const RoutingSpec& routing, bool with_gradients)
      : keys_values(backend, text.layers, text.kv_heads, text.head_dim, with_gradients), depths_(routing.max_depth - 1) {
    for (size_t i = 0; i < routing.layers.size() * static_cast<size_t>(depths_); ++i)
      routes_.push_back(std::make_unique<RouteCache>(backend, text, with_gradients));
  }

  // place: index of the layer among the routed ones; depth from 2.
  RouteCache& route(size_t place, int32_t depth) { return *routes_[place * static_cast<size_t>(depths_) + static_cast<size_t>(depth - 2)]; }

  int32_t add() {
    for (auto& route : routes_) route->keys_values.add(next_sequence_);
    keys_values.add(next_sequence_);
    return next_sequence_++;
  }
  int32_t fork(int32_t sequence) {
    const int32_t copy = next_sequence_++;
    keys_values.fork(sequence, copy);
    for (auto& route : routes_) {
      route->keys_values.fork(sequence, copy);
      const auto best = route->best.find(sequence);
      if (best != route->best.end()) route->best.emplace(copy, PrefixBest(best->second));
    }
    return copy;
  }
  void free(int32_t sequence) {
    keys_values.free(sequence);
    for (auto& route : routes_) route->keys_values.free(sequence), route->best.erase(sequence);
  }
  void clear() {
    keys_values.clear();
    for (auto& route : routes_) route->keys_values.clear(), route->best.clear();
  }
  void zero_gradients() {
    keys_values.zero_gradients();
    for (auto& route : routes_) route->keys_values.zero_gradients();
  }
  size_t bytes() const {
    size_t sum = keys_values.bytes();
    for (const auto& route : routes_) sum += route->keys_values.bytes();
    return sum;
  }

  KeyValueCache keys_values;  // of the ordinary passes, all layers

 private:
  int32_t depths_;
  int32_t next_sequence_ = 0;
  std::vector<std::unique_ptr<RouteCache>> routes_;
};

}  // namespace plumbline
