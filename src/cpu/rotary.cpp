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


void CpuBackend::rotate_store(const AttentionShape& shape, float* qkv, const float* cos_Th, const float* sin_Th, const int32_t* first_row_B,
                              const KeyValuePages& pages, float* last_q_BHd) {
  const int64_t q_width = int64_t{shape.H} * shape.d, kv_width = int64_t{shape.Hkv} * shape.d;
  rotary(qkv, shape.q_row_stride, shape.H + shape.Hkv, shape.d, cos_Th, sin_Th, shape.cu_q_B1[shape.B], false);
  scatter_to_pages(shape, first_row_B, qkv + q_width, qkv + q_width + kv_width, shape.q_row_stride, pages);
  for (int32_t b = 0; last_q_BHd && b < shape.B; ++b)
    if (shape.cu_q_B1[b + 1] > shape.cu_q_B1[b]) copy(last_q_BHd + b * q_width, qkv + (shape.cu_q_B1[b + 1] - 1) * shape.q_row_stride, static_cast<size_t>(q_width) * sizeof(float));
}

}  // namespace plumbline
