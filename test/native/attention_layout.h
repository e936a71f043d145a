#pragma once
// A ragged attention problem in memory as the backend sees it: paged or strided keys and values, guards, sentinels.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../../src/cpu/cpu_backend.h"
#include "check.h"

namespace plumbline_test {

using namespace plumbline;

inline constexpr float kSentinel = -12345.5f;
inline const float kNaN = std::nanf("");

struct Problem {
  std::vector<int32_t> queries, keys;
  int32_t H, Hkv, d;
  bool causal;
  int32_t page_rows;         // 0: k and v are views of one q, k, v buffer, as in the vision tower
  bool exact_scores = false; // small integers: scores up to 1e4 and exact
};

struct Outputs {
  std::vector<float> out, lse, dq, dk, dv;
};

// A problem in memory as the backend sees it. Unused places hold NaN in inputs and a sentinel in outputs.
struct Layout {
  Problem p;
  bool strided = false;
  int64_t T = 0, page_floats, row_stride, head_stride, q_row_stride, pages = 0;
  std::vector<int32_t> cu{0}, page_start{0};
  std::vector<float> q, k_data, v_data, dout;
  AttentionShape shape;
  KeyValuePages view;
  std::vector<float*> k_pages, v_pages;

  explicit Layout(const Problem& problem, uint64_t seed) : p(problem) {
    for (int32_t n : p.queries) cu.push_back(cu.back() + n);
    T = cu.back();
    if (p.page_rows == 0) {
      p.page_rows = 1 + *std::max_element(p.keys.begin(), p.keys.end());
      strided = true;
    }
    for (int32_t keys : p.keys) page_start.push_back(page_start.back() + (keys + p.page_rows - 1) / p.page_rows);
    pages = page_start.back();
    q_row_stride = p.H * p.d + (strided ? 2 * p.Hkv * p.d : 3);
    row_stride = strided ? p.Hkv * p.d + 5 : p.d;
    head_stride = strided ? p.d : p.page_rows * p.d;
    page_floats = strided ? p.page_rows * row_stride : p.Hkv * head_stride + 7;
    fill(seed);
    const float scale = p.exact_scores ? 1.0f : 1.0f / std::sqrt(static_cast<float>(p.d));
    shape = {static_cast<int32_t>(p.queries.size()), cu.data(), p.keys.data(), p.H, p.Hkv, p.d, scale, p.causal, q_row_stride};
    k_pages = page_list(k_data);
    v_pages = page_list(v_data);
    view = {k_pages.data(), v_pages.data(), page_start.data(), head_stride, row_stride, p.page_rows};
  }
  Layout(const Layout&) = delete;

  // Pages lie in reverse order in memory, so that nothing can rely on neighbours.
  std::vector<float*> page_list(std::vector<float>& data) const {
    std::vector<float*> list;
    for (int64_t i = 0; i < pages; ++i) list.push_back(data.data() + (pages - 1 - i) * page_floats);
    return list;
  }
  int64_t key_at(int32_t b, int32_t head, int64_t row) const {
    const int64_t page = page_start[b] + row / p.page_rows;
    return (pages - 1 - page) * page_floats + head * head_stride + row % p.page_rows * row_stride;
  }
  int64_t q_at(int64_t t, int32_t head) const { return t * q_row_stride + head * p.d; }
  int64_t out_at(int64_t t, int32_t head) const { return (t * p.H + head) * p.d; }

  template <typename Visit>  // visit(b, head, row) for every key row
  void for_keys(const Visit& visit) const {
    for (size_t b = 0; b < p.keys.size(); ++b)
      for (int32_t h = 0; h < p.Hkv; ++h)
        for (int32_t r = 0; r < p.keys[b]; ++r) visit(static_cast<int32_t>(b), h, r);
  }

  void fill(uint64_t seed) {
    Noise noise(seed);
    // Integers up to 25 in q and k: 16 products reach 1e4 and every sum is exact.
    const auto value = [&] { return p.exact_scores ? static_cast<float>(noise.below(51) - 25) : 2.0f * noise.next(); };
    q.assign(T * q_row_stride, kNaN);
    for (int64_t t = 0; t < T; ++t)
      for (int32_t i = 0; i < p.H * p.d; ++i) q[t * q_row_stride + i] = value();
    k_data.assign(pages * page_floats, kNaN);
    v_data = k_data;
    for_keys([&](int32_t b, int32_t h, int64_t r) {
      for (int32_t j = 0; j < p.d; ++j) {
        k_data[key_at(b, h, r) + j] = value();
        v_data[key_at(b, h, r) + j] = noise.next();
      }
    });
    for (int64_t i = 0; i < T * p.H * p.d; ++i) dout.push_back(noise.next());
  }

  Outputs run(Backend& backend) const {
    const int64_t guard = 32, size = T * p.H * p.d;
    Outputs o;
    o.out.assign(size + 2 * guard, kSentinel);
    o.lse.assign(T * p.H + 2 * guard, kSentinel);
    o.dq.assign(T * q_row_stride + 2 * guard, kSentinel);
    o.dk.assign(pages * page_floats, kSentinel);
    for_keys([&](int32_t b, int32_t h, int64_t r) { std::fill_n(o.dk.begin() + key_at(b, h, r), p.d, 1.0f); });
    o.dv = o.dk;
    std::vector<float*> dk = page_list(o.dk), dv = page_list(o.dv);
    backend.attention(shape, q.data(), view, o.out.data() + guard, o.lse.data() + guard);
    backend.attention_grad(shape, q.data(), view, o.out.data() + guard, o.lse.data() + guard, dout.data(), o.dq.data() + guard, dk.data(),
                           dv.data());
    for (std::vector<float>* x : {&o.out, &o.lse, &o.dq}) {
      bool intact = true;
      for (int64_t i = 0; i < guard; ++i) intact = intact && (*x)[i] == kSentinel && (*x)[x->size() - 1 - i] == kSentinel;
      CHECK(intact, "guard overwritten: T %d d %d", static_cast<int>(T), p.d);
      x->erase(x->begin(), x->begin() + guard);
      x->resize(x->size() - guard);
    }
    return o;
  }
};

}  // namespace plumbline_test
