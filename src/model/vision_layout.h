#pragma once
// In which order the vision tower takes the patches of several pictures, and which of them attend to each other.
#include <cstdint>
#include <vector>

#include "memory.h"
#include "spec.h"

namespace plumbline {

struct Segments {              // runs of rows that attend to each other
  std::vector<int32_t> cu{0};  // [F+1]
  std::vector<int32_t> length; // [F]

  void add(int64_t rows) {
    length.push_back(static_cast<int32_t>(rows));
    cu.push_back(cu.back() + length.back());
  }
};

struct VisionLayout {
  int64_t n = 0;                    // patches in all
  Segments frames;
  // Qwen2.5-VL: the same rows as windows, and which merged unit of the pictures is at each place. Without windows both are empty and the
  // rows keep the order of the pictures.
  Segments windows;
  std::vector<int32_t> unit_order;  // [n / merge^2]
  Buffer cos, sin;                  // [n, d/2], filled in by Vision
};

// sizes [pictures, 3] = frames, height, width in pixels. Throws ERR_SHAPE when they are not positive multiples of patch * merge.
VisionLayout vision_layout(const VisionSpec& vision, const std::vector<int32_t>& sizes);

// 2-D rotary tables [n, d/2] on the host, rows in the order of the layout.
void vision_rotary(const VisionSpec& vision, const std::vector<int32_t>& sizes, const VisionLayout& layout, std::vector<float>* cos, std::vector<float>* sin);

}  // namespace plumbline
