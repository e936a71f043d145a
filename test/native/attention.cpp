// attention and attention_grad against a naive double-precision reference, over odd sizes, page layouts, instruction sets, thread
// counts and the emulated kernels; scatter_to_pages and gather_from_pages.
#include <functional>

#include "attention_layout.h"
#include "attention_reference.h"
#include "variants.h"

using namespace plumbline_test;
using plumbline::CudaBackend;

namespace {

bool same_bits(const Outputs& a, const Outputs& b) {
  const auto same = [](const std::vector<float>& x, const std::vector<float>& y) {
    return x.size() == y.size() && (x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0);
  };
  return same(a.out, b.out) && same(a.lse, b.lse) && same(a.dq, b.dq) && same(a.dk, b.dk) && same(a.dv, b.dv);
}

AttentionReference reference_of(const Layout& l, int32_t b, int32_t head) {
  const Problem& p = l.p;
  const int32_t kv_head = head / (p.H / p.Hkv);
  AttentionReference r{};
  r.n = p.queries[b], r.keys = p.keys[b], r.d = p.d, r.causal = p.causal, r.scale = l.shape.scale, r.exact_scores = p.exact_scores;
  for (int64_t i = 0; i < r.n; ++i)
    for (int32_t j = 0; j < p.d; ++j) {
      r.q.push_back(l.q[l.q_at(l.cu[b] + i, head) + j]);
      r.dout.push_back(l.dout[l.out_at(l.cu[b] + i, head) + j]);
    }
  for (int64_t t = 0; t < r.keys; ++t)
    for (int32_t j = 0; j < p.d; ++j) {
      r.k.push_back(l.k_data[l.key_at(b, kv_head, t) + j]);
      r.v.push_back(l.v_data[l.key_at(b, kv_head, t) + j]);
    }
  r.run();
  return r;
}

// Compares every value with the reference and takes it out of `o`, so that what remains must be the sentinel.
void compare(const Layout& l, Outputs o, const char* what) {
  const Problem& p = l.p;
  const int32_t group = p.H / p.Hkv;
  const auto take = [](float& x) {
    const float value = x;
    x = kSentinel;
    return value;
  };
  const auto check = [&](float& x, double want, double bound, const char* name, int32_t b, int32_t head, int64_t row) {
    CHECK_CLOSE(take(x), want, bound, "%s %s, sequence %d head %d row %d", what, name, b, head, static_cast<int>(row));
  };
  for (int32_t b = 0; b < static_cast<int32_t>(p.queries.size()); ++b)
    for (int32_t h = 0; h < p.Hkv; ++h) {
      // The pages held 1: one more rounding, of a sum about that large.
      std::vector<double> dk(p.keys[b] * p.d, 1.0), dv = dk, dk_bound(dk.size(), 1e-6), dv_bound = dk_bound;
      for (int32_t head = h * group; head < (h + 1) * group; ++head) {
        const AttentionReference r = reference_of(l, b, head);
        for (int64_t i = 0; i < r.n; ++i) {
          const int64_t t = l.cu[b] + i;
          check(o.lse[t * p.H + head], r.lse[i], r.lse_bound[i], "lse", b, head, i);
          for (int64_t j = 0, at = i * p.d; j < p.d; ++j, ++at) {
            check(o.out[l.out_at(t, head) + j], r.out[at], r.out_bound[at], "out", b, head, i);
            check(o.dq[l.q_at(t, head) + j], r.dq[at], r.dq_bound[at], "dq", b, head, i);
          }
        }
        for (size_t i = 0; i < dk.size(); ++i) {
          dk[i] += r.dk[i], dk_bound[i] += r.dk_bound[i];
          dv[i] += r.dv[i], dv_bound[i] += r.dv_bound[i];
        }
      }
      for (size_t i = 0; i < dk.size(); ++i) {
        const int64_t key = i / p.d, at = l.key_at(b, h, key) + i % p.d;
        check(o.dk[at], dk[i], dk_bound[i] + std::fabs(dk[i]) * 6e-8, "dk", b, h, key);
        check(o.dv[at], dv[i], dv_bound[i] + std::fabs(dv[i]) * 6e-8, "dv", b, h, key);
      }
    }
  for (const std::vector<float>* x : {&o.out, &o.lse, &o.dq, &o.dk, &o.dv}) {
    const bool untouched = std::all_of(x->begin(), x->end(), [](float value) { return value == kSentinel; });
    CHECK(untouched, "%s wrote where it should not", what);
  }
}

// Same bits on a second run and, on the CPU, for other numbers of threads.
void check_problem(Backend& backend, const Problem& p, uint64_t seed, const char* what) {
  const Layout l(p, seed);
  const Outputs first = l.run(backend);
  compare(l, first, what);
  CHECK(kEmulatedOnly || same_bits(first, l.run(backend)), "%s: second run differs", what);
  if (is_emulated(backend)) return;
  CpuBackend& cpu = static_cast<CpuBackend&>(backend);
  const int32_t before = cpu.threads();
  for (int32_t threads : {2, 5}) {  // 5: more than there are heads, so that the backward pass takes its two sweeps
    cpu.set_threads(threads);
    CHECK(same_bits(first, l.run(backend)), "%s: %d threads differ from %d", what, threads, before);
  }
  cpu.set_threads(before);
}

void check_shapes(Backend& backend) {
  const std::vector<int32_t> ragged_q{33, 0, 1, 7, 100, 5, 2}, ragged_k{33, 4, 130, 0, 150, 3, 2};  // one has fewer keys than rows
  int number = 0;
  for (int32_t d : {1, 5, 6, 16, 20, 32, 40, 80, 128}) {
    ++number;  // so that the emulated kernels, a quarter of the cases, meet each d with two kinds of pages and both masks
    for (int32_t page_rows : {1, 3, 64, 0}) {
      ++number;
      for (bool causal : {true, false}) {
        if (is_emulated(backend) && (number + 2 * causal) % 4 != 0) continue;
        const int32_t group = page_rows == 1 ? 1 : page_rows == 3 ? 6 : page_rows == 64 ? 7 : 2;
        char name[80];
        std::snprintf(name, sizeof(name), "d %d page_rows %d group %d causal %d", d, page_rows, group, causal);
        check_problem(backend, {ragged_q, ragged_k, group * (d == 5 ? 1 : 2), d == 5 ? 1 : 2, d, causal, page_rows}, d + page_rows, name);
      }
    }
  }
  for (int32_t d : {129, 256}) check_problem(backend, {{20, 0, 1, 3}, {33, 4, 70, 1}, 7, 1, d, d == 256, 16}, d, d == 256 ? "d 256" : "d 129");
  check_problem(backend, {{1, 3}, {1500, 1025}, 6, 1, 32, true, 64}, 7, "decoding with more than one chunk of keys");
  check_problem(backend, {{20, 20}, {600, 300}, 6, 1, 32, true, 64}, 15, "a latent step with more than one chunk of keys");
  check_problem(backend, {{230}, {430}, 3, 1, 16, true, 64}, 8, "several tiles of rows and keys");
  check_problem(backend, {{97, 20, 1}, {97, 300, 300}, 2, 1, 16, true, 64, true}, 9, "scores up to 1e4");
  check_problem(backend, {{}, {}, 2, 1, 16, true, 64}, 10, "no sequences");
}

// Each sequence alone gives the bits that it gives in the batch.
void check_alone(Backend& backend) {
  const Problem batch{{40, 1, 0, 130}, {60, 700, 9, 130}, 4, 2, 20, true, 3};
  const Layout l(batch, 11);
  const Outputs together = l.run(backend);
  for (size_t b = 0; b < batch.queries.size(); ++b) {
    const int64_t rows = batch.queries[b], width = 4 * 20;
    AttentionShape shape = l.shape;
    KeyValuePages view = l.view;
    const int32_t cu[2] = {0, batch.queries[b]};
    shape.B = 1, shape.cu_q_B1 = cu, shape.kv_len_B += b, view.page_start_B1 += b;
    std::vector<float> out(rows * width + 1, kSentinel), lse(rows * 4 + 1, kSentinel);
    backend.attention(shape, l.q.data() + l.q_at(l.cu[b], 0), view, out.data(), lse.data());
    CHECK(std::equal(out.begin(), out.end() - 1, together.out.begin() + l.cu[b] * width), "sequence %d alone differs", static_cast<int>(b));
    CHECK(std::equal(lse.begin(), lse.end() - 1, together.lse.begin() + l.cu[b] * 4), "lse of sequence %d alone differs",
          static_cast<int>(b));
  }
}

// NaN and infinity: the row that holds them is NaN or follows the formula, no other row of q changes.
void check_non_finite(Backend& backend) {
  for (int32_t queries : {1, 70}) {
    Layout l({{queries}, {150}, 6, 1, 32, true, 64}, 12);
    const Outputs clean = l.run(backend);
    const int64_t t = queries / 2;
    for (float poison : {kNaN, HUGE_VALF, -HUGE_VALF}) {
      Layout bad({{queries}, {150}, 6, 1, 32, true, 64}, 12);
      bad.q[bad.q_at(t, 3) + 4] = poison;
      const Outputs o = bad.run(backend);
      for (int64_t row = 0; row < queries; ++row)
        for (int32_t head = 0; head < 6; ++head) {
          const int64_t at = bad.out_at(row, head);
          if (row == t && head == 3)
            CHECK(std::isnan(o.out[at]) && std::isnan(o.out[at + 31]), "a row of q with %g gives %g", poison, o.out[at]);
          else
            CHECK(std::equal(&o.out[at], &o.out[at] + 32, &clean.out[at]), "row %d head %d changed", (int)row, head);
        }
    }
    // A key of -inf along an axis where q is positive: weight 0, as if the key were not there.
    for (int32_t head = 0; head < 6; ++head)
      for (int64_t row = 0; row < queries; ++row) l.q[l.q_at(row, head)] = 1.0f;
    l.k_data[l.key_at(0, 0, 5)] = -HUGE_VALF;
    const Outputs masked = l.run(backend);
    l.k_data[l.key_at(0, 0, 5)] = -1e30f;
    const Outputs tiny = l.run(backend);
    CHECK(masked.out == tiny.out, "a key of -inf differs from one of -1e30, %d rows", queries);
    // All keys -inf: no weights to share out; NaN and lse -inf, like the formula.
    l.for_keys([&](int32_t b, int32_t h, int64_t r) { l.k_data[l.key_at(b, h, r)] = -HUGE_VALF; });
    const Outputs none = l.run(backend);
    CHECK(std::isnan(none.out[0]) && none.lse[0] == -HUGE_VALF, "all scores -inf give %g, lse %g", none.out[0], none.lse[0]);
  }
}

// d/dx of sum(out * dout) by central differences. Step 2^-7: the truncation, h^2/6 times a third derivative of order 1, stays
// below 1e-4; rounding of a loss of about 10 in f32, divided by 2 h, below 2e-4.
void check_finite_differences(Backend& backend) {
  Layout l({{5}, {8}, 4, 2, 6, true, 3}, 13);
  const Outputs o = l.run(backend);
  const auto loss = [&] {
    std::vector<float> out(5 * 4 * 6), lse(5 * 4);
    backend.attention(l.shape, l.q.data(), l.view, out.data(), lse.data());
    double sum = 0;
    for (size_t i = 0; i < out.size(); ++i) sum += static_cast<double>(out[i]) * l.dout[i];
    return sum;
  };
  const auto slope = [&](float& x) {
    const float before = x, h = 1.0f / 128;
    x = before + h;
    const double up = loss();
    x = before - h;
    const double down = loss();
    x = before;
    return (up - down) / (2 * h);
  };
  for (int64_t t = 0; t < 5; ++t)
    for (int32_t i = 0; i < 24; ++i) CHECK_CLOSE(o.dq[l.q_at(t, 0) + i], slope(l.q[l.q_at(t, 0) + i]), 5e-4, "dq row %d, %d", (int)t, i);
  l.for_keys([&](int32_t b, int32_t h, int64_t r) {
    for (int64_t at = l.key_at(b, h, r), j = 0; j < 6; ++j, ++at) {
      CHECK_CLOSE(o.dk[at] - 1, slope(l.k_data[at]), 5e-4, "dk key %d", (int)r);
      CHECK_CLOSE(o.dv[at] - 1, slope(l.v_data[at]), 5e-4, "dv key %d", (int)r);
    }
  });
}

void check_pages(Backend& backend) {
  for (int32_t page_rows : {1, 3, 64}) {
    const int32_t Hkv = 2, d = 5;
    const std::vector<int32_t> first{2, 0, 70, 9};
    Layout l({{40, 0, 3, 91}, {42, 6, 73, 100}, Hkv, Hkv, d, true, page_rows}, 14);
    const std::vector<float> k_before = l.k_data, v_before = l.v_data;
    const int64_t stride = Hkv * d + 4;
    std::vector<float> k_rows(l.T * stride), v_rows(l.T * stride);
    for (size_t i = 0; i < k_rows.size(); ++i) k_rows[i] = static_cast<float>(i), v_rows[i] = -static_cast<float>(i);
    backend.scatter_to_pages(l.shape, first.data(), k_rows.data(), v_rows.data(), stride, l.view);
    std::vector<float> k_want = k_before, v_want = v_before;
    for (int32_t b = 0; b < 4; ++b)
      for (int32_t i = 0; i < l.p.queries[b]; ++i)
        for (int32_t h = 0; h < Hkv; ++h)
          for (int32_t j = 0; j < d; ++j) {
            k_want[l.key_at(b, h, first[b] + i) + j] = k_rows[(l.cu[b] + i) * stride + h * d + j];
            v_want[l.key_at(b, h, first[b] + i) + j] = v_rows[(l.cu[b] + i) * stride + h * d + j];
          }
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    };
    CHECK(same(l.k_data, k_want) && same(l.v_data, v_want), "scatter, page_rows %d", page_rows);
    std::vector<float> k_back(k_rows.size(), kSentinel), v_back(k_rows.size(), kSentinel);
    backend.gather_from_pages(l.shape, first.data(), k_back.data(), v_back.data(), stride, l.view);
    for (size_t i = 0; i < k_rows.size(); ++i) {
      const bool gap = static_cast<int64_t>(i) % stride >= Hkv * d;
      CHECK(k_back[i] == (gap ? kSentinel : k_rows[i]) && v_back[i] == (gap ? kSentinel : v_rows[i]), "gather, element %d", (int)i);
    }
  }
}

}  // namespace

// The kernels keep a row of a head in registers: more is refused, never computed wrongly.
void check_head_limit() {
  CudaBackend backend;
  const int32_t cu[] = {0, 1}, length[] = {1}, start[] = {0, 1};
  for (const int32_t d : {257, 1024}) {
    std::vector<float> row(static_cast<size_t>(d), 1.0f), out(row), lse(1), dq(row), dk(row), dv(row);
    float *page[] = {row.data()}, *dk_page[] = {dk.data()}, *dv_page[] = {dv.data()};
    AttentionShape shape{};
    shape.B = 1, shape.cu_q_B1 = cu, shape.kv_len_B = length, shape.H = shape.Hkv = 1, shape.d = d, shape.scale = 1.0f, shape.q_row_stride = d;
    const KeyValuePages pages{page, page, start, d, d, 64};
    const auto refuses = [&](const std::function<void()>& call) {
      try {
        call();
      } catch (const Error& error) {
        return std::string(error.code()) == "ERR_UNSUPPORTED" && std::string(error.what()).find("head size of at most 256 on device 'cuda' but received " + std::to_string(d)) != std::string::npos;
      }
      return false;
    };
    CHECK(refuses([&] { backend.attention(shape, row.data(), pages, out.data(), lse.data()); }), "d %d", d);
    CHECK(refuses([&] { backend.attention_grad(shape, row.data(), pages, row.data(), lse.data(), row.data(), dq.data(), dk_page, dv_page); }), "grad d %d", d);
  }
}

int main() {
  check_head_limit();
  for_each_backend([](Backend& backend, const char*) {
    if (!is_emulated(backend) && static_cast<CpuBackend&>(backend).threads() > 1) return;  // check_problem takes other numbers itself
    check_shapes(backend);
    check_alone(backend);
    check_non_finite(backend);
    if (!kEmulatedOnly) check_finite_differences(backend);  // hundreds of runs of one case
  });
  CpuBackend backend(kTwoThreads);
  check_pages(backend);
  return finish_variants();
}
