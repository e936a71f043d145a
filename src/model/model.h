#pragma once
#include <limits>
#include <map>
#include <memory>
#include <vector>

#include "adapters.h"
#include "parameters.h"
#include "spec.h"

namespace plumbline {

// A model: its dimensions, its parameters, and the backend that computes it. Shared by its sessions.
struct Model {
  Model(std::shared_ptr<Backend> backend, const ModelSpec& spec) : backend(std::move(backend)), spec(spec), parameters(*this->backend, spec), adapters(*this->backend, parameters, spec.adapters) {}
  std::shared_ptr<Backend> backend;
  ModelSpec spec;
  Parameters parameters;
  Adapters adapters;
  std::map<int64_t, std::vector<float>> router_scores;  // of the optimiser step at hand, per routed layer: the first scoring of all rows
};

// A threshold that was never set: no score is above it.
constexpr float kUnsetThreshold = std::numeric_limits<float>::max();

struct ThresholdUpdate {
  std::vector<int32_t> layers;
  std::vector<float> thresholds;
};
// t += rate (q - t) per layer with collected scores, q their (1 - fraction) quantile by linear interpolation (algorithms, section 4).
ThresholdUpdate update_thresholds(Model& model, double rate, double fraction);

}  // namespace plumbline
