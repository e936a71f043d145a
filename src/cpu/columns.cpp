// scale_columns: to[t, c] (+)= scale from[t, c] for a block of columns;   dropout: y[i] (+)= kept(key, i) x[i] / (1 - rate)
//   in   from, x, f32; rows of any stride           out  to, y, f32
//   how  elementwise: the same bits for any split. Which elements are dropped depends on key and index alone
//   cost each element read once and written once, bound by memory; dropout adds two 64-bit mixes for two elements
#include "../core/mix.h"
#include "cpu_backend.h"
#include "tiles.h"

namespace plumbline {

void CpuBackend::scale_columns(const float* from, int64_t from_stride, float scale, float* to, int64_t to_stride, int64_t T, int64_t C, bool accumulate) {
  const Tiles tiles = tile_rows(T, C);
  parallel(tiles.count, [&](int64_t tile, int32_t) {
    for (int64_t t = tiles.begin(tile); t < tiles.end(tile); ++t) {
      const float* x = from + t * from_stride;
      float* y = to + t * to_stride;
      if (accumulate)
        for (int64_t c = 0; c < C; ++c) y[c] += scale * x[c];
      else
        for (int64_t c = 0; c < C; ++c) y[c] = scale * x[c];
    }
  });
}

void CpuBackend::dropout(const float* x, float rate, uint64_t key, float* y, int64_t size, bool accumulate) {
  const uint64_t mixed = mix(key);
  const uint32_t limit = dropout_limit(rate);
  const float scale = 1.0f / (1.0f - rate);
  const Tiles tiles = tile_elements(size);
  parallel(tiles.count, [&](int64_t tile, int32_t) {
    for (int64_t i = tiles.begin(tile); i < tiles.end(tile); ++i) {
      const float value = is_kept(mixed, i, limit) ? scale * x[i] : 0.0f;
      y[i] = accumulate ? y[i] + value : value;
    }
  });
}

}  // namespace plumbline
