#pragma once
// What a session does beside the backbone: visual replay and depth routing, as plain switches (algorithms, sections 3, 4 and 9).
#include <cstdint>
#include <vector>

#include "../core/backend.h"

namespace plumbline {

struct ReplaySpec {
  bool enabled = false;
  ReplayRule rule{};
  bool saliency_gradient = true;   // the weights carry gradient into the attention
  bool token_sr = true;            // the loss term exists
  bool sr_unweighted = false;      // b is the mean of the tokens before they are weighted
  bool sr_added = true;            // F(b) is added to the replayed tokens
  bool target_gradient = false;    // gradient flows into u
  bool official_crop = false;      // cut from the resized picture, with float products, truncated to 8 bits

  bool uses_token_sr() const { return enabled && (token_sr || sr_added); }
};

struct RoutingSpec {
  std::vector<int64_t> layers;     // ascending; empty: no routing
  RouteRule rule = RouteRule::threshold;
  bool mlp_router = false;
  int32_t alpha = 0;
  int32_t max_depth = 2;           // passes of a layer at most, the ordinary one included
  RouteGate gate = RouteGate::sigmoid;
  Fusion fusion = Fusion::interpolate;
  bool misordered = false;         // official: outputs in position order are written back in score order

  // Rows later in the sequence change what happens to earlier ones: only a whole sequence can be run.
  bool looks_ahead() const { return !layers.empty() && (rule == RouteRule::topk || gate == RouteGate::softmax_sequence); }
};

// Which rows of a pass take one extra pass of one layer, instead of those that the rule picks.
struct ForcedRoute {
  int32_t layer;
  int32_t depth;                   // from 2
  std::vector<int32_t> rows;       // packed rows, ascending; those that are no candidates (not in the pass before) are left out
};

}  // namespace plumbline
