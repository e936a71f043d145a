// route_tokens, route_gates and their gradients.
#include <algorithm>
#include <cmath>
#include <limits>

#include "variants.h"

using namespace plumbline;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Scores {
  std::vector<int32_t> cu{0};
  std::vector<float> values;
  int32_t B() const { return static_cast<int32_t>(cu.size()) - 1; }
  int64_t T() const { return cu.back(); }
};

Scores random_scores(Noise& noise) {
  Scores s;
  const int64_t B = noise.below(5);
  for (int64_t b = 0; b < B; ++b) {
    const int64_t kind = noise.below(5), n = noise.below(4) ? noise.below(60) : 0;
    const float odd[] = {kNaN, kInf, -kInf, 0.0f, -0.0f, 1.0f};
    for (int64_t i = 0; i < n; ++i)
      s.values.push_back(kind == 0   ? 0.5f
                         : kind == 1 ? static_cast<float>(noise.below(5)) - 2.0f
                         : kind == 2 ? odd[noise.below(6)]
                         : kind == 3 ? (noise.below(6) ? noise.next() : kNaN)
                                     : noise.next());
    s.cu.push_back(s.cu.back() + static_cast<int32_t>(n));
  }
  return s;
}

bool at_least(float a, float b) { return std::isnan(b) || (!std::isnan(a) && a >= b); }

struct Routed {
  std::vector<int32_t> rows, cu{0}, order;
};

// From the definitions, each token against all others.
Routed brute(const Scores& s, RouteRule rule, float threshold, int32_t alpha) {
  Routed r;
  for (int32_t b = 0; b < s.B(); ++b) {
    const int32_t first = s.cu[b], end = s.cu[b + 1];
    std::vector<int32_t> order;
    for (int32_t i = first; i < end; ++i) {
      const float own = s.values[i];
      int32_t before = 0;
      for (int32_t j = first; j < end; ++j) {
        const float other = s.values[j];
        if (j < i) before += at_least(other, own);
        if (j > i && rule == RouteRule::topk) before += !at_least(own, other);
      }
      if (rule == RouteRule::threshold ? own > threshold : before < alpha) r.rows.push_back(i), order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(), [&](int32_t i, int32_t j) { return !at_least(s.values[j], s.values[i]); });
    r.order.insert(r.order.end(), order.begin(), order.end());
    r.cu.push_back(static_cast<int32_t>(r.rows.size()));
  }
  return r;
}

// best: alpha places per sequence.
Routed run(Backend& backend, const Scores& s, RouteRule rule, float threshold, int32_t alpha, std::vector<float>& best, std::vector<int32_t>& count) {
  std::vector<float*> lists;
  for (int32_t b = 0; b < s.B(); ++b) lists.push_back(best.data() + b * alpha);
  const bool prefix = rule == RouteRule::prefix_topk;
  Guarded<int32_t> rows(s.T()), cu(s.B() + 1), order(s.T());
  const RouteTokens route = {rule, s.B(), s.cu.data(), &threshold, alpha, prefix ? lists.data() : nullptr, prefix ? count.data() : nullptr};
  backend.route_tokens(route, s.values.data(), rows.data(), cu.data(), rule == RouteRule::topk ? order.data() : nullptr, RouteGate::raw, nullptr);
  CHECK(rows.intact() && cu.intact() && order.intact(), "wrote outside");
  Routed r;
  r.cu.assign(cu.data(), cu.data() + s.B() + 1);
  r.rows.assign(rows.data(), rows.data() + r.cu.back());
  if (rule == RouteRule::topk) r.order.assign(order.data(), order.data() + r.cu.back());
  return r;
}

void test_route_tokens() {
  CpuBackend one(1), two(kTwoThreads);
  CudaBackend emulated;
  Noise noise(3);
  for (int number = 0; number < (kEmulatedOnly ? 600 : 3000); ++number) {
    const Scores s = random_scores(noise);
    const int32_t alpha = static_cast<int32_t>(1 + noise.below(12));
    const float thresholds[] = {-kInf, -0.5f, 0.0f, 0.5f, kInf, kNaN};
    const float threshold = thresholds[noise.below(6)];
    for (const RouteRule rule : {RouteRule::threshold, RouteRule::prefix_topk, RouteRule::topk}) {
      std::vector<float> best(static_cast<size_t>(s.B() * alpha), 7.0f);
      std::vector<int32_t> count(static_cast<size_t>(s.B()), 0), count_two = count, count_emulated = count;
      std::vector<float> best_emulated = best;
      const Routed want = brute(s, rule, threshold, alpha), got = run(one, s, rule, threshold, alpha, best, count);
      const Routed other = run(two, s, rule, threshold, alpha, best, count_two);
      CHECK(got.rows == want.rows && got.cu == want.cu, "scores %d rule %d", number, static_cast<int>(rule));
      CHECK(other.rows == got.rows && other.cu == got.cu && other.order == got.order, "scores %d rule %d: threads", number, static_cast<int>(rule));
      if (rule == RouteRule::topk) CHECK(got.order == want.order, "scores %d order", number);
      if (number % 4) continue;
      const Routed kernel = run(emulated, s, rule, threshold, alpha, best_emulated, count_emulated);
      CHECK(kernel.rows == want.rows && kernel.cu == want.cu, "emulated cuda: scores %d rule %d", number, static_cast<int>(rule));
      if (rule == RouteRule::topk) CHECK(kernel.order == want.order, "emulated cuda: scores %d order", number);
    }
  }
}

// Chunk after chunk, with the state carried, is the whole.
void check_chunks(Backend& backend, int numbers) {
  Noise noise(4);
  for (int number = 0; number < numbers; ++number) {
    const Scores s = random_scores(noise);
    const int32_t alpha = static_cast<int32_t>(1 + noise.below(9));
    const Routed want = brute(s, RouteRule::prefix_topk, 0, alpha);
    std::vector<float> best(static_cast<size_t>(s.B() * alpha));
    std::vector<int32_t> count(static_cast<size_t>(s.B()), 0), done(count), rows;
    for (bool more = true; more;) {
      more = false;
      Scores chunk;
      std::vector<int32_t> origin;
      for (int32_t b = 0; b < s.B(); ++b) {
        const int32_t left = s.cu[b + 1] - s.cu[b] - done[b];
        const int32_t n = static_cast<int32_t>(std::min<int64_t>(left, noise.below(13)));
        for (int32_t i = 0; i < n; ++i) {
          origin.push_back(s.cu[b] + done[b] + i);
          chunk.values.push_back(s.values[origin.back()]);
        }
        chunk.cu.push_back(chunk.cu.back() + n);
        done[b] += n;
        more = more || n < left;
      }
      for (const int32_t i : run(backend, chunk, RouteRule::prefix_topk, 0, alpha, best, count).rows) rows.push_back(origin[i]);
    }
    std::sort(rows.begin(), rows.end());
    CHECK(rows == want.rows, "%s: scores %d in chunks", backend.name(), number);
  }
}

void test_chunks() {
  CpuBackend backend(1);
  CudaBackend emulated;
  if (!kEmulatedOnly) check_chunks(backend, 1000);
  check_chunks(emulated, kEmulatedOnly ? 30 : 100);
}

void test_gates() {
  for_each_backend([](Backend& backend, const char* name) {
    Scores s;
    s.cu = {0, 0, 1, 34, 34, 1034, 1163};
    s.values = noise(1163, 51, 6.0f);
    for (int i = 0; i < 1163; i += 97) s.values[i] = i % 2 ? 90.0f : -110.0f;
    const std::vector<float> dgates = noise(1163, 52);
    const int64_t T = s.T();
    Guarded<float> raw(T), sigmoid(T), softmax(T), draw(T), dsigmoid(T), dsoftmax(T);
    backend.route_gates(RouteGate::raw, s.B(), s.cu.data(), s.values.data(), raw.data());
    backend.route_gates(RouteGate::sigmoid, s.B(), s.cu.data(), s.values.data(), sigmoid.data());
    backend.route_gates(RouteGate::softmax_sequence, s.B(), s.cu.data(), s.values.data(), softmax.data());
    backend.route_gates_grad(RouteGate::raw, s.B(), s.cu.data(), raw.data(), dgates.data(), draw.data());
    backend.route_gates_grad(RouteGate::sigmoid, s.B(), s.cu.data(), sigmoid.data(), dgates.data(), dsigmoid.data());
    backend.route_gates_grad(RouteGate::softmax_sequence, s.B(), s.cu.data(), softmax.data(), dgates.data(), dsoftmax.data());
    for (int32_t b = 0; b < s.B(); ++b) {
      double top = -std::numeric_limits<double>::infinity(), sum = 0, centre = 0, size = 0;
      const size_t first = static_cast<size_t>(s.cu[b]), end = static_cast<size_t>(s.cu[b + 1]);
      for (size_t i = first; i < end; ++i) top = std::max(top, static_cast<double>(s.values[i]));
      for (size_t i = first; i < end; ++i) sum += std::exp(static_cast<double>(s.values[i]) - top);
      for (size_t i = first; i < end; ++i) {
        const double term = std::exp(static_cast<double>(s.values[i]) - top) / sum * static_cast<double>(dgates[i]);
        centre += term, size += std::fabs(term);
      }
      for (size_t i = first; i < end; ++i) {
        const double x = static_cast<double>(s.values[i]), d = static_cast<double>(dgates[i]);
        const double g = 1 / (1 + std::exp(-x)), p = std::exp(x - top) / sum;
        const double relative = (static_cast<double>(end - first) + 12 + 2 * std::fabs(x - top)) * kUnit;
        const int64_t at = static_cast<int64_t>(i);
        CHECK(raw[at] == s.values[i] && draw[at] == dgates[i], "%s raw %ld", name, at);
        CHECK_CLOSE(sigmoid[at], g, 10 * kUnit * g + kTiny, "%s sigmoid at %g", name, x);
        CHECK_CLOSE(dsigmoid[at], d * g * (1 - g), 12 * kUnit * std::fabs(d) * g + kTiny, "%s dsigmoid at %g", name, x);
        CHECK_CLOSE(softmax[at], p, relative * p + kTiny, "%s softmax at %ld", name, at);
        const double spread = std::fabs(d) + size + 1;
        CHECK_CLOSE(dsoftmax[at], p * (d - centre), (2 * relative * p + kTiny) * spread, "%s dsoftmax %ld", name, at);
      }
    }
    CHECK(raw.intact() && sigmoid.intact() && softmax.intact() && draw.intact() && dsigmoid.intact() && dsoftmax.intact(), "%s wrote outside", name);
  });
}

void test_special_gates() {
  for_each_backend([](Backend& backend, const char* name) {
    const int32_t cu[] = {0, 3, 6, 8};
    const float scores[] = {kNaN, kInf, -kInf, 1.0f, kNaN, 2.0f, 3.0f, 3.0f};
    float gates[8];
    backend.route_gates(RouteGate::sigmoid, 3, cu, scores, gates);
    CHECK(std::isnan(gates[0]) && gates[1] == 1 && gates[2] == 0, "%s sigmoid of NaN, inf, -inf: %g %g %g", name, static_cast<double>(gates[0]),
          static_cast<double>(gates[1]), static_cast<double>(gates[2]));
    backend.route_gates(RouteGate::softmax_sequence, 3, cu, scores, gates);
    CHECK(std::isnan(gates[3]) && std::isnan(gates[4]) && std::isnan(gates[5]), "%s softmax with a NaN", name);
    CHECK(gates[6] == 0.5f && gates[7] == 0.5f, "%s a NaN reached another sequence", name);
  });
}

}  // namespace

int main() {
  test_route_tokens();
  test_chunks();
  test_gates();
  test_special_gates();
  return finish_variants();
}
