// cross_entropy against f64.
#include <cmath>
#include <limits>

#include "variants.h"

using plumbline::Backend;
using plumbline::CpuBackend;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Case {
  int64_t R, V;
  float scale;  // of the gradient
  std::vector<float> logits;
  std::vector<int32_t> targets;
  Case(int64_t rows, int64_t vocabulary, float size) : R(rows), V(vocabulary), scale(1.0f / 7), logits(noise(rows * vocabulary, 31, size)) {
    Noise source(32);
    for (int64_t r = 0; r < R; ++r) targets.push_back(r % 4 == 2 ? -100 : static_cast<int32_t>(source.below(V)));
    if (R > 1) {  // ties for the maximum, in an ignored row too, and a target that is the maximum
      for (const int64_t i : {V + V / 2, V + V - 1, 2 * V + V / 2, 2 * V + V - 1}) logits[static_cast<size_t>(i)] = size + 1;
      targets[1] = static_cast<int32_t>(V / 2);
    }
  }
};

struct Outputs {
  Guarded<float> loss, gradient;
  Guarded<int32_t> argmax;
  explicit Outputs(const Case& c) : loss(c.R), gradient(c.R * c.V), argmax(c.R) {}
  bool operator==(const Outputs& other) const { return loss == other.loss && gradient == other.gradient && argmax == other.argmax; }
};

Outputs run(Backend& backend, const Case& c) {
  Outputs out(c);
  backend.cross_entropy(c.logits.data(), c.targets.data(), c.scale, out.loss.data(), out.argmax.data(), out.gradient.data(), c.R, c.V);
  return out;
}

// A term of the sum is off by 4 roundings and its argument's, |x - max| exp(x - max) < 0.4; 2048/8 additions in a lane of the baseline.
void check(const Case& c, Outputs& out, const char* where) {
  constexpr double kSum = (4 + 1 + 256) * kUnit;
  for (int64_t r = 0; r < c.R; ++r) {
    const float* x = &c.logits[static_cast<size_t>(r * c.V)];
    int64_t best = 0;
    for (int64_t i = 1; i < c.V; ++i)
      if (x[i] > x[best]) best = i;
    CHECK(out.argmax[r] == best, "%s row %ld: argmax %d, not %ld", where, r, out.argmax[r], best);
    const int32_t target = c.targets[static_cast<size_t>(r)];
    double sum = 0;
    for (int64_t i = 0; i < c.V; ++i) sum += std::exp(static_cast<double>(x[i]) - x[best]);
    const double loss = target == -100 ? 0 : std::log(sum) + x[best] - static_cast<double>(x[target]);
    CHECK_CLOSE(out.loss[r], loss, target == -100 ? 0 : kSum + kUnit * loss, "%s row %ld loss", where, r);
    for (int64_t i = 0; i < c.V; ++i) {
      const double below = static_cast<double>(x[i]) - x[best], p = std::exp(below) / sum;
      const double want = target == -100 ? 0 : (p - (i == target)) * c.scale;
      const double bound = target == -100 ? 0 : (p * (kSum + (8 + std::fabs(below)) * kUnit) + kTiny) * c.scale + kUnit * std::fabs(want);
      CHECK_CLOSE(out.gradient[r * c.V + i], want, bound, "%s row %ld gradient %ld", where, r, i);
    }
  }
  CHECK(out.loss.intact() && out.gradient.intact() && out.argmax.intact(), "%s wrote outside", where);
}

void test_values() {
  for (const int64_t V : {2, 31, 32, 33, 127, 128, 129, 1000, 1536, 2047, 2048, 2049, 4100, 152064})
    for (const float size : {1.0f, 30.0f, 1e4f}) {
      if (V == 152064 && size != 30.0f) continue;
      const Case c(V > 5000 ? 3 : 6, V, size);
      Outputs first(c);
      for_each_backend([&](Backend& backend, const char* name) {
        const std::string where = std::string(name) + " V " + std::to_string(V) + " size " + std::to_string(size);
        Outputs out = run(backend, c);
        check(c, out, where.c_str());
        Guarded<float> in_place(c.R * c.V, c.logits), loss(c.R);
        Guarded<int32_t> argmax(c.R);
        backend.cross_entropy(in_place.data(), c.targets.data(), c.scale, loss.data(), argmax.data(), in_place.data(), c.R, c.V);
        CHECK(in_place == out.gradient && loss == out.loss && argmax == out.argmax, "%s in place differs", where.c_str());
        Guarded<float> loss_only(c.R);
        backend.cross_entropy(c.logits.data(), c.targets.data(), c.scale, loss_only.data(), argmax.data(), nullptr, c.R, c.V);
        CHECK(loss_only == out.loss, "%s without gradient differs", where.c_str());
      });
    }
}

void test_same_bits() {
  const Case c(300, 320, 5.0f);
  for (const plumbline::Isa isa : {plumbline::Isa::baseline, plumbline::best_isa()}) {
    CpuBackend one(1), two(kTwoThreads);
    one.set_isa(isa), two.set_isa(isa);
    const Outputs a = run(one, c), b = run(two, c), again = run(two, c);
    CHECK(a == b && b == again, "threads or a second run change bits");
  }
  Outputs out = run(*std::make_unique<CpuBackend>(kTwoThreads), c);
  check(c, out, "300 rows");
}

struct Special {
  const char* what;
  std::vector<float> row;  // the target is its first element
  double loss;
};

int64_t first_largest(const std::vector<float>& row) {  // of the numbers; 0 when there is none
  int64_t best = -1;
  for (size_t i = 0; i < row.size(); ++i)
    if (!std::isnan(row[i]) && (best < 0 || row[i] > row[static_cast<size_t>(best)])) best = static_cast<int64_t>(i);
  return std::max<int64_t>(best, 0);
}

// The row starts at three places of a longer one, filled with -inf: at its start, across two blocks, and at its end.
void test_special(Backend& backend, const char* name) {
  const std::vector<Special> rows = {
      {"-inf beside numbers", {0, -kInf, 0}, std::log(2.0)},
      {"target -inf", {-kInf, 0, 1}, HUGE_VAL},
      {"NaN", {0, kNaN, 1}, NAN},
      {"NaN first", {kNaN, 0, 1}, NAN},
      {"all NaN", {kNaN, kNaN}, NAN},
      {"inf", {0, kInf, 1}, NAN},
      {"all -inf", {-kInf, -kInf}, NAN},
      {"far apart", {-1e4f, 1e4f}, 2e4},
      {"lowest numbers", {-3e38f, -3e38f}, std::log(2.0)},
  };
  for (const Special& special : rows)
    for (const int64_t V : {static_cast<int64_t>(special.row.size()), int64_t{5000}}) {
      const int64_t length = static_cast<int64_t>(special.row.size());
      for (const int64_t start : {int64_t{0}, std::min<int64_t>(V - length, 2047), V - length}) {
        std::vector<float> logits(static_cast<size_t>(V), -kInf);
        std::copy(special.row.begin(), special.row.end(), logits.begin() + start);
        const int32_t target = static_cast<int32_t>(start), ignored = -100;
        Guarded<float> loss(1), gradient(V);
        Guarded<int32_t> argmax(1);
        backend.cross_entropy(logits.data(), &target, 1, loss.data(), argmax.data(), gradient.data(), 1, V);
        CHECK_CLOSE(loss[0], special.loss, 1e-6, "%s %s V %ld at %ld", name, special.what, V, start);
        CHECK(argmax[0] == first_largest(logits), "%s %s V %ld at %ld: argmax %d", name, special.what, V, start, argmax[0]);
        for (int64_t i = 0; i < V; ++i)
          CHECK(std::isnan(special.loss) ? std::isnan(gradient[i]) : std::fabs(gradient[i]) <= 1, "%s %s gradient %ld is %g", name,
                special.what, i, static_cast<double>(gradient[i]));
        backend.cross_entropy(logits.data(), &ignored, 1, loss.data(), argmax.data(), gradient.data(), 1, V);
        CHECK(loss[0] == 0 && argmax[0] >= 0 && argmax[0] < V, "%s %s ignored", name, special.what);
        for (int64_t i = 0; i < V; ++i) CHECK(gradient[i] == 0, "%s %s ignored gradient %ld", name, special.what, i);
      }
    }
}

}  // namespace

int main() {
  test_values();
  test_same_bits();
  for_each_backend(test_special);
  return finish_variants();
}
