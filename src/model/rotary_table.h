#pragma once
// Cosine and sine tables of the rotary embeddings, computed in double on the host and rounded once. [T, d/2] each.
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

namespace plumbline {

// M-RoPE (2409.12191, section 2.1): frequency pair j turns with position row 0 (time), 1 (height) or 2 (width) according to
// `sections`, which sum to head_dim / 2. positions [3, T].
inline void text_rotary_table(const int32_t* positions_3T, int64_t T, const std::array<int32_t, 3>& sections, int64_t head_dim, double theta,
                              float* cos_Th, float* sin_Th) {
  const int64_t half = head_dim / 2;
  std::vector<double> frequency(static_cast<size_t>(half));
  std::vector<int32_t> row(static_cast<size_t>(half));
  for (int64_t j = 0; j < half; ++j) {
    frequency[static_cast<size_t>(j)] = std::pow(theta, -2.0 * static_cast<double>(j) / static_cast<double>(head_dim));
    row[static_cast<size_t>(j)] = j < sections[0] ? 0 : j < sections[0] + sections[1] ? 1 : 2;
  }
  int32_t last = -1;
  for (int64_t i = 0; i < 3 * T; ++i) last = positions_3T[i] > last ? positions_3T[i] : last;
  // A batch of many short sequences shares few positions: each angle is computed once, then copied.
  const bool is_shared = last < T;
  std::vector<float> cos_of, sin_of;
  for (int64_t p = 0; is_shared && p <= last; ++p)
    for (int64_t j = 0; j < half; ++j) {
      const double angle = static_cast<double>(p) * frequency[static_cast<size_t>(j)];
      cos_of.push_back(static_cast<float>(std::cos(angle)));
      sin_of.push_back(static_cast<float>(std::sin(angle)));
    }
  for (int64_t t = 0; t < T; ++t)
    for (int64_t j = 0; j < half; ++j) {
      const int64_t position = positions_3T[row[static_cast<size_t>(j)] * T + t], entry = position * half + j;
      const double angle = static_cast<double>(position) * frequency[static_cast<size_t>(j)];
      cos_Th[t * half + j] = is_shared ? cos_of[static_cast<size_t>(entry)] : static_cast<float>(std::cos(angle));
      sin_Th[t * half + j] = is_shared ? sin_of[static_cast<size_t>(entry)] : static_cast<float>(std::sin(angle));
    }
}

// Vision tower: the first head_dim/4 pairs turn with the patch's row, the rest with its column (base 1e4). Patches of one picture
// [frames, height, width] come in merge x merge blocks, row-major, as patch_rows orders them.
inline void vision_rotary_table(int64_t frames, int64_t height, int64_t width, int64_t merge, int64_t head_dim, float* cos_Th, float* sin_Th) {
  const int64_t quarter = head_dim / 4, half = 2 * quarter;
  std::vector<double> frequency(static_cast<size_t>(quarter));
  for (int64_t j = 0; j < quarter; ++j) frequency[static_cast<size_t>(j)] = std::pow(10000.0, -static_cast<double>(j) / static_cast<double>(quarter));
  const int64_t extent = height > width ? height : width;
  std::vector<float> cos_of(static_cast<size_t>(extent * quarter)), sin_of(static_cast<size_t>(extent * quarter));
  for (int64_t place = 0; place < extent; ++place)
    for (int64_t j = 0; j < quarter; ++j) {
      const double angle = static_cast<double>(place) * frequency[static_cast<size_t>(j)];
      cos_of[static_cast<size_t>(place * quarter + j)] = static_cast<float>(std::cos(angle));
      sin_of[static_cast<size_t>(place * quarter + j)] = static_cast<float>(std::sin(angle));
    }
  int64_t t = 0;
  for (int64_t frame = 0; frame < frames; ++frame)
    for (int64_t top = 0; top < height; top += merge)
      for (int64_t left = 0; left < width; left += merge)
        for (int64_t patch = 0; patch < merge * merge; ++patch, ++t) {
          const int64_t y = top + patch / merge, x = left + patch % merge;
          for (int64_t j = 0; j < quarter; ++j) {
            cos_Th[t * half + j] = cos_of[static_cast<size_t>(y * quarter + j)];
            sin_Th[t * half + j] = sin_of[static_cast<size_t>(y * quarter + j)];
            cos_Th[t * half + quarter + j] = cos_of[static_cast<size_t>(x * quarter + j)];
            sin_Th[t * half + quarter + j] = sin_of[static_cast<size_t>(x * quarter + j)];
          }
        }
}

}  // namespace plumbline
