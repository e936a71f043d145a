// scatter_to_pages, gather_from_pages: rows of packed keys and values into and out of the pages of their sequences.
//   in/out  row i of sequence b <-> key row first_row[b] + i, per kv head d contiguous floats, f32
//   how     plain copies, every row on its own; bound by memory
//   limits: checked by the caller: the pages hold rows first_row[b] .. first_row[b] + rows of b
#include <cstring>

#include "cpu_backend.h"
#include "tiles.h"

namespace plumbline {
namespace {

// body(packed row, its page, offset of kv head 0 in the page) for the packed rows [begin, end).
template <typename Body>
void for_rows(const AttentionShape& shape, const int32_t* first_row_B, const KeyValuePages& pages, int64_t begin, int64_t end,
              const Body& body) {
  const int32_t* cu = shape.cu_q_B1;
  int64_t b = std::upper_bound(cu, cu + shape.B + 1, begin) - cu - 1;
  for (int64_t t = begin; t < end; ++t) {
    while (t >= cu[b + 1]) ++b;
    const int64_t row = first_row_B[b] + (t - cu[b]);
    body(t, pages.page_start_B1[b] + row / pages.page_rows, row % pages.page_rows * pages.row_stride);
  }
}

}  // namespace

void CpuBackend::scatter_to_pages(const AttentionShape& shape, const int32_t* first_row_B, const float* k_rows, const float* v_rows,
                                  int64_t src_row_stride, const KeyValuePages& pages) {
  const int64_t base = shape.cu_q_B1[0], d = shape.d;
  const Tiles tiles = tile_rows(shape.cu_q_B1[shape.B] - base, 2 * shape.Hkv * d);
  parallel(tiles.count, [&](int64_t tile, int32_t) {
    for_rows(shape, first_row_B, pages, base + tiles.begin(tile), base + tiles.end(tile), [&](int64_t t, int64_t page, int64_t offset) {
      for (int64_t h = 0; h < shape.Hkv; ++h) {
        std::memcpy(pages.k[page] + offset + h * pages.head_stride, k_rows + t * src_row_stride + h * d, d * sizeof(float));
        std::memcpy(pages.v[page] + offset + h * pages.head_stride, v_rows + t * src_row_stride + h * d, d * sizeof(float));
      }
    });
  });
}

void CpuBackend::gather_from_pages(const AttentionShape& shape, const int32_t* first_row_B, float* k_rows, float* v_rows,
                                   int64_t row_stride, const KeyValuePages& pages) {
  const int64_t base = shape.cu_q_B1[0], d = shape.d;
  const Tiles tiles = tile_rows(shape.cu_q_B1[shape.B] - base, 2 * shape.Hkv * d);
  parallel(tiles.count, [&](int64_t tile, int32_t) {
    for_rows(shape, first_row_B, pages, base + tiles.begin(tile), base + tiles.end(tile), [&](int64_t t, int64_t page, int64_t offset) {
      for (int64_t h = 0; h < shape.Hkv; ++h) {
        std::memcpy(k_rows + t * row_stride + h * d, pages.k[page] + offset + h * pages.head_stride, d * sizeof(float));
        std::memcpy(v_rows + t * row_stride + h * d, pages.v[page] + offset + h * pages.head_stride, d * sizeof(float));
      }
    });
  });
}

}  // namespace plumbline
