// select_patches and its gradient against brute force written from the formulas, in f64.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "../../src/core/replay.h"
#include "variants.h"

using namespace plumbline;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Sequences with pictures of any grid, scores and used marks.
struct Problem {
  ReplayRule rule;
  std::vector<int32_t> cu_tokens{0}, cu_pictures{0}, grid, cu_selected{0};
  std::vector<float> saliency;
  std::vector<uint8_t> used;
  ReplayLayout layout() const {
    return {static_cast<int32_t>(cu_tokens.size()) - 1, cu_tokens.data(), cu_pictures.data(), grid.data(), cu_selected.data()};
  }
  int32_t B() const { return static_cast<int32_t>(cu_tokens.size()) - 1; }
  int32_t first(int32_t b) const { return cu_tokens[b]; }
  int32_t tokens(int32_t b) const { return cu_tokens[b + 1] - first(b); }
};

float any_score(Noise& noise, int64_t kind) {
  switch (kind) {
    case 0: return 0.25f;                                                        // all alike
    case 1: return static_cast<float>(noise.below(4)) * 0.125f;                  // many ties
    case 2: {
      const float odd[] = {kNaN, kInf, -kInf, 0.0f, -0.0f, 1e-45f, -1.0f, 0.5f};
      return odd[noise.below(8)];
    }
    case 3: return noise.below(2) ? 0.0f : -0.0f;
    case 4: return noise.below(9) ? noise.next() : kNaN;
    default: return 0.5f * (noise.next() + 1.0f) * 1e-3f;
  }
}

Problem random_problem(Noise& noise) {
  Problem p;
  p.rule = {static_cast<int32_t>(1 + noise.below(40)), static_cast<int32_t>(1 + noise.below(5)), noise.below(4) ? 0 : static_cast<int32_t>(1 + noise.below(11)),
            noise.below(2) ? ReplayWeights::softmax : ReplayWeights::mean_preserving, noise.below(2) == 0, noise.below(2) == 0, noise.below(2) == 0};
  const int64_t B = noise.below(4);
  for (int64_t b = 0; b < B; ++b) {
    int32_t tokens = 0;
    const int64_t pictures = noise.below(4), kind = noise.below(7), used = noise.below(4);
    for (int64_t i = 0; i < pictures; ++i) {
      const int32_t rows = static_cast<int32_t>(1 + noise.below(9)), columns = static_cast<int32_t>(1 + noise.below(9));
      p.grid.insert(p.grid.end(), {rows, columns});
      tokens += rows * columns;
    }
    int32_t marked = 0;
    for (int32_t i = 0; i < tokens; ++i) {
      p.saliency.push_back(any_score(noise, kind));
      p.used.push_back(used == 3 || (used > 0 && noise.below(4) < used));
      marked += p.used.back();
    }
    p.cu_tokens.push_back(p.cu_tokens.back() + tokens);
    p.cu_pictures.push_back(p.cu_pictures.back() + static_cast<int32_t>(pictures));
    p.cu_selected.push_back(p.cu_selected.back() + replay_count(p.rule, tokens, marked));
  }
  return p;
}

struct Answer {
  std::vector<int32_t> selected, window;
  std::vector<double> weight;
  bool equal = false;  // the weights were equal for want of usable scores
};

bool goes_before(float a, float b) { return std::isnan(a) ? false : std::isnan(b) ? true : a > b; }

std::vector<int32_t> brute_selection(const Problem& p, int32_t b) {
  const float* scores = p.saliency.data() + p.first(b);
  const uint8_t* used = p.used.data() + p.first(b);
  const int32_t n = p.tokens(b);
  std::vector<float> barred(scores, scores + n);
  std::vector<int32_t> order;
  for (int32_t i = 0; i < n; ++i) {
    if (used[i] && p.rule.reselect_used) barred[i] = -kInf;
    if (!used[i] || p.rule.reselect_used) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](int32_t i, int32_t j) { return goes_before(barred[i], barred[j]); });
  const int32_t wanted = p.rule.reselect_used && p.rule.patches >= n ? std::max(n - 1, 0) : p.rule.patches;
  if (static_cast<int32_t>(order.size()) > wanted) order.resize(static_cast<size_t>(wanted));
  if (p.rule.topk_order && !order.empty()) {
    const float worst = barred[order.back()];
    std::sort(order.begin(), order.end());
    std::stable_partition(order.begin(), order.end(), [&](int32_t i) { return goes_before(barred[i], worst); });
  }
  return order;
}

void brute_weights(const Problem& p, int32_t b, Answer& a) {
  const float* scores = p.saliency.data() + p.first(b);
  const uint8_t* used = p.used.data() + p.first(b);
  const size_t count = a.selected.size();
  const double rows = p.rule.mix ? 1.0 : static_cast<double>(count);
  std::vector<double> raw;
  double sum = 0, top = -std::numeric_limits<double>::infinity(), fresh = 0;
  for (const int32_t i : a.selected) {
    const bool out = p.rule.weights == ReplayWeights::softmax && used[i];
    raw.push_back(static_cast<double>(scores[i]));
    if (out) continue;
    fresh += 1;
    top = std::isnan(raw.back()) || std::isnan(top) ? std::nan("") : std::max(top, raw.back());
    sum += raw.back();
  }
  a.equal = p.rule.weights == ReplayWeights::softmax ? !std::isfinite(top) : !(sum > 0) || !std::isfinite(sum);
  double total = 0;
  for (size_t i = 0; i < count; ++i) {
    const bool out = p.rule.weights == ReplayWeights::softmax && used[a.selected[i]];
    const double value = out ? 0.0 : a.equal ? 1.0 : p.rule.weights == ReplayWeights::softmax ? std::exp(raw[i] - top) : raw[i];
    a.weight.push_back(value);
    total += value;
  }
  const double wanted = p.rule.weights == ReplayWeights::softmax ? 1.0 : rows;
  for (double& w : a.weight) w = fresh > 0 ? w * wanted / total : 0.0;
}

// Counts every window cell by cell.
void brute_window(const Problem& p, int32_t b, Answer& a) {
  a.window.assign(6, 0);
  if (a.selected.empty()) return;
  int32_t best = -1, base = 0;
  for (int32_t k = p.cu_pictures[b]; k < p.cu_pictures[b + 1]; ++k) {
    const int32_t own_rows = p.grid[2 * k], own_columns = p.grid[2 * k + 1];
    const int32_t rows = p.rule.grid ? p.rule.grid : own_rows, columns = p.rule.grid ? p.rule.grid : own_columns;
    const int32_t tall = std::min(p.rule.window, rows), broad = std::min(p.rule.window, columns);
    for (int32_t r = 0; r + tall <= rows; ++r)
      for (int32_t c = 0; c + broad <= columns; ++c) {
        int32_t count = 0;
        for (const int32_t i : a.selected) {
          if (i < base || i >= base + own_rows * own_columns) continue;
          const int32_t y = (i - base) / columns, x = (i - base) % columns;
          count += y >= r && y < r + tall && x >= c && x < c + broad;
        }
        if (count > best) {
          best = count;
          a.window = {k - p.cu_pictures[b], r, c, tall, broad, count};
        }
      }
    base += own_rows * own_columns;
  }
}

Answer brute(const Problem& p, int32_t b) {
  Answer a;
  a.selected = brute_selection(p, b);
  brute_weights(p, b, a);
  brute_window(p, b, a);
  return a;
}

struct Output {
  Guarded<uint8_t> used;
  Guarded<int32_t> selected, window;
  Guarded<float> weight;
  bool operator==(const Output& o) const { return used == o.used && selected == o.selected && window == o.window && weight == o.weight; }
  bool intact() const { return used.intact() && selected.intact() && window.intact() && weight.intact(); }
};

Output run(Backend& backend, const Problem& p) {
  const int64_t K = p.cu_selected.back();
  Output out{Guarded<uint8_t>(p.cu_tokens.back(), p.used), Guarded<int32_t>(K), Guarded<int32_t>(6 * p.B()), Guarded<float>(K)};
  backend.select_patches(p.rule, p.layout(), p.saliency.data(), out.used.data(), out.selected.data(), out.weight.data(), out.window.data(), nullptr);
  return out;
}

void check_problem(const Problem& p, Output& out, int number) {
  CHECK(out.intact(), "problem %d wrote outside", number);
  for (int32_t b = 0; b < p.B(); ++b) {
    const Answer want = brute(p, b);
    const int32_t place = p.cu_selected[b], count = p.cu_selected[b + 1] - place;
    if (!CHECK(count == static_cast<int32_t>(want.selected.size()), "problem %d count %d", number, count)) continue;
    std::vector<uint8_t> used(p.used.begin() + p.first(b), p.used.begin() + p.first(b) + p.tokens(b));
    for (int32_t i = 0; i < count; ++i) {
      CHECK(out.selected[place + i] == want.selected[i], "problem %d sequence %d place %d", number, b, i);
      const double w = want.weight[i];
      CHECK_CLOSE(out.weight[place + i], w, 2 * kUnit * std::fabs(w) + kTiny, "problem %d weight %d", number, i);
      used[want.selected[i]] = 1;
    }
    CHECK(std::equal(used.begin(), used.end(), out.used.data() + p.first(b)), "problem %d used", number);
    for (int j = 0; j < 6; ++j) CHECK(out.window[6 * b + j] == want.window[j], "problem %d window %d", number, j);
  }
}

void test_selection() {
  CpuBackend one(1), two(kTwoThreads);
  CudaBackend emulated;
  Noise noise(5);
  for (int number = 0; number < (kEmulatedOnly ? 2000 : 10000); ++number) {
    const Problem p = random_problem(noise);
    Output a = run(one, p);
    CHECK(run(two, p) == a, "problem %d: threads", number);
    CHECK(run(one, p) == a, "problem %d: a second run", number);
    check_problem(p, a, number);
    if (number % 10 != 0) continue;
    Output b = run(emulated, p);
    check_problem(p, b, number);
  }
}

// More candidates, and more selected, than the kernels keep at hand: digits are searched, keys sorted in place.
void test_many() {
  Noise noise(15);
  CpuBackend cpu(1);
  CudaBackend emulated;
  for (const int32_t patches : {5, 256, 257, 700, 2999, 3000})
    for (const int64_t kind : {0, 1, 2, 5})
      for (const bool topk_order : {false, true}) {
        Problem p;
        p.rule = {patches, 4, 0, ReplayWeights::mean_preserving, false, topk_order, topk_order};
        p.grid = {40, 50, 1, 1000};
        p.cu_tokens = {0, 3000};
        p.cu_pictures = {0, 2};
        for (int32_t i = 0; i < 3000; ++i) p.saliency.push_back(any_score(noise, kind));
        p.used.assign(3000, 0);
        for (int32_t i = 0; i < 3000; i += 7) p.used[i] = 1;
        p.cu_selected = {0, replay_count(p.rule, 3000, 429)};
        Output a = run(cpu, p), b = run(emulated, p);
        check_problem(p, a, patches);
        check_problem(p, b, patches);
      }
}

// A table too large for shared memory, and a picture larger than the fixed grid.
void test_large_grid() {
  Noise noise(16);
  CudaBackend emulated;
  for (const int32_t fixed : {0, 11}) {
    Problem p;
    p.rule = {300, 7, fixed, ReplayWeights::softmax, false, false, false};
    p.grid = {3, 2, 210, 130};
    p.cu_tokens = {0, 6, 27306};
    p.cu_pictures = {0, 1, 2};
    for (int32_t i = 0; i < 27306; ++i) p.saliency.push_back(any_score(noise, 5));
    p.used.assign(27306, 0);
    p.cu_selected = {0, 6, 306};
    Output out = run(emulated, p);
    check_problem(p, out, fixed);
  }
}

// The blocks: w_i from[row_i], or their sum.
void test_gather() {
  for_each_backend([](Backend& backend, const char* name) {
    Noise source(17);
    for (const int64_t C : {1, 5, 64, 129, 520, 1536})
      for (const bool mix : {false, true}) {
        Problem p;
        p.rule = {9, 2, 0, ReplayWeights::mean_preserving, mix, false, false};
        p.grid = {3, 4, 5, 7, 1, 2};
        p.cu_tokens = {0, 12, 12, 49};
        p.cu_pictures = {0, 1, 1, 3};
        p.cu_selected = {0, 9, 9, 18};
        const std::vector<int32_t> cu_rows = mix ? std::vector<int32_t>{0, 1, 1, 2} : p.cu_selected;
        std::vector<int32_t> row;
        for (int32_t i = 0; i < 49; ++i) p.saliency.push_back(any_score(source, 5)), row.push_back(static_cast<int32_t>(source.below(60)));
        p.used.assign(49, 0);
        const std::vector<float> from = noise(60 * C, 18);
        Output o{Guarded<uint8_t>(49, p.used), Guarded<int32_t>(18), Guarded<int32_t>(18), Guarded<float>(18)};
        Guarded<float> out(cu_rows.back() * C);
        const ReplayRows rows{from.data(), row.data(), cu_rows.data(), out.data(), C};
        backend.select_patches(p.rule, p.layout(), p.saliency.data(), o.used.data(), o.selected.data(), o.weight.data(), o.window.data(), &rows);
        check_problem(p, o, static_cast<int>(C));
        CHECK(out.intact(), "%s C %ld wrote outside", name, C);
        std::vector<double> want(static_cast<size_t>(out.size()), 0.0), size = want;
        for (int32_t b = 0; b < 3; ++b)
          for (int32_t i = p.cu_selected[b]; i < p.cu_selected[b + 1]; ++i)
            for (int64_t c = 0; c < C; ++c) {
              const int64_t at = (mix ? cu_rows[b] : i) * C + c;
              const double term = static_cast<double>(o.weight[i]) * static_cast<double>(from[row[p.first(b) + o.selected[i]] * C + c]);
              want[at] += term, size[at] += std::fabs(term);
            }
        for (int64_t i = 0; i < out.size(); ++i) CHECK_CLOSE(out[i], want[i], 10 * kUnit * size[i], "%s C %ld mix %d element %ld", name, C, mix, i);
      }
  });
}

// Step after step until nothing is left: each token once, and never NaN.
void test_steps(Backend& backend) {
  Problem p;
  p.rule = {7, 3, 0, ReplayWeights::mean_preserving, false, false, false};
  p.grid = {5, 6, 4, 4};
  p.cu_tokens = {0, 46};
  p.cu_pictures = {0, 2};
  p.saliency = noise(46, 9, 1e-3f);
  for (float& a : p.saliency) a = std::fabs(a);
  p.used.assign(46, 0);
  for (int32_t done = 0, step = 0; step < 8; ++step) {
    p.cu_selected = {0, replay_count(p.rule, 46, done)};
    CHECK(p.cu_selected[1] == std::max(0, std::min(7, 46 - done)), "step %d", step);
    Output out = run(backend, p);
    check_problem(p, out, step);
    p.used.assign(out.used.data(), out.used.data() + 46);
    done += p.cu_selected[1];
    CHECK(std::accumulate(p.used.begin(), p.used.end(), 0) == done, "step %d marks", step);
  }
}

double objective(const Problem& p, const std::vector<double>& scores, const std::vector<int32_t>& selected, const std::vector<float>& dweight) {
  const bool soft = p.rule.weights == ReplayWeights::softmax;
  double sum = 0, value = 0;
  for (const int32_t i : selected)
    if (!soft || !p.used[i]) sum += soft ? std::exp(scores[i]) : scores[i];
  const double rows = soft || p.rule.mix ? 1.0 : static_cast<double>(selected.size());
  for (size_t k = 0; k < selected.size(); ++k) {
    const size_t i = static_cast<size_t>(selected[k]);
    const double w = soft ? (p.used[i] ? 0.0 : std::exp(scores[i]) / sum) : rows * scores[i] / sum;
    value += w * static_cast<double>(dweight[k]);
  }
  return value;
}

void test_gradient(Backend& backend) {
  Noise source(6);
  for (int number = 0; number < (kEmulatedOnly ? 60 : 300); ++number) {
    Problem p;
    p.rule = {static_cast<int32_t>(1 + source.below(12)), 3, 0, number % 2 ? ReplayWeights::softmax : ReplayWeights::mean_preserving,
              source.below(2) == 0, source.below(2) == 0, false};
    const int32_t n = static_cast<int32_t>(2 + source.below(18));
    p.grid = {1, n};
    p.cu_tokens = {0, n};
    p.cu_pictures = {0, 1};
    int32_t marked = 0;
    std::vector<double> scores;
    for (int32_t i = 0; i < n; ++i) {
      p.saliency.push_back(0.6f + 0.4f * source.next());
      scores.push_back(static_cast<double>(p.saliency.back()));
      p.used.push_back(source.below(4) == 0);
      marked += p.used.back();
    }
    p.cu_selected = {0, replay_count(p.rule, n, marked)};
    Output out = run(backend, p);
    const std::vector<int32_t> selected(out.selected.data(), out.selected.data() + p.cu_selected[1]);
    const std::vector<float> dweight = noise(p.cu_selected[1], 7 + static_cast<uint64_t>(number));
    Guarded<float> d(n, std::vector<float>(static_cast<size_t>(n), 0.25f));
    backend.select_patches_grad(p.rule, p.layout(), p.saliency.data(), out.selected.data(), out.weight.data(), dweight.data(), d.data());
    for (int32_t i = 0; i < n; ++i) {
      std::vector<double> high = scores, low = scores;
      high[i] += 1e-5;
      low[i] -= 1e-5;
      const double slope = (objective(p, high, selected, dweight) - objective(p, low, selected, dweight)) / 2e-5;
      CHECK_CLOSE(d[i] - 0.25, slope, 1e-6 * (1 + std::fabs(slope)), "gradient %d of problem %d", i, number);
    }
    CHECK(d.intact(), "gradient %d wrote outside", number);
  }
}

// Weights that were equal for want of scores send nothing back.
void test_equal_gradient(Backend& backend) {
  const std::vector<std::vector<float>> rows = {{0, 0, 0, 0}, {kInf, 1, 1, 1}, {kNaN, 1, 1, 1}, {-kInf, -kInf, -kInf, -kInf}, {kNaN, kNaN, kNaN, kNaN}};
  for (const ReplayWeights kind : {ReplayWeights::softmax, ReplayWeights::mean_preserving})
    for (const auto& row : rows) {
      if (kind == ReplayWeights::softmax && row[0] == 0) continue;  // a proper softmax
      Problem p;
      p.rule = {4, 2, 0, kind, false, false, false};
      p.grid = {2, 2};
      p.cu_tokens = {0, 4};
      p.cu_pictures = {0, 1};
      p.cu_selected = {0, 4};
      p.saliency = row;
      p.used.assign(4, 0);
      Output out = run(backend, p);
      check_problem(p, out, 0);
      const std::vector<float> dweight = noise(4, 8);
      Guarded<float> d(4, {1, 1, 1, 1});
      backend.select_patches_grad(p.rule, p.layout(), p.saliency.data(), out.selected.data(), out.weight.data(), dweight.data(), d.data());
      for (int i = 0; i < 4; ++i) CHECK(d[i] == 1, "equal weights send %g", static_cast<double>(d[i]));
    }
}

}  // namespace

int main() {
  test_selection();
  test_many();
  test_large_grid();
  test_gather();
  for_each_backend([](Backend& backend, const char*) {
    test_steps(backend);
    test_gradient(backend);
    test_equal_gradient(backend);
  });
  return finish_variants();
}
