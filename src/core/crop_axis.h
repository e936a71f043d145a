#pragma once
// The truncated crop's sampling of one axis: PyTorch's compute_source_index_and_lambda, in f32.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace plumbline {

// Two neighbours and their weights.
struct Neighbours {
  int32_t low, high;
  float low_weight, high_weight;
};

inline Neighbours neighbours(int32_t to, int32_t from_size, int32_t to_size) {
  if (from_size == to_size) return {to, to, 1.0f, 0.0f};
  const float scale = static_cast<float>(from_size) / static_cast<float>(to_size);
  const float at = std::max(std::fma(scale, static_cast<float>(to) + 0.5f, -0.5f), 0.0f);
  const int32_t low = std::min(static_cast<int32_t>(at), from_size - 1);
  const float high_weight = std::min(std::max(at - static_cast<float>(low), 0.0f), 1.0f);
  return {low, low + (low < from_size - 1 ? 1 : 0), 1.0f - high_weight, high_weight};
}

inline std::vector<Neighbours> crop_axis(int32_t from_size, int32_t to_size) {
  std::vector<Neighbours> all;
  for (int32_t to = 0; to < to_size; ++to) all.push_back(neighbours(to, from_size, to_size));
  return all;
}

// What a sample is taken for: [0, 1], unless no sample of the crop is above 1.
inline std::vector<float> crop_values(const uint8_t* box, size_t size) {
  const bool divided = *std::max_element(box, box + size) > 1;
  std::vector<float> value(256);
  for (int i = 0; i < 256; ++i) value[i] = divided ? static_cast<float>(i) / 255.0f : static_cast<float>(i);
  return value;
}

}  // namespace plumbline
