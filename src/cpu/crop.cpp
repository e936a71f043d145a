// crop_patches: a box of a picture at the tower's size, as normalised patch rows.
//        bilinear of the cut box (no pixel outside it takes part), then patch_rows of one frame       (algorithms 3.5)
//   in   uint8 [height, width, 3], box        out  f32 rows [gh * gw, 3 * temporal * patch * patch]; uint8 pixels [to_height, to_width, 3]
//   how  resize's bits (Pillow); truncated: PyTorch's interpolate(bilinear, align_corners = false) of crop / 255 in f32, times 255,
//        truncated, with the products and fused multiply-adds of PyTorch 2.13 on one AVX2 thread (the same bits for 30 random crops);
//        with more threads it takes another order, and single units differ. A crop without a value above 1 is not divided (the released code's guess that it already lies in [0, 1])
//   cost that of resize and patch_rows, and a copy of the box
//   limits: 0 <= x1 < x2 <= width, the same for y; to_height and to_width multiples of patch * merge
#include <cmath>
#include <cstring>
#include <vector>

#include "../core/crop_axis.h"
#include "workspace.h"
#include "cpu_backend.h"
#include "tiles.h"

namespace plumbline {
namespace {

// A sum of weights may pass 1 by a rounding: 255.00002 still truncates to 255.
void truncated_row(const uint8_t* top, const uint8_t* bottom, const Neighbours& y, const std::vector<Neighbours>& across, const std::vector<float>& value,
                   uint8_t* to) {
  for (const Neighbours& x : across)
    for (int c = 0; c < 3; ++c) {
      const float a = value[top[x.low * 3 + c]], b = value[top[x.high * 3 + c]], d = value[bottom[x.low * 3 + c]], e = value[bottom[x.high * 3 + c]];
      const float above = std::fma(a, y.low_weight * x.low_weight, b * (y.low_weight * x.high_weight));
      const float sum = std::fma(e, y.high_weight * x.high_weight, std::fma(d, y.high_weight * x.low_weight, above));
      *to++ = static_cast<uint8_t>(sum * 255.0f);
    }
}

}  // namespace

void CpuBackend::crop_patches(const CropPatches& crop, float* rows, uint8_t* pixels) {
  const int32_t high = crop.y2 - crop.y1, wide = crop.x2 - crop.x1;
  const size_t row_bytes = static_cast<size_t>(wide) * 3, out_row = static_cast<size_t>(crop.to_width) * 3;
  const Workspace cut(*this, static_cast<size_t>(high) * row_bytes), own(*this, pixels ? 0 : static_cast<size_t>(crop.to_height) * out_row);
  uint8_t* box = cut.as<uint8_t>();
  uint8_t* out = pixels ? pixels : own.as<uint8_t>();
  for (int32_t y = 0; y < high; ++y)
    std::memcpy(box + y * row_bytes, crop.image + (int64_t{crop.y1 + y} * crop.width + crop.x1) * 3, row_bytes);
  if (crop.truncated) {
    const std::vector<float> value = crop_values(box, high * row_bytes);
    const std::vector<Neighbours> across = crop_axis(wide, crop.to_width), down = crop_axis(high, crop.to_height);
    const Tiles tiles = tile_rows(crop.to_height, static_cast<int64_t>(out_row));
    parallel(tiles.count, [&](int64_t tile, int32_t) {
      for (int64_t y = tiles.begin(tile); y < tiles.end(tile); ++y)
        truncated_row(box + down[y].low * row_bytes, box + down[y].high * row_bytes, down[y], across, value, out + y * out_row);
    });
  } else {
    resize(box, high, wide, 3, out, crop.to_height, crop.to_width, Filter::bilinear);
  }
  patch_rows(out, 1, crop.to_height, crop.to_width, crop.patch, crop.merge, crop.temporal, crop.mean_3, crop.std_3, rows);
}

}  // namespace plumbline
