// scale_columns against doubles, on any strides; dropout: the same elements on every backend, about as many as asked, cuts change nothing.
#include <cmath>

#include "variants.h"

using plumbline::Backend;

namespace {

void test_scale_columns() {
  for (const int64_t T : {1, 5, 129})
    for (const int64_t C : {1, 31, 128})
      for (const bool accumulate : {false, true}) {
        const int64_t from_stride = C + 3, to_stride = C + 7;
        const std::vector<float> x = noise(T * from_stride, 1), before = noise(T * to_stride, 2);
        for_each_backend([&](Backend& backend, const char* name) {
          Guarded<float> y(T * to_stride, before);
          backend.scale_columns(x.data() + 2, from_stride, 0.75f, y.data() + 5, to_stride, T, C, accumulate);
          CHECK(y.intact(), "%s wrote outside", name);
          for (int64_t t = 0; t < T; ++t)
            for (int64_t c = 0; c < to_stride; ++c) {
              const int64_t at = t * to_stride + c;
              const double old = static_cast<double>(before[static_cast<size_t>(at)]);
              const bool is_inside = c >= 5 && c < 5 + C;
              const double want = is_inside ? 0.75 * static_cast<double>(x[static_cast<size_t>(t * from_stride + c - 3)]) + (accumulate ? old : 0) : old;
              CHECK_CLOSE(y[at], want, is_inside ? 2 * kUnit * (std::fabs(want) + std::fabs(old)) : 0, "%s T %ld C %ld at %ld, %ld", name, T, C, t, c);
            }
        });
      }
  for_each_backend([](Backend& backend, const char* name) {  // in place, and nothing at all
    Guarded<float> y(40, noise(40, 3)), empty(0);
    backend.scale_columns(y.data(), 8, -2.0f, y.data(), 8, 5, 8, false);
    for (int64_t i = 0; i < 40; ++i) CHECK(y[i] == -2.0f * noise(40, 3)[static_cast<size_t>(i)], "%s in place at %ld", name, i);
    backend.scale_columns(y.data(), 8, 1.0f, empty.data(), 8, 0, 8, false);
    CHECK(empty.intact(), "%s wrote outside", name);
  });
}

void test_dropout() {
  constexpr int64_t kSize = 100003;
  constexpr float kRate = 0.3f;
  const std::vector<float> x(kSize, 3.0f);
  std::vector<float> first;
  for_each_backend([&](Backend& backend, const char* name) {
    Guarded<float> y(kSize), sum(kSize, std::vector<float>(kSize, 1.0f)), other(kSize), all(kSize), empty(0);
    backend.dropout(x.data(), kRate, 7, y.data(), kSize, false);
    backend.dropout(x.data(), kRate, 7, sum.data(), kSize, true);
    backend.dropout(x.data(), kRate, 8, other.data(), kSize, false);
    backend.dropout(x.data(), 0.0f, 7, all.data(), kSize, false);
    backend.dropout(x.data(), kRate, 7, empty.data(), 0, false);
    if (first.empty()) first.assign(y.data(), y.data() + kSize);
    CHECK(y == Guarded<float>(kSize, first) && y.intact() && sum.intact() && empty.intact(), "%s drops other elements", name);
    int64_t dropped = 0, both = 0;
    for (int64_t i = 0; i < kSize; ++i) {
      CHECK(y[i] == 0.0f || std::fabs(static_cast<double>(y[i]) - 3.0 / (1.0 - static_cast<double>(kRate))) < 1e-6, "%s value at %ld", name, i);
      CHECK(sum[i] == 1.0f + y[i] && all[i] == 3.0f, "%s sum or rate 0 at %ld", name, i);
      dropped += y[i] == 0.0f, both += y[i] == 0.0f && other[i] == 0.0f;
    }
    const double n = static_cast<double>(kSize), rate = static_cast<double>(kRate), pair = rate * rate;
    CHECK_CLOSE(static_cast<double>(dropped) / n, rate, 5 * std::sqrt(rate * (1 - rate) / n), "%s share", name);
    CHECK_CLOSE(static_cast<double>(both) / n, pair, 5 * std::sqrt(pair * (1 - pair) / n), "%s keys are related", name);
  });
}

}  // namespace

int main() {
  test_scale_columns();
  test_dropout();
  return finish_variants();
}
