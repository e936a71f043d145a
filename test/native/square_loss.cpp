// square_loss and its gradient against the formulas in f64.
#include <cmath>

#include "variants.h"

using plumbline::Backend;

namespace {

void check_case(Backend& backend, const char* name, int64_t R, int64_t C) {
  const std::vector<float> a = noise(R * C, 81, 3.0f), b = noise(R * C, 82), scale = noise(R, 83), before = noise(R * C, 84);
  Guarded<float> loss(R), da(R * C, before), db(R * C), alone(R * C, before);
  backend.square_loss(a.data(), b.data(), loss.data(), R, C);
  backend.square_loss_grad(a.data(), b.data(), scale.data(), da.data(), db.data(), R, C);
  backend.square_loss_grad(a.data(), b.data(), scale.data(), alone.data(), nullptr, R, C);
  for (int64_t r = 0; r < R; ++r) {
    double want = 0;
    for (int64_t i = r * C; i < (r + 1) * C; ++i) {
      const size_t at = static_cast<size_t>(i);
      const double off = static_cast<double>(a[at]) - b[at], part = 2.0 * scale[static_cast<size_t>(r)] * off / static_cast<double>(C);
      want += off * off / static_cast<double>(C);
      CHECK_CLOSE(db[i], -part, 4 * kUnit * std::fabs(part), "%s db %ld of %ld x %ld", name, i, R, C);
      CHECK_CLOSE(da[i], before[at] + part, 4 * kUnit * std::fabs(part) + kUnit * (std::fabs(before[at]) + std::fabs(part)), "%s da %ld of %ld x %ld", name, i, R, C);
    }
    CHECK_CLOSE(loss[r], want, 2 * kUnit * want, "%s loss %ld of %ld x %ld", name, r, R, C);
  }
  CHECK(alone == da && loss.intact() && db.intact(), "%s without db, or wrote outside", name);
}

void test_non_finite() {
  for_each_backend([](Backend& backend, const char* name) {
    std::vector<float> a = noise(3 * 40, 85), b = noise(3 * 40, 86);
    a[45] = std::nanf("");
    b[90] = HUGE_VALF;
    Guarded<float> loss(3);
    backend.square_loss(a.data(), b.data(), loss.data(), 3, 40);
    CHECK(std::isfinite(loss[0]) && std::isnan(loss[1]) && std::isinf(loss[2]), "%s NaN and inf leave their row", name);
  });
}

}  // namespace

int main() {
  for_each_backend([](Backend& backend, const char* name) {
    for (const int64_t C : kSizes)
      for (const int64_t R : {int64_t{0}, int64_t{1}, int64_t{5}}) check_case(backend, name, R, C);
  });
  test_non_finite();
  return finish_variants();
}
