// scatter_to_pages, gather_from_pages and rotate_store: exact copies (rotary's values have their own test) between packed rows and pages.
#include "variants.h"

using plumbline::AttentionShape;
using plumbline::Backend;
using plumbline::KeyValuePages;

namespace {

struct Case {
  std::vector<int32_t> rows, first;  // of each sequence: rows of the pass, and the key row of the first
  int32_t H, Hkv, d, page_rows, gap;  // gap: floats between heads, rows and pages
};

struct Layout {
  AttentionShape shape = {};
  KeyValuePages pages = {};
  std::vector<int32_t> cu{0}, page_start{0};
  std::vector<float*> k, v;
  Guarded<float> k_memory, v_memory;
  static int64_t page_floats(const Case& c) { return (int64_t{c.page_rows} * c.Hkv) * (c.d + c.gap); }
  static int64_t page_count(const Case& c) {
    int64_t count = 0;
    for (size_t b = 0; b < c.rows.size(); ++b) count += (c.first[b] + c.rows[b] + c.page_rows - 1) / c.page_rows;
    return count;
  }
  explicit Layout(const Case& c)
      : k_memory(page_count(c) * page_floats(c), noise(page_count(c) * page_floats(c), 71)), v_memory(page_count(c) * page_floats(c), noise(page_count(c) * page_floats(c), 72)) {
    for (size_t b = 0; b < c.rows.size(); ++b) {
      cu.push_back(cu.back() + c.rows[b]);
      page_start.push_back(page_start.back() + (c.first[b] + c.rows[b] + c.page_rows - 1) / c.page_rows);
    }
    for (int64_t p = page_count(c) - 1; p >= 0; --p) k.push_back(k_memory.data() + p * page_floats(c)), v.push_back(v_memory.data() + p * page_floats(c));
    const int64_t row_stride = c.d + c.gap;
    pages = {k.data(), v.data(), page_start.data(), c.page_rows * row_stride, row_stride, c.page_rows};
    shape.B = static_cast<int32_t>(c.rows.size()), shape.cu_q_B1 = cu.data(), shape.H = c.H, shape.Hkv = c.Hkv, shape.d = c.d;
    shape.q_row_stride = int64_t{c.H + 2 * c.Hkv} * c.d + c.gap;
  }
  // body(packed row, kv head, offset of its d floats within page `page`, page, sequence)
  template <typename Body>
  void each(const Case& c, const Body& body) const {
    for (size_t b = 0; b < c.rows.size(); ++b)
      for (int32_t i = 0; i < c.rows[b]; ++i)
        for (int32_t h = 0; h < c.Hkv; ++h) {
          const int32_t row = c.first[b] + i, page = page_start[b] + row / c.page_rows;
          body(cu[b] + i, h, h * pages.head_stride + row % c.page_rows * pages.row_stride, page, b);
        }
  }
};

const std::vector<Case> kCases = {
    {{5, 0, 1, 33, 0}, {0, 7, 31, 3, 0}, 6, 2, 128, 16, 0},
    {{0, 0, 2, 0, 9}, {0, 1, 15, 0, 30}, 7, 1, 16, 8, 4},
    {{3, 17}, {0, 1}, 4, 4, 5, 3, 0},
    {{1}, {0}, 2, 2, 1, 1, 3},
    {{4, 4}, {2, 0}, 3, 3, 80, 64, 0},
    {{0, 0}, {3, 0}, 2, 1, 8, 4, 0},
    {{1, 1, 1, 1, 1, 1, 1, 1, 1}, {9, 0, 1, 2, 3, 4, 5, 6, 7}, 28, 4, 128, 4, 0},
};

void check_case(Backend& backend, const char* name, const Case& c, int number) {
  Layout layout(c);
  const AttentionShape& s = layout.shape;
  const int64_t T = layout.cu.back(), stride = s.q_row_stride, q_width = int64_t{c.H} * c.d, kv_width = int64_t{c.Hkv} * c.d, half = c.d / 2;
  const std::vector<float> qkv = noise(T * stride, 73), cosine = noise(T * half, 74), sine = noise(T * half, 75);

  Layout want(c);
  want.each(c, [&](int64_t t, int64_t h, int64_t offset, int32_t page, size_t) {
    for (int64_t i = 0; i < c.d; ++i) {
      want.k[static_cast<size_t>(page)][offset + i] = qkv[static_cast<size_t>(t * stride + q_width + h * c.d + i)];
      want.v[static_cast<size_t>(page)][offset + i] = qkv[static_cast<size_t>(t * stride + q_width + kv_width + h * c.d + i)];
    }
  });
  backend.scatter_to_pages(s, c.first.data(), qkv.data() + q_width, qkv.data() + q_width + kv_width, stride, layout.pages);
  CHECK(layout.k_memory == want.k_memory && layout.v_memory == want.v_memory, "%s scatter, case %d", name, number);

  Guarded<float> rows(T * stride), expected(T * stride);
  want.each(c, [&](int64_t t, int64_t h, int64_t offset, int32_t page, size_t) {
    for (int64_t i = 0; i < c.d; ++i) {
      expected.data()[t * stride + q_width + h * c.d + i] = want.k[static_cast<size_t>(page)][offset + i];
      expected.data()[t * stride + q_width + kv_width + h * c.d + i] = want.v[static_cast<size_t>(page)][offset + i];
    }
  });
  backend.gather_from_pages(s, c.first.data(), rows.data() + q_width, rows.data() + q_width + kv_width, stride, layout.pages);
  CHECK(rows == expected, "%s gather, case %d", name, number);

  // rotate_store is rotary and these copies: the same bits.
  Guarded<float> turned(T * stride, qkv), fused(T * stride, qkv), last(s.B * q_width), last_want(s.B * q_width);
  Layout fused_layout(c);
  backend.rotary(turned.data(), stride, c.H + c.Hkv, c.d, cosine.data(), sine.data(), T, false);
  backend.scatter_to_pages(s, c.first.data(), turned.data() + q_width, turned.data() + q_width + kv_width, stride, layout.pages);
  for (int32_t b = 0; b < s.B; ++b)
    for (int64_t i = 0; i < q_width && c.rows[static_cast<size_t>(b)] > 0; ++i) last_want.data()[b * q_width + i] = turned[(layout.cu[static_cast<size_t>(b) + 1] - 1) * stride + i];
  backend.rotate_store(s, fused.data(), cosine.data(), sine.data(), c.first.data(), fused_layout.pages, last.data());
  CHECK(fused == turned, "%s turned rows, case %d", name, number);
  CHECK(fused_layout.k_memory == layout.k_memory && fused_layout.v_memory == layout.v_memory, "%s stored rows, case %d", name, number);
  CHECK(last == last_want, "%s last queries, case %d", name, number);
  Guarded<float> without(T * stride, qkv);
  backend.rotate_store(s, without.data(), cosine.data(), sine.data(), c.first.data(), fused_layout.pages, nullptr);
  CHECK(without == turned, "%s without last queries, case %d", name, number);
}

}  // namespace

int main() {
  for_each_backend([](Backend& backend, const char* name) {
    int number = 0;
    for (const Case& c : kCases) check_case(backend, name, c, number++);
  });
  return finish_variants();
}
