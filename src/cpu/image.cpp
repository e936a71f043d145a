// resize: separable resampling of 8-bit images, the bits of Pillow's Image.resize.   patch_rows: normalised rows for the vision tower.
//   in   interleaved uint8 [height, width, channels]; frames [n, height, width, 3], sides multiples of patch * merge
//   out  uint8 [to_height, to_width, channels]; f32 rows [pairs * gh * gw, 3 * temporal * patch * patch]
//   how  weights in f64, then 22-bit fixed point; the filter widens when shrinking; horizontal pass first, 8-bit result between the
//        passes; a pass that keeps the size is left out. (x / 255 - mean) / std by a table of 256 per channel, built in f64
//   cost resize: taps per output sample, bound by arithmetic; patch_rows: bound by the write
#include <cmath>
#include <optional>

#include "../core/taps.h"
#include "workspace.h"
#include "cpu_backend.h"
#include "tiles.h"

#define PLUMBLINE_INL "image_inl.h"
#include "foreach_isa.h"

namespace plumbline {
namespace {

// Where output row `row` of patch_rows is taken from.
struct PatchGrid {
  int64_t gh, gw, patch, merge;
  struct Place {
    int64_t pair, y, x;
  };
  Place operator[](int64_t row) const {
    const int64_t in_block = merge * merge, across = gw / merge, blocks = (gh / merge) * across;
    const int64_t block = row / in_block % blocks, inside = row % in_block;
    return {row / in_block / blocks, (block / across * merge + inside / merge) * patch, (block % across * merge + inside % merge) * patch};
  }
};

}  // namespace

void CpuBackend::resize(const uint8_t* from, int32_t height, int32_t width, int32_t channels, uint8_t* to, int32_t to_height,
                        int32_t to_width, Filter filter) {
  const auto row_kernel = PLUMBLINE_PICK(isa_, resample_row);
  const auto blend_kernel = PLUMBLINE_PICK(isa_, blend_rows);
  const int64_t from_row = int64_t{width} * channels, to_row = int64_t{to_width} * channels;
  const bool tall = height != to_height;
  if (width == to_width && !tall) return copy(to, from, static_cast<size_t>(height * from_row));

  const uint8_t* wide = from;
  std::optional<Workspace> between;
  if (width != to_width) {
    if (tall) between.emplace(*this, static_cast<size_t>(height * to_row));
    uint8_t* out = tall ? between->as<uint8_t>() : to;
    const TapTable table(width, to_width, filter);
    const Tiles tiles = tile_rows(height, to_row * table.taps.stride / 8);
    parallel(tiles.count, [&](int64_t tile, int32_t) {
      for (int64_t y = tiles.begin(tile); y < tiles.end(tile); ++y)
        row_kernel(from + y * from_row, width, channels, table.taps, out + y * to_row);
    });
    wide = out;
  }
  if (!tall) return;
  const TapTable table(height, to_height, filter);
  const Taps& taps = table.taps;
  const Tiles tiles = tile_rows(to_height, to_row * taps.stride / 8);
  parallel(tiles.count, [&](int64_t tile, int32_t) {
    for (int64_t y = tiles.begin(tile); y < tiles.end(tile); ++y)
      blend_kernel(wide + taps.first[y] * to_row, to_row, taps.weight + y * taps.stride, taps.count[y], to + y * to_row);
  });
}

void CpuBackend::patch_rows(const uint8_t* frames, int32_t num_frames, int32_t height, int32_t width, int32_t patch, int32_t merge,
                            int32_t temporal, const float* mean_3, const float* std_3, float* rows) {
  float table[3][256];
  for (int c = 0; c < 3; ++c)
    for (int value = 0; value < 256; ++value) table[c][value] = static_cast<float>((value / 255.0 - mean_3[c]) / std_3[c]);

  const PatchGrid grid = {height / patch, width / patch, patch, merge};
  const int64_t plane = int64_t{patch} * patch, row_size = 3 * temporal * plane, pairs = (num_frames + temporal - 1) / temporal;
  const auto fill_plane = [&](const uint8_t* corner, int c, float* out) {
    for (int64_t y = 0; y < patch; ++y, corner += int64_t{width} * 3)
      for (int64_t x = 0; x < patch; ++x) *out++ = table[c][corner[x * 3 + c]];
  };
  const Tiles tiles = tile_rows(pairs * grid.gh * grid.gw, row_size);
  parallel(tiles.count, [&](int64_t tile, int32_t) {
    for (int64_t row = tiles.begin(tile); row < tiles.end(tile); ++row) {
      const PatchGrid::Place place = grid[row];
      float* out = rows + row * row_size;
      for (int c = 0; c < 3; ++c)
        for (int64_t t = 0; t < temporal; ++t, out += plane) {
          const int64_t wanted = place.pair * temporal + t, frame = std::min<int64_t>(wanted, num_frames - 1);
          if (t > 0 && wanted > frame)  // the repeated last frame: its plane was made just before
            std::memcpy(out, out - plane, static_cast<size_t>(plane) * sizeof(float));
          else
            fill_plane(frames + ((frame * height + place.y) * width + place.x) * 3, c, out);
        }
    }
  });
}

}  // namespace plumbline
