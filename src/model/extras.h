#pragma once
// Parameters beside the backbone have the names and shapes that the caller of Model gave them: what uses one checks it first.
#include <string>
#include <vector>

#include "../core/error.h"
#include "parameters.h"

namespace plumbline {

inline void expect_extra(const Parameters& parameters, const char* op, const std::string& name, const std::vector<int64_t>& shape) {
  const auto text = [](const std::vector<int64_t>& extents) {
    std::string list = "[";
    for (size_t i = 0; i < extents.size(); ++i) list += (i ? ", " : "") + std::to_string(extents[i]);
    return list + "]";
  };
  const std::string expected = std::string("[") + op + "] Expected a model with parameter '" + name + "' of shape " + text(shape) + " but received ";
  require(parameters.has(name), "ERR_ARGUMENT", expected + "one without");
  require(parameters.find(name).shape == shape, "ERR_SHAPE", expected + text(parameters.find(name).shape));
}

}  // namespace plumbline
