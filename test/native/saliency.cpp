// attention_saliency and its gradient against the formulas in f64: paged and strided keys, groups of heads, bits across threads.
#include <memory>

#include "attention_layout.h"
#include "variants.h"

using namespace plumbline;
using plumbline_test::Layout;
using plumbline_test::Problem;

namespace {

struct Case {
  Problem problem;
  std::vector<std::vector<int32_t>> columns;
};

// Some key rows of a sequence, ascending, each once.
std::vector<int32_t> some_rows(int32_t keys, int32_t count, uint64_t seed) {
  Noise source(seed);
  std::vector<int32_t> rows;
  for (int32_t r = 0; r < keys && count > 0; ++r)
    if (source.below(keys - r) < count) rows.push_back(r), --count;
  return rows;
}

struct Reference {
  std::vector<double> saliency, bound, dq, dq_bound, dk, dk_bound;  // dq like q, dk like a page list's memory
};

class Bench {  // a case in memory
 public:
  const Case& c;
  Layout layout;
  std::vector<int32_t> cu{0}, columns;
  std::vector<float> lse, dsaliency;
  float scale = 0.125f;

  explicit Bench(const Case& given, uint64_t seed) : c(given), layout(given.problem, seed) {
    for (const auto& list : c.columns) {
      columns.insert(columns.end(), list.begin(), list.end());
      cu.push_back(static_cast<int32_t>(columns.size()));
    }
    lse.assign(static_cast<size_t>(layout.T * layout.p.H), plumbline_test::kNaN);  // other rows are not read
    for (size_t b = 0; b < c.columns.size(); ++b)
      if (has_row(b))
        for (int32_t h = 0; h < layout.p.H; ++h) lse[last(b) * layout.p.H + h] = static_cast<float>(exact_lse(b, h));
    dsaliency = noise(count(), seed + 1);
  }
  int64_t count() const { return static_cast<int64_t>(columns.size()); }
  bool has_row(size_t b) const { return layout.p.queries[b] > 0; }
  int64_t last(size_t b) const { return layout.cu[b + 1] - 1; }
  SaliencyColumns view() const { return {cu.data(), columns.data()}; }
  const float* query(size_t b, int32_t h) const { return layout.q.data() + layout.q_at(last(b), h); }
  int64_t key_at(size_t b, int32_t h, int64_t row) const {
    return layout.key_at(static_cast<int32_t>(b), h / (layout.p.H / layout.p.Hkv), row);
  }
  double score(size_t b, int32_t h, int64_t row, double* size = nullptr) const {
    double sum = 0, absolute = 0;
    for (int32_t j = 0; j < layout.p.d; ++j) {
      const double term = static_cast<double>(query(b, h)[j]) * static_cast<double>(layout.k_data[key_at(b, h, row) + j]);
      sum += term;
      absolute += std::fabs(term);
    }
    if (size) *size = absolute * static_cast<double>(layout.shape.scale);
    return sum * static_cast<double>(layout.shape.scale);
  }
  double exact_lse(size_t b, int32_t h) const {
    double peak = -std::numeric_limits<double>::infinity(), sum = 0;
    const int32_t keys = layout.p.keys[b];
    for (int32_t r = 0; r < keys; ++r) peak = std::max(peak, score(b, h, r));
    for (int32_t r = 0; r < keys; ++r) sum += std::exp(score(b, h, r) - peak);
    return keys ? peak + std::log(sum) : peak;
  }

  // A score is off by at most (d + 2) u sum|terms|, e^x by 8 u, what is added by one rounding each.
  Reference reference() const {
    Reference r;
    const size_t q_size = layout.q.size(), k_size = layout.k_data.size();
    r.saliency.assign(static_cast<size_t>(count()), 0.0);
    r.bound = r.saliency;
    r.dq.assign(q_size, 0.0), r.dq_bound = r.dq, r.dk.assign(k_size, 0.0), r.dk_bound = r.dk;
    for (size_t b = 0; b < c.columns.size(); ++b)
      if (has_row(b) && !c.columns[b].empty())
        for (int32_t h = 0; h < layout.p.H; ++h) add_head(r, b, h);
    return r;
  }

 private:
  void add_head(Reference& r, size_t b, int32_t h) const {
    const int32_t keys = layout.p.keys[b], d = layout.p.d;
    const double factor = static_cast<double>(scale), own_lse = static_cast<double>(lse[last(b) * layout.p.H + h]);
    std::vector<double> weight(static_cast<size_t>(keys)), error(weight.size()), dweight(weight.size(), 0.0);
    double delta = 0, delta_error = 0;
    for (int32_t n = 0; n < keys; ++n) {
      double size = 0;
      const double s = score(b, h, n, &size);
      weight[n] = std::exp(s - own_lse);
      error[n] = weight[n] * ((d + 2) * kUnit * size + kUnit * (std::fabs(s) + std::fabs(own_lse) + 10)) + kTiny;
    }
    for (size_t i = 0; i < c.columns[b].size(); ++i) {
      const int32_t n = c.columns[b][i];
      const size_t at = static_cast<size_t>(cu[b]) + i;
      r.saliency[at] += factor * weight[n];
      r.bound[at] += factor * (error[n] + (layout.p.H + 3) * kUnit * weight[n]);
      dweight[n] = factor * static_cast<double>(dsaliency[at]);
      delta += weight[n] * dweight[n];
      delta_error += error[n] * std::fabs(dweight[n]) + 2 * kUnit * weight[n] * std::fabs(dweight[n]);
    }
    const double a = static_cast<double>(layout.shape.scale);
    for (int32_t n = 0; n < keys; ++n) {
      const double ds = weight[n] * (dweight[n] - delta);
      const double off = error[n] * std::fabs(dweight[n] - delta) + weight[n] * (delta_error + 3 * kUnit * (std::fabs(dweight[n]) + std::fabs(delta)));
      for (int32_t j = 0; j < d; ++j) {
        const double q = static_cast<double>(query(b, h)[j]), k = static_cast<double>(layout.k_data[key_at(b, h, n) + j]);
        const size_t qi = static_cast<size_t>(layout.q_at(last(b), h) + j), ki = static_cast<size_t>(key_at(b, h, n) + j);
        r.dq[qi] += a * ds * k, r.dq_bound[qi] += a * (off + (keys + 4) * kUnit * std::fabs(ds)) * std::fabs(k);
        r.dk[ki] += a * ds * q, r.dk_bound[ki] += a * (off + (layout.p.H + 4) * kUnit * std::fabs(ds)) * std::fabs(q);
      }
    }
  }
};

struct Result {
  std::unique_ptr<Guarded<float>> saliency, dq, dk;
  bool operator==(const Result& other) const { return *saliency == *other.saliency && *dq == *other.dq && *dk == *other.dk; }
};

// Accumulators start at a value of their own, so that what is not touched shows; small, so that it hides nothing.
constexpr float kStart = 0x1p-10f;
// What adding `want` to it rounds.
double adding(double want) { return want == 0 ? 0 : 2 * kUnit * (static_cast<double>(kStart) + std::fabs(want)); }

Result run(Backend& backend, const Bench& bench) {
  const auto started = [](int64_t size) {
    return std::make_unique<Guarded<float>>(size, std::vector<float>(static_cast<size_t>(size), kStart));
  };
  Result r{started(bench.count()), started(static_cast<int64_t>(bench.layout.q.size())), started(static_cast<int64_t>(bench.layout.k_data.size()))};
  const Layout& l = bench.layout;
  std::vector<float*> dk;
  for (const float* page : l.k_pages) dk.push_back(r.dk->data() + (page - l.k_data.data()));
  std::vector<int32_t> rows;
  for (int32_t b = 0; b < l.shape.B; ++b) rows.push_back(l.shape.cu_q_B1[b + 1] > l.shape.cu_q_B1[b] ? l.shape.cu_q_B1[b + 1] - 1 : -1);
  const float *q = l.q.data(), *lse = bench.lse.data();
  backend.attention_saliency(l.shape, {1, &q, &lse, rows.data(), rows.data(), l.shape.q_row_stride, 0}, l.view, bench.view(), bench.scale, r.saliency->data());
  backend.attention_saliency_grad(l.shape, l.q.data(), l.view, bench.lse.data(), bench.view(), bench.scale, bench.dsaliency.data(), r.dq->data(),
                                  dk.data());
  return r;
}

void check(const Bench& bench, Result& r, const Reference& want, const char* name, int number) {
  for (int64_t i = 0; i < bench.count(); ++i)
    CHECK_CLOSE((*r.saliency)[i] - static_cast<double>(kStart), want.saliency[i], want.bound[i] + adding(want.saliency[i]),
                "%s case %d column %ld", name, number, i);
  for (int64_t i = 0; i < r.dq->size(); ++i)
    CHECK_CLOSE((*r.dq)[i] - static_cast<double>(kStart), want.dq[i], want.dq_bound[i] + adding(want.dq[i]), "%s case %d dq %ld", name, number, i);
  for (int64_t i = 0; i < r.dk->size(); ++i)
    CHECK_CLOSE((*r.dk)[i] - static_cast<double>(kStart), want.dk[i], want.dk_bound[i] + adding(want.dk[i]), "%s case %d dk %ld", name, number, i);
  CHECK(r.saliency->intact() && r.dq->intact() && r.dk->intact(), "%s case %d wrote outside", name, number);
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const int32_t group : {1, 2, 6, 7})
    for (const int32_t d : {1, 5, 16, 31, 80, 128})
      all.push_back({{{3, 1, 0, 2}, {37, 130, 9, 2}, 2 * group, 2, d, true, d % 2 ? 16 : 0, false},
                     {some_rows(37, 20, 3), some_rows(130, 70, 4), some_rows(9, 3, 5), {}}});
  all.push_back({{{1}, {2100}, 6, 1, 24, true, 64, false}, {some_rows(2100, 700, 6)}});   // several chunks of keys and of columns
  all.push_back({{{1, 1}, {1, 5}, 40, 1, 8, true, 3, false}, {{0}, {4, 1, 0}}});           // more heads than a row tile, columns in no order
  all.push_back({{{1, 2}, {70, 150}, 4, 2, 300, true, 32, false}, {some_rows(70, 66, 7), some_rows(150, 9, 8)}}); // rows longer than the kernels' registers
  all.push_back({{{0}, {12}, 2, 1, 8, true, 4, false}, {{}}});
  return all;
}

void test_values() {
  const std::vector<Case> all = cases();
  for (size_t i = 0; i < all.size(); ++i) {
    const Bench bench(all[i], 100 + i);
    const Reference want = bench.reference();
    std::unique_ptr<Result> one;
    for_each_backend([&](Backend& backend, const char* name) {
      auto got = std::make_unique<Result>(run(backend, bench));
      check(bench, *got, want, name, static_cast<int>(i));
      CHECK(run(backend, bench) == *got, "%s case %zu: a second run differs", name, i);
      if (is_emulated(backend)) return;
      if (static_cast<CpuBackend&>(backend).threads() == 1)
        one = std::move(got);
      else
        CHECK(*one == *got, "%s case %zu: threads change bits", name, i);
    });
  }
}

// A column's bits depend on nothing but its own key.
void test_alone() {
  const Case whole{{{1}, {200}, 12, 2, 33, true, 16, false}, {some_rows(200, 150, 8)}};
  Case part = whole;
  part.columns[0].erase(part.columns[0].begin(), part.columns[0].begin() + 71);
  const Bench a(whole, 9), b(part, 9);
  for_each_backend([&](Backend& backend, const char* name) {
    Result all = run(backend, a), some = run(backend, b);
    for (int64_t i = 0; i < some.saliency->size(); ++i) CHECK((*some.saliency)[i] == (*all.saliency)[i + 71], "%s column %ld", name, i);
  });
}

// The gradient of the formula itself, lse included, by central differences in f64.
double saliency_sum(const Bench& bench) {
  double sum = 0;
  const Layout& l = bench.layout;
  for (int32_t h = 0; h < l.p.H; ++h) {
    const double own = bench.exact_lse(0, h);
    for (int64_t i = 0; i < bench.count(); ++i)
      sum += static_cast<double>(bench.scale) * static_cast<double>(bench.dsaliency[i]) * std::exp(bench.score(0, h, bench.columns[i]) - own);
  }
  return sum;
}

void test_differences() {
  const Case c{{{2}, {11}, 4, 2, 6, true, 4, false}, {{1, 2, 5, 9}}};
  Bench bench(c, 17);
  CpuBackend backend(1);
  Result got = run(backend, bench);
  const auto slope = [&](float& x) {
    const float before = x, step = 1.0f / 1024;
    x = before + step;
    const double high = saliency_sum(bench), up = x;
    x = before - step;
    const double low = saliency_sum(bench), down = x;
    x = before;
    return (high - low) / (up - down);
  };
  for (int32_t h = 0; h < 4; ++h)
    for (int32_t j = 0; j < 6; ++j) {
      const int64_t at = bench.layout.q_at(1, h) + j;
      CHECK_CLOSE((*got.dq)[at] - static_cast<double>(kStart), slope(bench.layout.q[at]), 1e-6, "dq %ld", at);
    }
  for (int32_t n = 0; n < 11; ++n)
    for (int32_t j = 0; j < 6; ++j) {
      const int64_t at = bench.layout.key_at(0, n % 2, n) + j;
      CHECK_CLOSE((*got.dk)[at] - static_cast<double>(kStart), slope(bench.layout.k_data[at]), 1e-6, "dk %ld", at);
    }
}

void test_non_finite() {
  const Case c{{{1}, {40}, 2, 2, 16, true, 16, false}, {{3, 4, 5}}};
  Bench bench(c, 21);
  bench.layout.k_data[bench.layout.key_at(0, 1, 4) + 2] = plumbline_test::kNaN;
  for_each_backend([&](Backend& backend, const char* name) {
    Result got = run(backend, bench);
    CHECK(std::isnan((*got.saliency)[1]), "%s a NaN key", name);
    CHECK(!std::isnan((*got.saliency)[0]) && !std::isnan((*got.saliency)[2]), "%s a NaN key reaches its neighbours", name);
  });
}

void test_cancel() {
  const Case c{{{1}, {40}, 2, 2, 16, true, 16, false}, {{3, 4, 5}}};
  const Bench bench(c, 22);
  CpuBackend backend(1);
  CancelFlag flag;
  flag.set();
  backend.set_cancel(&flag);
  bool stopped = false;
  try {
    run(backend, bench);
  } catch (const Cancelled&) {
    stopped = true;
  }
  CHECK(stopped, "not cancelled");
}

}  // namespace

int main() {
  test_values();
  test_alone();
  test_differences();
  test_non_finite();
  test_cancel();
  return finish_variants();
}
