#pragma once
// Routing depth scaling (algorithms, section 4): after a routed layer's ordinary pass its router scores each row, a rule picks those
// that take another pass through the same layer, and their output is fused back. The rows of an extra pass are compacted in position
// order over the whole ragged batch; they attend to the routed rows of their sequence, whose keys and values have a cache of their own.
#include <cstdint>
#include <utility>
#include <vector>

#include "cache_set.h"
#include "decoder.h"

namespace plumbline {

// One extra pass of one layer. With recomputation only the choice is kept, not the buffers.
struct RoutedTape {
  int32_t depth = 2;                    // number of the pass; the ordinary one is 1
  std::vector<int32_t> candidates;      // packed rows of the pass that were scored, ascending
  std::vector<int32_t> cu_candidates;   // [B+1]
  std::vector<int32_t> at;              // [n] the routed ones, as places among the candidates, ascending
  std::vector<int32_t> rows;            // [n] the same as packed rows
  std::vector<int32_t> target_at, target_rows;  // where the outputs go: at and rows, but for the official misorder
  PassRows routed;
  Buffer before;                        // [candidates, D] h before the fusion (training)
  Buffer hidden;                        // [candidates, D/4] of the MLP router, after its ReLU
  Buffer scores, gates;                 // [candidates]
  LayerTape layer;
  Buffer y;                             // [n, D] the layer's output
};

class Router {
 public:
  Router(Model& model, Pool& pool, Decoder& decoder, CacheSet& caches, const RoutingSpec& spec);

  bool is_routed(int64_t layer) const { return place(layer) >= 0; }
  // Extra passes over x [T, D], the output of the layer's ordinary pass, in place. Candidates, choices, scores and gates are kept in
  // `passes`; keep: with all that backward needs. A tape that already holds choices (recomputation) is filled again.
  void forward(int64_t layer, const PassRows& rows, Buffer& x, bool keep, std::vector<RoutedTape>& passes);
  // dx: gradient of the fused output, becomes that of the ordinary pass's output. penalty: added to each score's gradient, times the score.
  void backward(int64_t layer, const std::vector<RoutedTape>& passes, float penalty, Buffer& dx);
  // The rows of a pass now belong to their sequences.
  void commit(int64_t layer, const PassRows& rows, const std::vector<RoutedTape>& passes);
  // Starts a pass: forgets what one that was not committed had seen. forced: checked ones of the pass.
  void start(std::vector<ForcedRoute> forced) { seen_.clear(), forced_ = std::move(forced); }
  // Throws unless they are of routed layers and name rising rows of a pass of `count` rows.
  void check(const std::vector<ForcedRoute>& forced, int64_t count) const;

 private:
  int64_t place(int64_t layer) const;
  void score(int64_t layer, RoutedTape& tape, const float* h);
  void choose(int64_t layer, const PassRows& rows, RoutedTape& tape);
  const ForcedRoute* forced_route(int64_t layer, int32_t depth) const;
  void prepare(int64_t layer, const PassRows& rows, RoutedTape& tape);
  void run(int64_t layer, const PassRows& rows, Buffer& x, bool keep, RoutedTape& tape);
  void backward_scores(int64_t layer, const RoutedTape& tape, const float* dscores, Buffer& dx);
  const float* threshold(int64_t layer) const;
  const float* step(int32_t depth) const;
  float* step_gradient(int32_t depth);

  Model& model_;
  Pool& pool_;
  Decoder& decoder_;
  CacheSet& caches_;
  const RoutingSpec& spec_;
  // Best scores with those of the pass at hand, per routed layer and depth in the order of the passes: they count once it is done.
  struct Seen {
    int64_t layer;
    int32_t depth;
    std::vector<PrefixBest> best;  // [B]
  };
  std::vector<Seen> seen_;
  std::vector<ForcedRoute> forced_;  // of the pass at hand
};

}  // namespace plumbline
