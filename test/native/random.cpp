// fill_normal: every backend gives the same numbers, wherever a run is cut; and they are normal.
#include <cmath>

#include "variants.h"

using plumbline::Backend;

namespace {

void test_same_numbers() {
  constexpr int64_t kSize = 1003, kFirst = 1000001;
  std::vector<float> first;
  for_each_backend([&](Backend& backend, const char* name) {
    Guarded<float> x(kSize), again(kSize), empty(0);
    backend.fill_normal(x.data(), kSize, kFirst, 77, 0.5f);
    if (first.empty()) first.assign(x.data(), x.data() + kSize);
    CHECK(x == Guarded<float>(kSize, first), "%s: other numbers", name);  // one libm: on a device a unit in the last place may differ
    for (int64_t start = 0, length = 1; start < kSize; start += length, length = std::min(length % 7 + 1, kSize - start))
      backend.fill_normal(again.data() + start, std::min(length, kSize - start), kFirst + start, 77, 0.5f);
    CHECK(again == x && x.intact(), "%s: cuts change the numbers", name);
    backend.fill_normal(empty.data(), 0, 5, 77, 1.0f);
    CHECK(empty.intact(), "%s wrote outside", name);
  });
}

void test_moments() {
  for_each_backend([](Backend& backend, const char* name) {
    const int64_t size = 200000;
    Guarded<float> x(size), other(size);
    backend.fill_normal(x.data(), size, 0, 1, 1.0f);
    backend.fill_normal(other.data(), size, 0, 2, 1.0f);
    double sum = 0, square = 0, product = 0;
    int64_t far = 0;
    for (int64_t i = 0; i < size; ++i) sum += x[i], square += static_cast<double>(x[i]) * x[i], product += static_cast<double>(x[i]) * other[i], far += std::fabs(x[i]) > 2;
    const double n = static_cast<double>(size), five = 5 / std::sqrt(n);  // five standard deviations of each figure
    CHECK_CLOSE(sum / n, 0, five, "%s mean", name);
    CHECK_CLOSE(square / n, 1, five * std::sqrt(2.0), "%s variance", name);
    CHECK_CLOSE(product / n, 0, five, "%s keys are related", name);
    const double beyond = std::erfc(2 / std::sqrt(2.0));
    CHECK_CLOSE(static_cast<double>(far) / n, beyond, five * std::sqrt(beyond * (1 - beyond)), "%s beyond two", name);
  });
}

}  // namespace

int main() {
  test_same_numbers();
  test_moments();
  return finish_variants();
}
