#include "vision_layout.h"

#include <algorithm>
#include <string>

#include "../core/error.h"
#include "rotary_table.h"

namespace plumbline {
namespace {

struct Grid { int64_t frames, height, width; };  // temporal patches, patches

Grid grid_of(const VisionSpec& vision, const int32_t* size) {
  return {(size[0] + vision.temporal - 1) / vision.temporal, size[1] / vision.patch, size[2] / vision.patch};
}

// Windows row-major inside a frame, their merged units row-major inside a window; those at the right and lower edge are smaller
// (transformers' get_window_index pads them and drops the padding again).
void append_windows(const VisionSpec& vision, const Grid& grid, VisionLayout* layout) {
  const int64_t height = grid.height / vision.merge, width = grid.width / vision.merge;
  int64_t first = static_cast<int64_t>(layout->unit_order.size());
  for (int64_t frame = 0; frame < grid.frames; ++frame, first += height * width)
    for (int64_t top = 0; top < height; top += vision.window)
      for (int64_t left = 0; left < width; left += vision.window) {
        const int64_t bottom = std::min(top + vision.window, height), right = std::min(left + vision.window, width);
        for (int64_t y = top; y < bottom; ++y)
          for (int64_t x = left; x < right; ++x) layout->unit_order.push_back(static_cast<int32_t>(first + y * width + x));
        layout->windows.add((bottom - top) * (right - left) * vision.unit());
      }
}

// Rows of whole units in the order of the layout.
std::vector<float> reordered(const std::vector<float>& rows, const std::vector<int32_t>& unit_order) {
  if (unit_order.empty()) return rows;
  const size_t unit = rows.size() / unit_order.size();
  std::vector<float> out(rows.size());
  for (size_t i = 0; i < unit_order.size(); ++i) std::copy_n(rows.begin() + static_cast<int64_t>(unit * static_cast<size_t>(unit_order[i])), unit, out.begin() + static_cast<int64_t>(unit * i));
  return out;
}

}  // namespace

VisionLayout vision_layout(const VisionSpec& vision, const std::vector<int32_t>& sizes) {
  VisionLayout layout;
  const int64_t side = int64_t{vision.patch} * vision.merge;
  for (size_t i = 0; i + 2 < sizes.size(); i += 3) {
    const int64_t count = sizes[i], height = sizes[i + 1], width = sizes[i + 2];
    require(count > 0 && height > 0 && width > 0 && height % side == 0 && width % side == 0, "ERR_SHAPE",
            "[encode] Expected picture sizes to be positive multiples of " + std::to_string(side) + " but received " + std::to_string(height) + " x " +
                std::to_string(width) + " with " + std::to_string(count) + " frames");
    const Grid grid = grid_of(vision, &sizes[i]);
    for (int64_t frame = 0; frame < grid.frames; ++frame) layout.frames.add(grid.height * grid.width);
    if (vision.is_qwen2_5()) append_windows(vision, grid, &layout);
  }
  layout.n = layout.frames.cu.back();
  return layout;
}

void vision_rotary(const VisionSpec& vision, const std::vector<int32_t>& sizes, const VisionLayout& layout, std::vector<float>* cos, std::vector<float>* sin) {
  const int64_t head_dim = vision.width / vision.heads, half = head_dim / 2;
  cos->resize(static_cast<size_t>(layout.n * half)), sin->resize(cos->size());
  int64_t row = 0;
  for (size_t i = 0; i + 2 < sizes.size(); i += 3) {
    const Grid grid = grid_of(vision, &sizes[i]);
    vision_rotary_table(grid.frames, grid.height, grid.width, vision.merge, head_dim, cos->data() + row * half, sin->data() + row * half);
    row += grid.frames * grid.height * grid.width;
  }
  *cos = reordered(*cos, layout.unit_order), *sin = reordered(*sin, layout.unit_order);
}

}  // namespace plumbline
