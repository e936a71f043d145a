// route_tokens on the CPU and by the emulated kernels: the same indices for 100,000 rows chosen to disagree (10,000 with a sanitizer).
#include <algorithm>
#include <cmath>
#include <limits>

#include "variants.h"

using namespace plumbline;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kDenormal = std::numeric_limits<float>::denorm_min();
constexpr int64_t kRows = kEmulatedOnly ? 10000 : 100000;

struct Scores {
  std::vector<int32_t> cu{0};
  std::vector<float> values;
  int32_t B() const { return static_cast<int32_t>(cu.size()) - 1; }
  int64_t T() const { return cu.back(); }
};

constexpr int64_t kKinds = 8;
float score_of(int64_t kind, int64_t i, Noise& noise) {
  const float odd[] = {kNaN, -kNaN, kInf, -kInf, 0.0f, -0.0f, 1.0f, kDenormal};
  switch (kind) {
    case 0: return 0.5f;                                                     // all the same
    case 1: return static_cast<float>(noise.below(5)) - 2.0f;                // few values
    case 2: return odd[noise.below(8)];
    case 3: return noise.below(6) ? noise.next() : odd[noise.below(8)];
    case 4: return bf16_to_float(float_to_bf16(noise.next()));               // equal after rounding
    case 5: return (noise.below(2) ? -kDenormal : kDenormal) * static_cast<float>(noise.below(4));
    case 6: return static_cast<float>(i) * 0.25f;                            // each beats all before it
    default: return noise.next();
  }
}

void add_sequence(Scores& s, int64_t n, int64_t kind, Noise& noise) {
  for (int64_t i = 0; i < n; ++i) s.values.push_back(score_of(kind, i, noise));
  s.cu.push_back(s.cu.back() + static_cast<int32_t>(n));
}

// Many short sequences and empty ones; with a long one among them; a few of some thousands, which end within tiles.
std::vector<Scores> batches(Noise& noise) {
  Scores shorts, mixed, longs;
  while (shorts.T() < kRows / 4) add_sequence(shorts, noise.below(5) ? noise.below(60) : 0, noise.below(kKinds), noise);
  while (mixed.T() < kRows / 4) {
    add_sequence(mixed, noise.below(20), noise.below(kKinds), noise);
    if (mixed.B() == 50) add_sequence(mixed, kRows / 5, 3, noise);
  }
  for (int64_t kind = 0; longs.T() < kRows / 2; ++kind) add_sequence(longs, std::min(2500 + noise.below(6000), kRows / 2 - longs.T()), kind % kKinds, noise);
  return {shorts, mixed, longs};
}

struct Routed {
  std::vector<int32_t> rows, cu, order;
};

Routed run(Backend& backend, const Scores& s, RouteRule rule, float threshold, int32_t alpha, std::vector<std::vector<float>>& best, std::vector<int32_t>& count) {
  std::vector<float*> lists;
  for (size_t b = 0; b < best.size(); ++b) {
    best[b].resize(static_cast<size_t>(std::min(alpha, count[b] + s.cu[b + 1] - s.cu[b])), kNaN);
    lists.push_back(best[b].data());
  }
  const bool prefix = rule == RouteRule::prefix_topk;
  Guarded<int32_t> rows(s.T()), cu(s.B() + 1), order(s.T());
  const RouteTokens route = {rule, s.B(), s.cu.data(), &threshold, alpha, prefix ? lists.data() : nullptr, prefix ? count.data() : nullptr};
  backend.route_tokens(route, s.values.data(), rows.data(), cu.data(), rule == RouteRule::topk ? order.data() : nullptr, RouteGate::raw, nullptr);
  CHECK(rows.intact() && cu.intact() && order.intact(), "%s wrote outside", backend.name());
  Routed r;
  r.cu.assign(cu.data(), cu.data() + s.B() + 1);
  r.rows.assign(rows.data(), rows.data() + r.cu.back());
  if (rule == RouteRule::topk) r.order.assign(order.data(), order.data() + r.cu.back());
  return r;
}

void compare(const Routed& got, const Routed& want, const char* rule, double setting) {
  CHECK(got.cu == want.cu, "%s %g: numbers of rows", rule, setting);
  CHECK(got.rows == want.rows, "%s %g: rows", rule, setting);
  CHECK(got.order == want.order, "%s %g: order", rule, setting);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) { return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0); }

// More chunks than one: each with what the last left behind.
void check_prefix(Backend& cpu, Backend& emulated, const Scores& s, int32_t alpha, int chunks) {
  const size_t B = static_cast<size_t>(s.B());
  std::vector<std::vector<float>> best(B), best_emulated(B);
  std::vector<int32_t> count(B, 0), count_emulated(B, 0);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const Routed want = run(cpu, s, RouteRule::prefix_topk, 0, alpha, best, count);
    compare(run(emulated, s, RouteRule::prefix_topk, 0, alpha, best_emulated, count_emulated), want, "prefix_topk", alpha);
    CHECK(count == count_emulated, "prefix_topk %d: numbers of best scores", alpha);
    for (size_t b = 0; b < B; ++b) CHECK(same_bits(best[b], best_emulated[b]), "prefix_topk %d: best scores of sequence %zu", alpha, b);
  }
}

}  // namespace

int main() {
  CpuBackend cpu(kTwoThreads);
  CudaBackend emulated;
  Noise noise(91);
  std::vector<std::vector<float>> none;
  std::vector<int32_t> no_count;
  for (const Scores& s : batches(noise)) {
    for (const float threshold : {-kInf, -0.0f, 0.0f, kDenormal, 0.25f, 0.5f, kInf, kNaN})
      compare(run(emulated, s, RouteRule::threshold, threshold, 0, none, no_count), run(cpu, s, RouteRule::threshold, threshold, 0, none, no_count), "threshold",
              static_cast<double>(threshold));
    for (const int32_t alpha : {1, 32, 3000}) {
      compare(run(emulated, s, RouteRule::topk, 0, alpha, none, no_count), run(cpu, s, RouteRule::topk, 0, alpha, none, no_count), "topk", alpha);
      check_prefix(cpu, emulated, s, alpha, alpha == 32 ? 2 : 1);
    }
  }
  return finish();
}
