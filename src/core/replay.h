#pragma once
// What the host knows of a replay step without waiting for the device.
#include <algorithm>
#include <cstdint>

#include "backend.h"

namespace plumbline {

// Tokens that a step selects of `tokens` candidates when `used` of them were replayed before.
inline int32_t replay_count(const ReplayRule& rule, int32_t tokens, int32_t used) {
  if (rule.reselect_used) return rule.patches < tokens ? rule.patches : std::max(tokens - 1, 0);
  return std::min(rule.patches, tokens - used);
}

}  // namespace plumbline
