// rotary: turns each pair (j, j + d/2) of each head by its row's angle, in place.   y_j = x_j cos - x_{j+d/2} sin
//         y_{j+d/2} = x_{j+d/2} cos + x_j sin                                        (arXiv 2104.09864, eq. 34)
//   in   x rows (strided), heads of d floats; cos, sin (T, d/2)       out  x; the middle element of an odd head stays as it is
//   how  f32, every pair on its own: the same bits for any number of threads. inverse turns back, which is the gradient
//   cost one read and one write of x; bound by memory
#include "cpu_backend.h"
#include "tiles.h"

#define PLUMBLINE_INL "rotary_inl.h"
#include "foreach_isa.h"

namespace plumbline {

void CpuBackend::rotary(float* x, int64_t row_stride, int32_t heads, int32_t d, const float* cos_Th, const float* sin_Th, int64_t T,
                        bool inverse) {
  const auto kernel = PLUMBLINE_PICK(isa_, rotary_rows);
  const Tiles tiles = tile_rows(T, static_cast<int64_t>(heads) * d);
  parallel(tiles.count, [&](int64_t tile, int32_t) {
    const int64_t t = tiles.begin(tile), half = d / 2;
    kernel(x + t * row_stride, row_stride, heads, d, cos_Th + t * half, sin_Th + t * half, tiles.end(tile) - t, inverse ? -1.0f : 1.0f);
  });
}

}  // namespace plumbline
