#include <algorithm>
#include <cmath>
#include <string>

#include "extras.h"
#include "model.h"

namespace plumbline {
namespace {

// Linear interpolation between the two nearest ranks, the scores in any order.
float quantile(std::vector<float>& scores, double share) {
  const double place = share * static_cast<double>(scores.size() - 1);
  const size_t below = static_cast<size_t>(place);
  std::nth_element(scores.begin(), scores.begin() + static_cast<std::ptrdiff_t>(below), scores.end());
  const double low = scores[below];
  if (below + 1 == scores.size()) return static_cast<float>(low);
  const double high = *std::min_element(scores.begin() + static_cast<std::ptrdiff_t>(below) + 1, scores.end());
  return static_cast<float>(low + (place - static_cast<double>(below)) * (high - low));
}

}  // namespace

ThresholdUpdate update_thresholds(Model& model, double rate, double fraction) {
  ThresholdUpdate update;
  for (auto& [layer, scores] : model.router_scores) {
    const std::string name = "router." + std::to_string(layer) + ".threshold";
    scores.erase(std::remove_if(scores.begin(), scores.end(), [](float score) { return !std::isfinite(score); }), scores.end());
    if (scores.empty() || !model.parameters.has(name)) continue;
    expect_extra(model.parameters, "updateThresholds", name, {1});
    const Parameter& parameter = model.parameters.find(name);
    const float q = quantile(scores, 1.0 - fraction);
    float threshold;
    model.parameters.read(parameter, Slot::value, &threshold);
    threshold = threshold == kUnsetThreshold ? q : static_cast<float>(threshold + rate * (static_cast<double>(q) - threshold));
    model.parameters.write(parameter, Slot::value, &threshold);
    update.layers.push_back(static_cast<int32_t>(layer));
    update.thresholds.push_back(threshold);
  }
  model.router_scores.clear();
  return update;
}

}  // namespace plumbline
